"""Choose the kind of labels of WebDataset shards, and make images of their samples."""

from __future__ import annotations

import io
import itertools
from collections import Counter

from PIL import Image

from pipeline.data.conversion.image_bytes import MAX_IMAGE_BYTES
from pipeline.data.shards.sample import Box
from pipeline.data.sources.files import File, read_file
from pipeline.data.sources.record import SourceImage, skipped_image
from pipeline.data.sources.voc.source import VocImage
from pipeline.data.sources.webdataset.json_image import JsonImage, Names
from pipeline.data.sources.webdataset.listing import LABELS, ListedShard, TarSample
from pipeline.data.sources.webdataset.sample_json import BoxFormat, UnnamedClassError
from pipeline.data.sources.yolo.labels import YoloImage
from pipeline.data.transforms.decode import FORMATS
from pipeline.errors import UserError

PROBED_SAMPLES = 20  # in which labels that can be read are searched
MIN_FITTING = 0.9  # share of boxes inside their images below which another format is suggested
OTHER_FORMATS: tuple[BoxFormat, ...] = ("xywh", "xyxy")


class LabelReader:
    """Makes an image of a sample, with labels of the one ``kind`` that `choose` finds."""

    def __init__(self, names: Names, box_format: BoxFormat | None) -> None:
        self.names, self.box_format = names, box_format
        self.kind = ""

    def choose(self, shard: ListedShard, url: str) -> None:
        """Set the kind to the first one of which a sample can be read. Raises UserError."""
        samples = [sample for sample in shard.samples if sample.images()][:PROBED_SAMPLES]
        reasons = []
        for kind in LABELS:
            labelled = [sample for sample in samples if sample.labels(kind)]
            if not labelled:
                continue
            faults = [self._fault(shard.name, sample, kind) for sample in labelled]
            if None in faults:
                self.kind = kind
                if kind == "json" and self.box_format is None:
                    self._check_box_format(shard.name, labelled, url)
                return
            reasons.append(f".{kind}: {faults[0]}")
        if reasons:
            raise UserError(f"--shards: {url}: its labels cannot be read: {'; '.join(reasons)}")
        raise UserError(f"--shards: {url}: {_reason_without_labels(shard, samples)}")

    def image(self, shard: str, sample: TarSample) -> SourceImage:
        """Return the image of a sample, or the reason why it has none."""
        image_id = f"{shard.removesuffix('.tar')}/{sample.key}"
        shown = f"{shard}/{sample.key}"
        images, labels = sample.images(), sample.labels(self.kind)
        if len(images) != 1:
            found = f"several images ({', '.join(images)})" if images else "no image"
            reason = f"{found} under one key; it has {', '.join(sample.members)}"
        elif len(labels) != 1:
            found = f"several .{self.kind}" if labels else f"no .{self.kind}"
            reason = f"{found} under the key of the image; it has {', '.join(sample.members)}"
        else:
            return self._labelled(image_id, sample, images[0], labels[0])
        return skipped_image(image_id, shown, reason)

    def _labelled(self, image_id: str, sample: TarSample, image: str, label: str) -> SourceImage:
        (image_name, image_file), (label_name, label_file) = (
            sample.members[suffix] for suffix in (image, label)
        )
        if self.kind == "xml":
            return VocImage(
                image_id=image_id,
                file_name=image_name,
                image=image_file,
                xml_name=label_name,
                xml=label_file,
                corners_from=1,
            )
        if self.kind == "txt":
            return YoloImage(
                image_id=image_id,
                file_name=image_name,
                image=image_file,
                labels_name=label_name,
                labels=label_file,
                names=tuple((int(number), name) for number, name in self.names),
                keypoints=False,
            )
        return JsonImage(
            image_id, image_name, image_file, label_name, label_file, self.names, self.box_format
        )

    def _check_box_format(self, shard: str, samples: list[TarSample], url: str) -> None:
        """Raise UserError if boxes do not fit their images, but would in another format."""
        count = usual = 0
        others: Counter[BoxFormat] = Counter()
        for sample in samples:
            image = self.image(shard, sample)
            if not isinstance(image, JsonImage):
                continue
            try:
                objects, size, *_ = image.parse()
                width, height = size or _image_size(image.image)
                for other in OTHER_FORMATS:
                    found = image.parse(other).objects
                    others[other] += sum(_fits(item.box, width, height) for item in found)
            except ValueError:
                continue  # reported when the image is converted
            count += len(objects)
            usual += sum(_fits(item.box, width, height) for item in objects)
        better = max(OTHER_FORMATS, key=lambda other: others[other])
        if usual < MIN_FITTING * count <= others[better]:
            raise UserError(
                f"--shards: {url}: of the first {count} boxes {count - usual} are empty or outside "
                f"their image, but {others[better]} fit as {better}; give --box-format {better}, "
                "or another format if they are as meant"
            )

    def _fault(self, shard: str, sample: TarSample, kind: str) -> str | None:
        """Return why the labels of a kind cannot be read in a sample; None if they can."""
        if kind == "txt" and not self.names:
            return "its classes are numbers; give their names, from number 0 on, with --classes"
        reader = LabelReader(self.names, self.box_format)
        reader.kind = kind
        image = reader.image(shard, sample)
        record = image.read_record()
        if isinstance(image, JsonImage):
            try:
                image.parse()
            except UnnamedClassError as error:
                raise UserError(
                    f"--shards: {record.annotation_file}: {error}; give the names of the classes, "
                    "from number 0 on, with --classes, or a JSON with categories with --annotations"
                ) from None
            except ValueError as error:
                return str(error)
            return None
        if record.objects or not record.problems:
            return None
        return record.problems[0].reason


def _reason_without_labels(shard: ListedShard, samples: list[TarSample]) -> str:
    """Return why no sample of a shard has labels of a known kind."""
    if not shard.samples:
        problem = f": {shard.problems[0].reason}" if shard.problems else ""
        return f"contains no samples{problem}"
    if any(sample.labels("cls") for sample in samples):
        return (
            ".cls is the class of a whole image, without a box; detection needs .json, .xml (VOC) "
            "or .txt (YOLO)"
        )
    suffixes = list(dict.fromkeys(itertools.chain(*(one.members for one in shard.samples))))
    found = ", ".join(f".{suffix}" for suffix in suffixes[:10])
    if samples:
        return f"no image has labels (.json, .xml or .txt) under the same key; found: {found}"
    return f"no sample has an image; found: {found}"


def _image_size(image: File) -> tuple[int, int]:
    """Return the width and height of an image. Raises ValueError."""
    try:
        with Image.open(io.BytesIO(read_file(image, MAX_IMAGE_BYTES)), formats=FORMATS) as found:
            return found.size
    except OSError as error:
        raise ValueError(str(error)) from None


def _fits(box: Box, width: int, height: int) -> bool:
    """Return whether a box is not empty and inside its image, up to a pixel."""
    x1, y1, x2, y2 = box
    return -1 <= x1 < x2 <= width + 1 and -1 <= y1 < y2 <= height + 1
