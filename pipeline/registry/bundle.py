"""A model version as a folder: weights, description, the code it needs, evaluation, model card.

No pickle: weights are safetensors, the rest is JSON and source. ``model/`` and the decoding of
images travel under a package name made from the content, so versions never meet in one process
and need nothing of this project to be installed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

import model
from pipeline.config import Config
from pipeline.registry.model_card import model_card
from pipeline.tracking import config_yaml

if TYPE_CHECKING:
    import pandas as pd

FORMAT_VERSION = 1
_MODEL_CODE = Path(model.__file__).parent
# These stand alone: they import nothing of this project.
_IMAGE_CODE = tuple(
    Path(__file__).resolve().parents[1] / "data" / "transforms" / name
    for name in ("decode.py", "resize.py")
)
_REQUIREMENTS = (
    "mlflow",
    "torch",
    "numpy",
    "pandas",
    "safetensors",
    "opencv-python-headless",
    "simplejpeg",
    "pillow",
)


@dataclass(frozen=True)
class Content:
    """Everything a model version is made of."""

    name: str
    weights: Mapping[str, Tensor]
    spec: Mapping[str, Any]
    classes: Sequence[str]
    config: Config
    metrics: Mapping[str, float]
    origin: Mapping[str, str]
    """Where it came from: run, revision, data fingerprints."""
    figures: Sequence[Path] = field(default=())

    @property
    def defaults(self) -> dict[str, Any]:
        """Parameters of a prediction, as they are unless a caller says otherwise."""
        return {
            "score_threshold": self.config.registry.score_threshold,
            "nms_iou": self.config.evaluate.nms_iou,
            "max_detections": self.config.evaluate.max_detections,
        }


def write_bundle(content: Content, folder: Path, run_id: str, model_id: str) -> None:
    """Write an MLflow pyfunc model to ``folder``, belonging to a run and a logged model."""
    from mlflow import pyfunc
    from mlflow.models import Model

    with tempfile.TemporaryDirectory() as scratch:
        artifacts, code = _write_parts(content, Path(scratch))
        pyfunc.save_model(
            str(folder),
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={name: str(path) for name, path in artifacts.items()},
            code_paths=[str(code)],
            signature=signature(content.defaults),
            input_example=_example(content.spec["image_size"]),
            pip_requirements=requirements(content.spec["backbone"]),
            mlflow_model=Model(run_id=run_id, model_id=model_id),
        )
    (folder / "README.md").write_text(
        model_card(content.name, content.classes, content.config, content.metrics, content.origin),
        encoding="utf-8",
    )


def requirements(backbone: str) -> list[str]:
    """The few packages a loaded model imports, at the versions that are installed here."""
    names = (*_REQUIREMENTS, "timm") if backbone.startswith("timm:") else _REQUIREMENTS
    # A local part such as +cpu exists on no public index.
    versions = {name: importlib.metadata.version(name).split("+")[0] for name in names}
    return [f"{name}=={version}" for name, version in versions.items()]


def signature(defaults: Mapping[str, Any]) -> Any:
    """An ``image`` column of bytes -> the detections table, with the thresholds as parameters."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

    answer: list[ColSpec | TensorSpec] = [ColSpec(DataType.long, "image")]
    answer += [ColSpec(DataType.double, name) for name in ("x1", "y1", "x2", "y2", "score")]
    answer += [ColSpec(DataType.long, "label"), ColSpec(DataType.string, "class_name")]
    params = [
        ParamSpec("score_threshold", DataType.double, float(defaults["score_threshold"])),
        ParamSpec("nms_iou", DataType.double, float(defaults["nms_iou"])),
        ParamSpec("max_detections", DataType.long, int(defaults["max_detections"])),
    ]
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]),
        outputs=Schema(answer),
        params=ParamSchema(params),
    )


def _example(size: int) -> pd.DataFrame:
    """A grey picture, for MLflow's page of the model and for trying a served one."""
    import pandas as pd

    file = io.BytesIO()
    Image.new("RGB", (size, size), "grey").save(file, "PNG")
    return pd.DataFrame({"image": [file.getvalue()]})


def _write_parts(content: Content, scratch: Path) -> tuple[dict[str, Path], Path]:
    from safetensors.torch import save_file

    weights = scratch / "weights.safetensors"
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in content.weights.items()}
    save_file(tensors, weights)
    package = f"detector_{_content_hash(weights, content.spec, content.classes)}"
    description = scratch / "detector.json"
    description.write_text(json.dumps(_description(content, package), indent=2), encoding="utf-8")
    evaluation = scratch / "evaluation.json"
    evaluation.write_text(json.dumps(dict(content.metrics), indent=2), encoding="utf-8")
    recipe = scratch / "config.yaml"
    recipe.write_text(config_yaml(content.config), encoding="utf-8")
    artifacts = {
        "weights": weights,
        "detector": description,
        "evaluation": evaluation,
        "config": recipe,
    }
    if content.figures:
        artifacts["figures"] = _copy_figures(content.figures, scratch / "figures")
    return artifacts, _write_code(scratch / package)


def _description(content: Content, package: str) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "package": package,
        "spec": dict(content.spec),
        "classes": list(content.classes),
        "fit": content.config.data.fit,
        "defaults": content.defaults,
        "max_candidates": content.config.evaluate.max_candidates,
        "class_agnostic": content.config.evaluate.class_agnostic,
        "origin": dict(content.origin),
    }


def _copy_figures(figures: Sequence[Path], folder: Path) -> Path:
    folder.mkdir()
    for figure in figures:
        shutil.copyfile(figure, folder / figure.name)
    return folder


def _content_hash(weights: Path, spec: Mapping[str, Any], classes: Sequence[str]) -> str:
    digest = hashlib.sha256()
    with open(weights, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    digest.update(json.dumps([dict(spec), list(classes)], sort_keys=True).encode())
    for path in (*sorted(_MODEL_CODE.rglob("*.py")), *_IMAGE_CODE):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _write_code(package: Path) -> Path:
    shutil.copytree(_MODEL_CODE, package / "model", ignore=shutil.ignore_patterns("__pycache__"))
    (package / "__init__.py").write_text('"""A registered detector\'s code."""\n', encoding="utf-8")
    for source in _IMAGE_CODE:
        shutil.copyfile(source, package / source.name)
    return package
