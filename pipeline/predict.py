"""Detect objects in single images with a trained detector.

from pipeline.predict import load

detect = load("models:/shapes@champion")
for found in detect("photo.jpg"):
    print(found.class_name, found.score, found.box)
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import UserError
from pipeline.registry import load_detector
from pipeline.registry.own_code import own_detector
from pipeline.registry.predict import Detection

ImageInput = str | Path | bytes | NDArray[np.uint8]


class Predictor:
    """A detector that is called with an image or several: paths, bytes of files, or arrays.

    Arrays are (H,W,3) uint8, RGB. Boxes are in pixels of the image, turned by its EXIF orientation.
    """

    def __init__(self, uri: str, tracking_uri: str | None = None) -> None:
        loaded = load_detector(uri, tracking_uri)
        self.uri, self.classes = loaded.uri, loaded.classes
        self._detector = own_detector(loaded)

    def __call__(self, image: ImageInput, **settings: float) -> list[Detection]:
        """Return the detections in an image, best first.

        ``settings``: score_threshold, nms_iou, max_detections; by default the model's. Raises
        UserError if the image cannot be read or a setting is out of range.
        """
        return self.detect_all([image], **settings)[0]

    def detect_all(self, images: Sequence[ImageInput], **settings: float) -> list[list[Detection]]:
        """Return the detections in each of several images. Raises as a call does."""
        from mlflow.exceptions import MlflowException

        unknown = settings.keys() - {"score_threshold", "nms_iou", "max_detections"}
        if unknown:
            raise UserError(f"unknown setting {min(unknown)!r}")
        frame = pd.DataFrame({"image": [_file_bytes(image) for image in images]})
        try:
            table: Any = self._detector.predict(None, frame, dict(settings))
        except MlflowException as error:
            raise UserError(str(error)) from None
        found: list[list[Detection]] = [[] for _ in images]
        for row in table.to_dict("records"):
            box = [float(row[corner]) for corner in ("x1", "y1", "x2", "y2")]
            detection = Detection(box, float(row["score"]), int(row["label"]), row["class_name"])
            found[int(row["image"])].append(detection)
        return found


def load(uri: str, tracking_uri: str | None = None) -> Predictor:
    """Return a predictor for a registered version, or the folder of one, of a run or a checkpoint.

    ``tracking_uri`` is by default that of the environment. No code of a bundle is run. Raises
    UserError.
    """
    return Predictor(uri, tracking_uri)


def _file_bytes(image: ImageInput) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UserError(
                f"an array of shape {image.shape} and type {image.dtype} is not an image; "
                "expected (H,W,3) uint8, RGB"
            )
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG", compress_level=1)
        return file.getvalue()
    try:
        return Path(image).read_bytes()
    except OSError as error:
        raise UserError(f"{image}: {error.strerror}") from None
