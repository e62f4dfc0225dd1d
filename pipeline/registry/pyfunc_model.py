"""The pyfunc model of a registered version: images in, a table of detections out.

MLflow executes a copy of this file from the model's folder, where this project is not installed.
The code it needs is in the bundle, in a package whose name is unique to the version, so several
versions can be loaded in one process. This project itself hands in its own code instead, and runs
nothing of a bundle.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel
from safetensors.torch import load_file

INVALID_PARAMETER_VALUE = 1000  # a model server responds with HTTP 400
MAX_DETECTIONS = 10_000
IMAGES_PER_PASS = 16
COLUMNS = ["image", "x1", "y1", "x2", "y2", "score", "label", "class_name"]


class Description(NamedTuple):
    """The part of the bundle's ``detector.json`` that a prediction needs."""

    package: str
    spec: dict[str, Any]
    classes: list[str]
    fit: str
    defaults: dict[str, float]
    score_thresholds: dict[str, float]
    max_candidates: int
    class_agnostic: bool
    temperature: float | None


class Code(NamedTuple):
    """The modules and functions that a prediction needs."""

    decode: Any
    resize: Any
    postprocess: Callable[..., Any]
    build_detector: Callable[..., Any]


class UnreadableImage(MlflowException):
    """A value that is not an image: its row, and the reason."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(
            f"row {row}: not a readable image: {reason}", error_code=INVALID_PARAMETER_VALUE
        )
        self.row, self.reason = row, reason


class RegisteredDetector(PythonModel):
    """Returns detections in pixels of the original images, best first within each image."""

    def load_context(self, context: Any) -> None:
        """Load description, code and weights of a bundle."""
        description = _read_description(Path(context.artifacts["detector"]))
        package = description.package
        code = Code(
            importlib.import_module(f"{package}.decode"),
            importlib.import_module(f"{package}.resize"),
            importlib.import_module(f"{package}.model.postprocess").postprocess,
            importlib.import_module(f"{package}.model").build_detector,
        )
        self.load(description, code, load_file(context.artifacts["weights"]))

    def load(self, description: Description, code: Code, state: Mapping[str, Any]) -> None:
        """Build the detector from its description and load its weights."""
        self.description = description
        self.decode, self.resize, self.postprocess = code.decode, code.resize, code.postprocess
        detector = code.build_detector(**description.spec)
        detector.load_state_dict(state)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.detector = detector.eval().to(self.device)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Return the detections in the images of a column ``image``.

        An image is the bytes of a file, these in base64 as text, a ``pathlib.Path``, or pixels: an
        array (H,W,3) uint8, RGB, or nested lists of them. Text is never a path, so that a request
        to a server cannot name its files. ``params``: score_threshold, nms_iou, max_detections,
        calibrated (return scores that are probabilities; the threshold applies to them). Without
        score_threshold, a class has the threshold that the version has for it, of uncalibrated
        scores, else the default. An image without detections has no row. Raises MlflowException,
        for an image with its row.
        """
        params = params or {}
        settings = _settings(self.description.defaults, params)
        temperature = self._temperature(params)
        of_classes = self._thresholds(params, settings["score_threshold"])
        if of_classes is not None:
            settings["score_threshold"] = float(of_classes.min())
        elif temperature and 0 < settings["score_threshold"] < 1:  # of scores before calibration
            threshold = torch.tensor(settings["score_threshold"], dtype=torch.float64)
            settings["score_threshold"] = float(_calibrate(threshold, 1 / temperature))
        images = _images(model_input)
        tables = []
        for start in range(0, len(images), IMAGES_PER_PASS):
            rows = range(start, min(start + IMAGES_PER_PASS, len(images)))
            inputs, sizes = zip(*(self._read(row, images[row]) for row in rows), strict=True)
            tables.append(self._detect(inputs, sizes, settings, of_classes))
            tables[-1]["image"] += start
        if not tables:
            return _table([], [], [], [], [])
        table = pd.concat(tables, ignore_index=True)
        if temperature:
            scores = torch.tensor(table["score"].to_numpy())
            table["score"] = _calibrate(scores, temperature).numpy()
        return table

    def _thresholds(self, params: Mapping[str, Any], default: float) -> torch.Tensor | None:
        """Return the score thresholds (C,) of the classes; None if all have the same."""
        given = self.description.score_thresholds
        if not given or params.get("score_threshold") is not None:
            return None
        return torch.tensor([given.get(name, default) for name in self.description.classes])

    def _temperature(self, params: Mapping[str, Any]) -> float | None:
        """Return the temperature of the scores if they shall be calibrated, else None."""
        if not params.get("calibrated", False):
            return None
        if self.description.temperature is None:
            raise _invalid(
                "calibrated: this model has no temperature; one is fitted by a training with "
                "data.val"
            )
        return self.description.temperature

    def _read(self, row: int, value: Any) -> tuple[np.ndarray, tuple[int, int]]:
        """Return the network's input (3,S,S), and the width and height of the image."""
        try:
            image = self._pixels(value)
        except ValueError as error:  # an ImageError is one, too
            raise UnreadableImage(row, str(error)) from None
        height, width = image.shape[:2]
        side, fit = self.detector.image_size, self.description.fit
        return self.resize.to_input(image, side, fit), (width, height)

    def _pixels(self, value: Any) -> np.ndarray:
        """Return the pixels (H,W,3) of any form of an image. Raises ValueError."""
        if isinstance(value, str):
            value = from_base64(value)
        elif isinstance(value, os.PathLike):
            try:
                value = Path(value).read_bytes()
            except OSError as error:
                raise ValueError(f"{value}: {error.strerror}") from None
        if isinstance(value, bytes | bytearray | memoryview):
            pixels: np.ndarray = self.decode.decode_image(bytes(value))
            return pixels
        pixels = _from_array(value)
        if pixels.shape[0] * pixels.shape[1] > self.decode.MAX_PIXELS:
            raise ValueError(
                f"{pixels.shape[1]}x{pixels.shape[0]} pixels exceed the limit of "
                f"{self.decode.MAX_PIXELS}"
            )
        return pixels

    @torch.inference_mode()
    def _detect(
        self,
        inputs: Sequence[np.ndarray],
        sizes: Sequence[tuple[int, int]],
        settings: Mapping[str, Any],
        thresholds: torch.Tensor | None,
    ) -> pd.DataFrame:
        side = self.detector.image_size
        predictions = self.detector(torch.from_numpy(np.stack(inputs)).to(self.device))
        found = self.postprocess(
            predictions.deltas,
            predictions.logits,
            self.detector.anchors,
            side,
            max_candidates=self.description.max_candidates,
            class_agnostic=self.description.class_agnostic,
            **settings,
        )
        boxes, scores, labels = (part.cpu() for part in found)
        kept = labels >= 0
        if thresholds is not None:  # after NMS, as on the set on which they were found
            kept &= scores >= thresholds[labels.clamp(min=0)]
        row, column = kept.nonzero(as_tuple=True)
        # Per image (w, h, w, h): scale from the network's square input to the image's pixels.
        limits = torch.tensor(sizes, dtype=torch.float32).repeat(1, 2)
        visible = [self.resize.visible_size(*size, self.description.fit) for size in sizes]
        scale = torch.tensor(visible, dtype=torch.float32).repeat(1, 2) / side
        corners = torch.minimum(boxes[row, column] * scale[row], limits[row])
        names = [self.description.classes[label] for label in labels[row, column]]
        return _table(row, corners, scores[row, column], labels[row, column], names)


