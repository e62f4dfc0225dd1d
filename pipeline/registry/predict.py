"""Predictions of a registered model on a folder of images: detections as JSONL, and pictures.

A bounded number of pixels is in memory at a time, so the folder may be of any size.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import msgspec
import numpy as np
import pandas as pd
from PIL import Image

from pipeline.data.transforms.decode import ImageError, decode_image
from pipeline.errors import UserError
from pipeline.progress import Progress
from pipeline.registry.load import fetch_model, load_detector, read_description
from pipeline.registry.own_code import own_detector
from pipeline.reports import Boxes, draw_detections
from pipeline.storage.durable import open_durably

_IMAGES_PER_BATCH, _PIXELS_PER_BATCH = 16, 50_000_000
Predict = Callable[[pd.DataFrame, Mapping[str, Any]], Any]  # images, params -> detections

_CORNERS = ["x1", "y1", "x2", "y2"]
_JPEG_QUALITY = 92
_MAX_SHOWN = 20  # skipped files that are named on stderr; --json lists all


class PredictionSummary(NamedTuple):
    """Counts, and the paths of the results."""

    images: int
    detections: int
    skipped: list[str]
    detections_file: str
    pictures: str | None


class Detection(msgspec.Struct):
    """A detected object; ``box`` is x1, y1, x2, y2 in pixels."""

    box: list[float]
    score: float
    label: int
    class_name: str


class ImageDetections(msgspec.Struct):
    """A line of ``detections.jsonl``; width and height in pixels."""

    file: str
    width: int
    height: int
    detections: list[Detection]


class _Image(NamedTuple):
    name: str
    data: bytes
    pixels: np.ndarray


def predict_folder(
    model_uri: str,
    images: Path,
    out: Path,
    tracking_uri: str | None = None,
    score_threshold: float | None = None,
    pictures: bool = True,
    bundle_code: bool = False,
) -> PredictionSummary:
    """Predict on all images below a folder. Report and skip files that are not images.

    The code of this project predicts. With ``bundle_code`` that of a registered version does, with
    the rights of this process.
    Without a ``score_threshold`` the default of the model applies. Raises UserError if there is no
    image or the model is not available.
    """
    files = _list_files(images, out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}") from None
    target = out / "detections.jsonl"
    skipped: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        predict, classes = _load(model_uri, Path(scratch), tracking_uri, bundle_code)
        with open_durably(target) as lines:
            progress = Progress("predicting", len(files), "files")
            count = found = 0
            for batch in _batches(files, images, skipped):
                found += _predict(predict, classes, batch, score_threshold, lines, out, pictures)
                count += len(batch)
                progress.advance(count + len(skipped) - progress.done)
    if not count:
        raise UserError(f"--images {images}: none of its {len(files)} files is an image")
    folder = str(out / "pictures") if pictures else None
    return PredictionSummary(count, found, skipped, str(target), folder)


def _list_files(images: Path, out: Path) -> list[Path]:
    if not images.is_dir():
        raise UserError(f"--images {images} is not a directory")
    excluded = out.resolve()
    files = sorted(
        path
        for path in images.rglob("*")
        if path.is_file() and excluded not in path.resolve().parents
    )
    if not files:
        raise UserError(f"--images {images} is empty")
    return files


def _load(
    model_uri: str, scratch: Path, tracking_uri: str | None, bundle_code: bool
) -> tuple[Predict, list[str]]:
    if not bundle_code:
        loaded = load_detector(model_uri, tracking_uri)
        return partial(own_detector(loaded).predict, None), loaded.classes
    folder = fetch_model(model_uri, scratch, tracking_uri)
    classes = read_description(folder, model_uri).classes
    from mlflow import pyfunc

    return pyfunc.load_model(str(folder)).predict, classes


def _batches(files: Sequence[Path], root: Path, skipped: list[str]) -> Iterator[list[_Image]]:
    batch: list[_Image] = []
    pixels = 0
    for path in files:
        name = path.relative_to(root).as_posix()
        try:
            data = path.read_bytes()
            item = _Image(name, data, decode_image(data))
        except (ImageError, OSError) as error:
            skipped.append(name)
            if len(skipped) <= _MAX_SHOWN:
                print(f"skipped {name}: {error}", file=sys.stderr)
            elif len(skipped) == _MAX_SHOWN + 1:
                print("skipped more files, which are not listed", file=sys.stderr)
            continue
        batch.append(item)
        pixels += item.pixels.shape[0] * item.pixels.shape[1]
        if len(batch) == _IMAGES_PER_BATCH or pixels >= _PIXELS_PER_BATCH:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch


def _predict(
    predict: Predict,
    classes: Sequence[str],
    batch: Sequence[_Image],
    score_threshold: float | None,
    lines: BinaryIO,
    out: Path,
    pictures: bool,
) -> int:
    """Write lines and pictures of a batch. Return the number of detections."""
    params = {} if score_threshold is None else {"score_threshold": score_threshold}
    images = pd.DataFrame({"image": [image.data for image in batch]})
    table = cast("pd.DataFrame", predict(images, params))
    for row, image in enumerate(batch):
        found = table[table["image"] == row]
        line = json.dumps(msgspec.to_builtins(_image_detections(image, found)))
        lines.write(line.encode() + b"\n")
        if pictures:
            boxes = found[_CORNERS].to_numpy(), found["label"].to_numpy(), found["score"].to_numpy()
            _save(
                draw_detections(image.pixels, Boxes(*boxes), classes),
                out / "pictures" / image.name,
            )
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
    if path.suffix.lower() not in (".jpg", ".jpeg", ".png"):
        path = path.with_name(f"{path.name}.jpg")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, quality=_JPEG_QUALITY)
