"""A registered model over a folder of images: boxes as JSONL, pictures with the boxes drawn.

Reads, predicts and writes a bounded number of pixels at a time, so the folder may be of any size.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from pipeline.data.transforms.decode import ImageError, decode_image
from pipeline.errors import UserError
from pipeline.progress import Progress
from pipeline.registry.load import fetch
from pipeline.reports import Boxes, draw_detections
from pipeline.storage.durable import open_durably

_IMAGES_PER_BATCH, _PIXELS_PER_BATCH = 16, 50_000_000
_CORNERS = ["x1", "y1", "x2", "y2"]


class Summary(NamedTuple):
    """What was read and where the answers are."""

    images: int
    detections: int
    skipped: list[str]
    detections_file: str
    pictures: str | None


class _Item(NamedTuple):
    name: str
    data: bytes
    pixels: np.ndarray


def predict_folder(
    model_uri: str,
    images: Path,
    out: Path,
    tracking_uri: str | None = None,
    params: Mapping[str, Any] | None = None,
    pictures: bool = True,
) -> Summary:
    """Predict all images below a folder; files that are no images are named and skipped.

    Raises UserError if there is no image or the model cannot be had.
    """
    files = _files(images, out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}") from None
    target = out / "detections.jsonl"
    skipped: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        model, classes = _load(model_uri, Path(scratch), tracking_uri)
        with open_durably(target) as lines:
            progress = Progress("predicting", len(files), "files")
            count = found = 0
            for batch in _batches(files, images, skipped):
                found += _predict(model, classes, batch, params or {}, lines, out, pictures)
                count += len(batch)
                progress.advance(count + len(skipped) - progress.done)
    if not count:
        raise UserError(f"--images {images}: none of its {len(files)} files is an image")
    folder = str(out / "pictures") if pictures else None
    return Summary(count, found, skipped, str(target), folder)


def _files(images: Path, out: Path) -> list[Path]:
    if not images.is_dir():
        raise UserError(f"--images {images} is no folder")
    below_out = out.resolve()
    files = sorted(
        path
        for path in images.rglob("*")
        if path.is_file() and below_out not in path.resolve().parents
    )
    if not files:
        raise UserError(f"--images {images} is empty")
    return files


def _load(model_uri: str, scratch: Path, tracking_uri: str | None) -> tuple[Any, list[str]]:
    folder = fetch(model_uri, scratch, tracking_uri)
    path = folder / "artifacts" / "detector.json"
    if not path.is_file():
        raise UserError(f"{model_uri} is not a detector of this project")
    about = json.loads(path.read_text(encoding="utf-8"))
    from mlflow import pyfunc

    return pyfunc.load_model(str(folder)), about["classes"]


def _batches(files: Sequence[Path], root: Path, skipped: list[str]) -> Iterator[list[_Item]]:
    batch: list[_Item] = []
    pixels = 0
    for path in files:
        name = path.relative_to(root).as_posix()
        try:
            data = path.read_bytes()
            item = _Item(name, data, decode_image(data))
        except (ImageError, OSError) as error:
            print(f"skipped {name}: {error}", file=sys.stderr)
            skipped.append(name)
            continue
        batch.append(item)
        pixels += item.pixels.shape[0] * item.pixels.shape[1]
        if len(batch) == _IMAGES_PER_BATCH or pixels >= _PIXELS_PER_BATCH:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch


def _predict(
    model: Any,
    classes: Sequence[str],
    batch: Sequence[_Item],
    params: Mapping[str, Any],
    lines: BinaryIO,
    out: Path,
    pictures: bool,
) -> int:
    table = model.predict(pd.DataFrame({"image": [item.data for item in batch]}), dict(params))
    for row, item in enumerate(batch):
        found = table[table["image"] == row]
        lines.write(json.dumps(_line(item, found)).encode() + b"\n")
        if pictures:
            boxes = found[_CORNERS].to_numpy(), found["label"].to_numpy(), found["score"].to_numpy()
            _save(
                draw_detections(item.pixels, Boxes(*boxes), classes), out / "pictures" / item.name
            )
    return len(table)


def _line(item: _Item, found: pd.DataFrame) -> dict[str, Any]:
    detections = [
        {
            "box": [round(float(row[corner]), 2) for corner in _CORNERS],
            "score": round(float(row["score"]), 6),
            "label": int(row["label"]),
            "class_name": row["class_name"],
        }
        for row in found.to_dict("records")
    ]
    height, width = item.pixels.shape[:2]
    return {"file": item.name, "width": width, "height": height, "detections": detections}


def _save(picture: np.ndarray, path: Path) -> None:
    if path.suffix.lower() not in (".jpg", ".jpeg", ".png"):
        path = path.with_name(f"{path.name}.jpg")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, quality=92)
