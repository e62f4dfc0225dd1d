"""Detect objects in single images with a trained detector.

from pipeline.predict import load

detect = load("models:/shapes@champion")
for found in detect("photo.jpg"):
    print(found.class_name, found.score, found.box)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.registry import load_detector
from pipeline.registry.own_code import own_detector
from pipeline.registry.predict import Detection
from pipeline.registry.pyfunc_model import UnreadableImage, from_base64

ImageInput = str | os.PathLike[str] | bytes | NDArray[np.uint8]
_SHOWN = 80  # characters of a text in an error


class Predictor:
    """A detector that is called with an image or several: paths, bytes of files, or arrays.

    Arrays are (H,W,3) uint8, RGB. Text is the path of a file, or the bytes of one in base64. So do
    not pass on text from a request: it could name any file that this process can read. Boxes are in
    pixels of the image, turned by its EXIF orientation.
    """

    def __init__(self, uri: str, tracking_uri: str | None = None) -> None:
        loaded = load_detector(uri, tracking_uri)
        self.uri, self.classes = loaded.uri, loaded.classes
        self._detector = own_detector(loaded)

    def __call__(
        self, image: ImageInput, *, calibrated: bool = False, **settings: float
    ) -> list[Detection]:
        """Return the detections in an image, best first.

        ``settings``: score_threshold, nms_iou, max_detections; by default the model's.
        ``calibrated`` scores are probabilities of a correct detection at IoU 0.5, and the threshold
        applies to them. Raises UserError if the image cannot be read, a setting is out of range, or
        the model was not calibrated.
        """
        return self.detect_all([image], calibrated=calibrated, **settings)[0]

    def detect_all(
        self, images: Sequence[ImageInput], *, calibrated: bool = False, **settings: float
    ) -> list[list[Detection]]:
        """Return the detections in each of several images. Raises as a call does."""
        from mlflow.exceptions import MlflowException

        unknown = settings.keys() - {"score_threshold", "nms_iou", "max_detections"}
        if unknown:
            raise UserError(f"unknown setting {min(unknown)!r}")
        column = pd.Series([_file_or_image(image) for image in images], dtype=object)
        params = {**settings, "calibrated": calibrated}
        try:
            table: Any = self._detector.predict(None, pd.DataFrame({"image": column}), params)
        except UnreadableImage as error:
            raise UserError(_unreadable(images[error.row], error)) from None
        except MlflowException as error:
            raise UserError(error.message) from None
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


def _file_or_image(image: ImageInput) -> Any:
    """Return text that can only be a path, or is the path of a file, as such."""
    if isinstance(image, str) and (os.path.exists(image) or not _is_base64(image)):
        return Path(image)
    return image


def _is_base64(text: str) -> bool:
    try:
        from_base64(text)
    except ValueError:
        return False
    return True


def _unreadable(image: ImageInput, error: UnreadableImage) -> str:
    if isinstance(_file_or_image(image), str):
        return f"{str(image)[:_SHOWN]!r} is neither a file nor an image in base64"
    where = os.fspath(image) if isinstance(image, str | os.PathLike) else f"image {error.row}"
    return error.reason if error.reason.startswith(where) else f"{where}: {error.reason}"
