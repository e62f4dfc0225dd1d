"""The code of a registered model: images in, a table of detections out.

MLflow executes a copy of this file from the model's folder, where neither this project nor its
packages exist: what it needs of them travels in a package whose name is unique to the version, so
that several versions live in one process. Do not import this file; MLflow runs it.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel
from safetensors.torch import load_file

INVALID_PARAMETER_VALUE = 1000  # answered as HTTP 400 by a model server
IMAGES_PER_PASS = 16
COLUMNS = ["image", "x1", "y1", "x2", "y2", "score", "label", "class_name"]


class RegisteredDetector(PythonModel):
    """Detections in pixels of the original images, best first within each image."""

    def load_context(self, context: Any) -> None:
        """Rebuild the detector from its description, and load its weights."""
        text = Path(context.artifacts["detector"]).read_text(encoding="utf-8")
        self.about = json.loads(text)
        package = self.about["package"]
        self.decode = importlib.import_module(f"{package}.decode")
        self.fit = self.about.get("fit", "stretch")
        self.resize = importlib.import_module(f"{package}.resize")
        self.postprocess = importlib.import_module(f"{package}.model.postprocess").postprocess
        detector = importlib.import_module(f"{package}.model").build_detector(**self.about["spec"])
        detector.load_state_dict(load_file(context.artifacts["weights"]))
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.detector = detector.eval().to(self.device)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Table with a column ``image`` (bytes, or base64 text) -> table of detections.

        ``params``: score_threshold, nms_iou, max_detections. An image without detections has no
        row. Raises MlflowException naming the row that is no image.
        """
        settings = _settings(self.about["defaults"], params or {})
        images = list(model_input["image"])
        tables = []
        for start in range(0, len(images), IMAGES_PER_PASS):
            rows = range(start, min(start + IMAGES_PER_PASS, len(images)))
            inputs, sizes = zip(*(self._read(row, images[row]) for row in rows), strict=True)
            tables.append(self._detect(inputs, sizes, settings))
            tables[-1]["image"] += start
        return pd.concat(tables, ignore_index=True) if tables else _table([], [], [], [], [])

    def _read(self, row: int, value: Any) -> tuple[np.ndarray, tuple[int, int]]:
        """The network's input (3,S,S), and the width and height of the image."""
        try:
            image = self.decode.decode_image(_bytes(value))
        except (self.decode.ImageError, ValueError) as error:
            raise _refusal(f"row {row}: not a readable image: {error}") from None
        height, width = image.shape[:2]
        return self.resize.to_input(image, self.detector.image_size, self.fit), (width, height)

    @torch.inference_mode()
    def _detect(
        self,
        inputs: Sequence[np.ndarray],
        sizes: Sequence[tuple[int, int]],
        settings: Mapping[str, Any],
    ) -> pd.DataFrame:
        side = self.detector.image_size
        predictions = self.detector(torch.from_numpy(np.stack(inputs)).to(self.device))
        found = self.postprocess(
            predictions.deltas,
            predictions.logits,
            self.detector.anchors,
            side,
            max_candidates=self.about["max_candidates"],
            class_agnostic=self.about["class_agnostic"],
            **settings,
        )
        boxes, scores, labels = (part.cpu() for part in found)
        row, place = (labels >= 0).nonzero(as_tuple=True)
        # Per image (w, h, w, h): from the network's square back to the image's pixels.
        limits = torch.tensor(sizes, dtype=torch.float32).repeat(1, 2)
        seen = [self.resize.visible_size(*size, self.fit) for size in sizes]
        scale = torch.tensor(seen, dtype=torch.float32).repeat(1, 2) / side
        corners = torch.minimum(boxes[row, place] * scale[row], limits[row])
        names = [self.about["classes"][label] for label in labels[row, place]]
        return _table(row, corners, scores[row, place], labels[row, place], names)


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


def _bytes(value: Any) -> bytes:
    if isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except binascii.Error as error:
            raise ValueError(f"text that is not base64 ({error})") from None
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise ValueError(f"expected bytes or base64 text, got {type(value).__name__}")


def _settings(defaults: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    settings = {**defaults, **{key: params[key] for key in defaults if key in params}}
    for name in ("score_threshold", "nms_iou"):
        if not 0.0 <= settings[name] <= 1.0:
            raise _refusal(f"{name} is {settings[name]}; it must be between 0 and 1")
    if not 1 <= settings["max_detections"] <= 10_000:
        raise _refusal(f"max_detections is {settings['max_detections']}; give 1 to 10000")
    return settings


def _refusal(message: str) -> MlflowException:
    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)


set_model(RegisteredDetector())