def _read_description(path: Path) -> Description:
    content = json.loads(path.read_text(encoding="utf-8"))
    return Description(**{name: content[name] for name in Description._fields})


def _table(row: Any, boxes: Any, scores: Any, labels: Any, names: list[str]) -> pd.DataFrame:
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    columns = [
        np.asarray(row, dtype=np.int64),
        *corners.T,
        np.asarray(scores, dtype=np.float64),
        np.asarray(labels, dtype=np.int64),
        np.asarray(names, dtype=object),
    ]
    return pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)))


def _images(table: pd.DataFrame) -> list[Any]:
    values = list(table["image"])
    # MLflow puts a list of texts into one row.
    if len(values) == 1 and isinstance(values[0], list):
        texts: list[Any] = values[0]
        if all(isinstance(text, str) for text in texts):
            return texts
    return values


def from_base64(text: str) -> bytes:
    """Return the bytes of a text in base64, which may have lines. Raises ValueError."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError as error:
        raise ValueError(
            f"text that is not base64 ({error}); to read a file, pass its bytes or a pathlib.Path"
        ) from None


def _from_array(value: Any) -> np.ndarray:
    """Return the pixels (H,W,3) of an array, or of nested lists of whole numbers 0 to 255."""
    if isinstance(value, list | tuple):
        try:
            array = np.array(value)
        except ValueError:
            raise ValueError("a list whose parts have different lengths") from None
        if array.dtype.kind in "iu" and array.size and array.min() >= 0 and array.max() <= 255:
            array = array.astype(np.uint8)
    elif isinstance(value, np.ndarray):
        array = value
    else:
        raise ValueError(
            f"expected bytes, base64 text, a path or an array, got {type(value).__name__}"
        )
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise ValueError(
            f"an array of shape {array.shape} and type {array.dtype} is not an image; expected "
            "(H,W,3) uint8, RGB"
        )
    return np.ascontiguousarray(array)


def _calibrate(scores: torch.Tensor, temperature: float) -> torch.Tensor:
    """Divide the logits of scores by a temperature, in float64."""
    return scores.double().clamp(1e-7, 1 - 1e-7).logit().div(temperature).sigmoid()


def _settings(defaults: Mapping[str, float], params: Mapping[str, Any]) -> dict[str, Any]:
    given = {key: params[key] for key in defaults if params.get(key) is not None}
    settings = {**defaults, **given}
    for name in ("score_threshold", "nms_iou"):
        if not 0.0 <= settings[name] <= 1.0:
            raise _invalid(f"{name} is {settings[name]}; it must be between 0 and 1")
    if not 1 <= settings["max_detections"] <= MAX_DETECTIONS:
        raise _invalid(
            f"max_detections is {settings['max_detections']}; "
            f"it must be between 1 and {MAX_DETECTIONS}"
        )
    return settings


def _invalid(message: str) -> MlflowException:
    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)


if __name__ != "pipeline.registry.pyfunc_model":  # MLflow executes it under another name
    set_model(RegisteredDetector())
