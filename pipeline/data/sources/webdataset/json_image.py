"""An image of a shard whose labels are the JSON under the same key."""

from __future__ import annotations

import json
from dataclasses import dataclass

from pipeline.data.shards.problems import Problem, ProblemKind
from pipeline.data.sources.files import MAX_LABEL_BYTES, File, FileError, read_file
from pipeline.data.sources.record import Object, Record, estimate_label_bytes
from pipeline.data.sources.webdataset.sample_json import (
    BoxFormat,
    ParsedSample,
    parse_sample_json,
)

Names = tuple[tuple[str, str], ...]  # number of a class, as text, and its name


@dataclass(frozen=True)
class JsonImage:
    """An image whose JSON is read when it is converted."""

    image_id: str
    file_name: str
    image: File
    json_name: str
    json: File
    names: Names
    box_format: BoxFormat | None

    @property
    def estimated_bytes(self) -> int:
        """Return the bytes of the image and about those of its JSON.

        An object takes about 60 bytes of JSON.
        """
        return self.image.size + estimate_label_bytes(self.json.size // 60)

    def parse(self, box_format: BoxFormat | None = None) -> ParsedSample:
        """Read the JSON, with another format of boxes if one is given.

        Raises FileError, NoObjectsError, UnnamedClassError or another ValueError.
        """
        try:
            tree = json.loads(read_file(self.json, MAX_LABEL_BYTES))
        except RecursionError:
            raise ValueError("nested too deeply") from None
        return parse_sample_json(tree, dict(self.names), box_format or self.box_format)

    def read_record(self) -> Record:
        """Read the JSON."""
        try:
            found = self.parse()
        except (FileError, ValueError) as error:
            reason = f"{self.json_name} cannot be used: {error}"
            problem = Problem(file=self.file_name, kind="image skipped", reason=reason)
            return self._record(None, None, [], [problem])
        problems = [self._problem("box dropped", fault, objects=1) for fault in found.faults]
        problems += [self._problem("suspicious", doubt) for doubt in found.doubts]
        return self._record(self.image, found.size, found.objects, problems)

    def _problem(self, kind: ProblemKind, reason: str, objects: int = 0) -> Problem:
        return Problem(file=self.json_name, kind=kind, reason=reason, objects=objects)

    def _record(
        self,
        image: File | None,
        size: tuple[int, int] | None,
        objects: list[Object],
        problems: list[Problem],
    ) -> Record:
        return Record(self.image_id, self.file_name, image, self.json_name, size, objects, problems)
