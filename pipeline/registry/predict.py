"""Predictions of a registered model on images: detections as JSONL, and pictures.

A bounded number of pixels is in memory at a time, so there may be any number of images.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import msgspec
import numpy as np
import pandas as pd
from PIL import Image

from pipeline.data.transforms.decode import MAX_PIXELS, decode_image
from pipeline.errors import UserError
from pipeline.progress import Progress, counted
from pipeline.registry.image_files import InputImage, PictureNames, list_images
from pipeline.registry.load import fetch_model, load_detector, read_description
from pipeline.registry.own_code import own_detector
from pipeline.reports import Boxes, draw_detections
from pipeline.storage.durable import open_durably

_IMAGES_PER_BATCH, _PIXELS_PER_BATCH = 16, 50_000_000
Predict = Callable[..., Any]  # images, params -> detections

_CORNERS = ["x1", "y1", "x2", "y2"]
_JPEG_QUALITY = 92
_MAX_SHOWN = 20  # unreadable images that are named on stderr; detections.jsonl has all
_MAX_IMAGE_BYTES = 4 * MAX_PIXELS  # as for conversion


class PredictionSummary(NamedTuple):
    """Counts, the images that cannot be read, and the paths of the results.

    ``other_files`` counts files that are not images.
    """

    images: int
    detections: int
    skipped: list[str]
    other_files: int
    detections_file: str
    pictures: str | None


class Detection(msgspec.Struct):
    """A detected object; ``box`` is x1, y1, x2, y2 in pixels."""

    box: list[float]
    score: float
    label: int
    class_name: str


class ImageDetections(msgspec.Struct, omit_defaults=True):
    """A line of ``detections.jsonl``; width and height in pixels.

    ``picture`` is given if its name differs from ``file``, and ``error`` if the image cannot be
    read.
    """

    file: str
    width: int | None
    height: int | None
    detections: list[Detection]
    picture: str | None = None
    error: str | None = None


class _Image(NamedTuple):
    name: str
    data: bytes
    pixels: np.ndarray


class _Unreadable(NamedTuple):
    name: str
    reason: str


@dataclass
class _Output:
    """Where the lines and pictures of images are written."""

    lines: BinaryIO
    folder: Path | None  # of the pictures; None: without
    names: PictureNames = field(default_factory=PictureNames)
    skipped: list[str] = field(default_factory=list)

    def write(self, line: ImageDetections) -> None:
        """Write a line."""
        self.lines.write(json.dumps(msgspec.to_builtins(line)).encode() + b"\n")

    def skip(self, name: str, reason: str) -> None:
        """Write a line for an image that cannot be read."""
        self.write(ImageDetections(name, None, None, [], error=reason))
        self.skipped.append(name)
        if len(self.skipped) <= _MAX_SHOWN:
            print(f"skipped {name}: {reason}", file=sys.stderr)
        elif len(self.skipped) == _MAX_SHOWN + 1:
            print("skipped more images; detections.jsonl has their reasons", file=sys.stderr)


def predict_folder(
    model_uri: str,
    images: Path,
    out: Path,
    tracking_uri: str | None = None,
    score_threshold: float | None = None,
    pictures: bool = True,
    bundle_code: bool = False,
    calibrated: bool = False,
) -> PredictionSummary:
    """Predict on all images of a folder, archive or list, or on one image.

    An image that cannot be read is a line with the reason; other files are counted. The code of
    this project predicts. With ``bundle_code`` that of a registered version does, with the rights
    of this process.
    Without a ``score_threshold`` the default of the model applies. It is compared with the scores
    that are written, which with ``calibrated`` are probabilities. Raises UserError if there is no
    image, the model is not available, or ``calibrated`` is given and it has no temperature.
    """
    files, others = list_images(images, out)
    if not files:
        raise UserError(f"--images {images}: none of its {counted(others, 'file')} is an image")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}") from None
    target = out / "detections.jsonl"
    folder = out / "pictures" if pictures else None
    with tempfile.TemporaryDirectory() as scratch:
        predict, classes, temperature = _load(model_uri, Path(scratch), tracking_uri, bundle_code)
        params: dict[str, Any] = {}
        if score_threshold is not None:
            params["score_threshold"] = score_threshold
        if calibrated:
            if temperature is None:
                raise UserError(
                    f"--calibrated: {model_uri} has no temperature; train with data.val and "
                    "register the result"
                )
            params["calibrated"] = True
        with open_durably(target) as lines:
            output = _Output(lines, folder)
            progress = Progress("predicting", len(files), "images")
            found = 0
            for batch in _batches(files):
                found += _predict(partial(predict, params=params), classes, batch, output)
                progress.advance(len(batch))
            count = progress.done - len(output.skipped)
    if not count:
        raise UserError(
            f"--images {images}: none of its {counted(len(files), 'image')} can be read; {target} "
            "has the reasons"
        )
    shown = str(folder) if folder else None
    return PredictionSummary(count, found, output.skipped, others, str(target), shown)


def _load(
    model_uri: str, scratch: Path, tracking_uri: str | None, bundle_code: bool
) -> tuple[Predict, list[str], float | None]:
    """Return how to predict, the classes, and the temperature."""
    if not bundle_code:
        loaded = load_detector(model_uri, tracking_uri)
        return partial(own_detector(loaded).predict, None), loaded.classes, loaded.temperature
    folder = fetch_model(model_uri, scratch, tracking_uri)
    description = read_description(folder, model_uri)
    from mlflow import pyfunc

    predict = pyfunc.load_model(str(folder)).predict
    return predict, description.classes, description.temperature


def _batches(files: Iterable[InputImage]) -> Iterator[list[_Image | _Unreadable]]:
    batch: list[_Image | _Unreadable] = []
    pixels = 0
    for file in files:
        item = _read(file)
        batch.append(item)
        if isinstance(item, _Image):
            pixels += item.pixels.shape[0] * item.pixels.shape[1]
        if len(batch) == _IMAGES_PER_BATCH or pixels >= _PIXELS_PER_BATCH:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch


def _read(image: InputImage) -> _Image | _Unreadable:
    if image.file is None:
        return _Unreadable(image.name, image.error)
    try:
        data = image.file.read(_MAX_IMAGE_BYTES)
        return _Image(image.name, data, decode_image(data))
    except (ValueError, OSError) as error:
        return _Unreadable(image.name, getattr(error, "strerror", None) or str(error))


def _predict(
    predict: Predict,
    classes: Sequence[str],
    batch: Sequence[_Image | _Unreadable],
    output: _Output,
) -> int:
    """Write lines and pictures of a batch. Return the number of detections."""
    images = [item.data for item in batch if isinstance(item, _Image)]
    table = pd.DataFrame()
    if images:
        table = cast("pd.DataFrame", predict(pd.DataFrame({"image": images})))
    row = 0
    for item in batch:
        if isinstance(item, _Unreadable):
            output.skip(item.name, item.reason)
            continue
        found = table[table["image"] == row]
        row += 1
        line = _image_detections(item, found)
        if output.folder:
            boxes = found[_CORNERS].to_numpy(), found["label"].to_numpy(), found["score"].to_numpy()
            name = output.names.new(item.name)
            line.picture = name if name != item.name else None
            _save(draw_detections(item.pixels, Boxes(*boxes), classes), output.folder / name)
        output.write(line)
    return len(table)


def _image_detections(image: _Image, found: pd.DataFrame) -> ImageDetections:
    detections = [
        Detection(
            box=[round(float(row[corner]), 2) for corner in _CORNERS],
            score=round(float(row["score"]), 6),
            label=int(row["label"]),
            class_name=row["class_name"],
        )
        for row in found.to_dict("records")
    ]
    height, width = image.pixels.shape[:2]
    return ImageDetections(image.name, width, height, detections)


def _save(picture: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, quality=_JPEG_QUALITY)
