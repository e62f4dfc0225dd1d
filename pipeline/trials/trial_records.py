"""Trials as they are stored, from which a sweep or a comparison is resumed.

Each trial is one document in the folder of its sweep. The state of Ray Tune is not read again: a
resumed sweep gives the searcher and the scheduler the scores that the trials have reported.
"""

from __future__ import annotations

import logging
import re
from typing import Any, ClassVar, Literal

from pydantic import Field

from pipeline.errors import UserError
from pipeline.storage.document import Document, DocumentError
from pipeline.storage.folder import Storage, join
from pipeline.storage.redact import error_line

Params = dict[str, Any]
"""The values of a trial by dotted field. Fields that do not matter in it are absent."""
TrialState = Literal["unfinished", "finished", "stopped early", "failed"]
FOLDER = "trials"
_NUMBERED = r"t\d{4,}"  # names that `new_name` gives
_LOG = logging.getLogger(__name__)


class TrialRecord(Document):
    """A point of the search space and what its training has reported."""

    FORMAT_VERSION: ClassVar[int] = 1

    name: str = Field(description="name of the trial, and of its run in the folder of the sweep")
    params: Params = Field(description="searched values by dotted field")
    state: TrialState = "unfinished"
    scores: list[tuple[float, float]] = Field([], description="epoch and score of each evaluation")
    error: str = Field("", description="why the trial failed")

    @property
    def epochs(self) -> float:
        """Return the epochs trained up to the last evaluation."""
        return max((epoch for epoch, _ in self.scores), default=0.0)

    def best(self, mode: str) -> float | None:
        """Return the best score, which is that of the selected checkpoint; None without one."""
        choose = max if mode == "max" else min
        return choose((score for _, score in self.scores), default=None)

    def with_score(self, epoch: float, score: float) -> TrialRecord:
        """Return the record with the score of one more evaluation.

        A trial that was resumed may repeat an evaluation; the later score replaces the earlier one.
        """
        kept = [item for item in self.scores if item[0] < epoch]
        return self.model_copy(update={"scores": [*kept, (epoch, score)]})


def load_record(uri: str, name: str) -> TrialRecord:
    """Read a record in the folder of a sweep. Raises OSError, or UserError if it is damaged."""
    files = Storage(join(uri, FOLDER))
    try:
        return TrialRecord.parse(files.read(f"{name}.json"), f"{name}.json")
    except DocumentError as error:
        raise UserError(f"{files}: {error}") from None


class TrialRecords:
    """The records of a sweep in its folder or at its URI, by name and in order."""

    def __init__(self, uri: str) -> None:
        self._runs, self._files = Storage(uri), Storage(join(uri, FOLDER))
        self._last = 0  # the highest number of a trial, also of one whose record was lost
        self.all: dict[str, TrialRecord] = {}

    def load(self) -> None:
        """Read all records. Raises OSError, or UserError if one is damaged or of a newer format."""
        names = [name for name in self._runs.folders() if re.fullmatch(_NUMBERED, name)]
        self._last = max((int(name[1:]) for name in names), default=0)
        for file in sorted(self._files.files(), key=lambda item: item.name):
            if not file.name.endswith(".json"):
                continue
            record = load_record(self._runs.uri, file.name.removesuffix(".json"))
            self.all[record.name] = record
            if re.fullmatch(_NUMBERED, record.name):
                self._last = max(self._last, int(record.name[1:]))

    def new_name(self) -> str:
        """Return the name of a new trial."""
        self._last += 1
        return f"t{self._last:04d}"

    def save(self, record: TrialRecord) -> None:
        """Store the record of a trial. If that fails, warn; the next call stores it again."""
        self.all[record.name] = record
        try:
            self._files.create()
            self._files.write(f"{record.name}.json", record.encode())
        except OSError as error:
            _LOG.warning("trial %s could not be recorded: %s", record.name, error_line(error))

    def total_epochs(self) -> float:
        """Return the epochs of all trials together."""
        return sum(record.epochs for record in self.all.values())
