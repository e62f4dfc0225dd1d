"""One typed tree of settings, the same for jobs, sweeps and tests.

Built from a recipe (YAML), then the environment (``MG_TRAIN__EPOCHS=3``), then the command line
(``--train.epochs 3``); each later source wins. Every field says its unit or meaning, unknown keys
are errors, and everything that can be checked without touching the data is checked here.
"""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    EnvSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from model import NECKS
from model.assign import ASSIGNERS
from model.backbones import build_backbone, check_backbone
from model.losses import CLASSIFICATION_LOSSES, LOCALIZATION_LOSSES, OVERLAP_LOSSES
from pipeline.errors import UserError

Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """Base of all sections: no unknown keys, no change after construction."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _one_of(value: str, known: Iterable[str]) -> str:
    if value not in known:
        raise ValueError(f"{value!r} does not exist; choose from: {', '.join(sorted(known))}")
    return value


class DataConfig(Section):
    """Shard sets, how samples are read and how they are augmented."""

    train: str | None = Field(None, description="folder of the shard set to train on")
    val: str | None = Field(
        None,
        description="shard set that selects the best checkpoint; none: the last one is kept",
    )
    test: str | None = Field(None, description="shard set scored once, at the end")
    parts: int = Field(
        64,
        ge=1,
        le=65536,
        description="parts P of the global order; at least the world size",
    )
    window: int = Field(
        4,
        ge=1,
        le=1024,
        description="shards shuffled together in sets over 65,536 samples",
    )
    loader_workers: int = Field(
        1,
        ge=0,
        le=64,
        description="loader processes per rank; 0 decodes in the training process",
    )
    prefetch: int = Field(4, ge=1, le=64, description="batches each loader process keeps ready")
    flip: Probability = Field(0.5, description="probability of a horizontal flip")
    flip_vertical: Probability = Field(
        0.0, description="probability of a vertical flip, for images without an up"
    )
    crop: Probability = Field(0.0, description="probability of an IoU-constrained random crop")
    zoom_out: Probability = Field(0.0, description="probability of placing the image on a canvas")
    zoom_out_max: float = Field(3.0, ge=1.0, le=8.0, description="largest canvas, in image sides")
    photometric: Probability = Field(0.0, description="probability of a colour change")
    max_bad_fraction: Probability = Field(
        0.01,
        description="share of unreadable samples above which training stops (and over 10)",
    )


class ModelConfig(Section):
    """The detector: backbone x neck x heads at one input size."""

    backbone: str = Field(
        "slim",
        description="feature extractor: slim, vgg16, resnet18, resnet34, resnet50, or timm:NAME "
        "where timm is installed",
    )
    neck: str = Field("retinanet", description="feature pyramid: fssd, retinanet, rfb or pafpn")
    image_size: int = Field(
        320,
        ge=64,
        le=4096,
        description="side of the square input, pixels; divisible by 64",
    )
    init: str | None = Field(
        None,
        description="weights to start from: a .pth or .safetensors file or http(s) URL, "
        "models:/NAME@ALIAS, or the folder of a run or checkpoint; none: random ones",
    )
    init_sha256: str | None = Field(
        None,
        pattern="^[0-9a-fA-F]{64}$",
        description="sha256 of that file, 64 hexadecimal digits; a URL needs it",
    )
    freeze_stages: int = Field(
        0, ge=0, description="first stages of the backbone that do not learn; 1 is the stem"
    )
    freeze_norm: bool = Field(
        False,
        description="keep statistics, scale and shift of the backbone's batch norms as they are",
    )

    def network(self) -> dict[str, Any]:
        """What `build_detector` takes, besides the number of classes."""
        return {"backbone": self.backbone, "neck": self.neck, "image_size": self.image_size}

    @field_validator("backbone")
    @classmethod
    def _known_backbone(cls, value: str) -> str:
        check_backbone(value)
        return value

    @field_validator("neck")
    @classmethod
    def _known_neck(cls, value: str) -> str:
        return _one_of(value, NECKS)

    @field_validator("image_size")
    @classmethod
    def _divisible(cls, value: int) -> int:
        if value % 64:
            low = value // 64 * 64
            raise ValueError(
                f"{value} is not divisible by 64; the nearest are {low} and {low + 64}"
            )
        return value

    @model_validator(mode="after")
    def _hash_of_url(self) -> ModelConfig:
        if (self.init or "").startswith(("http://", "https://")) and not self.init_sha256:
            raise ValueError("init is a URL: give init_sha256, the sha256 of the file it names")
        return self

    @model_validator(mode="after")
    def _stages_exist(self) -> ModelConfig:
        if self.freeze_stages:
            with torch.device("meta"):  # shapes without values: takes no time
                stages = len(build_backbone(self.backbone).stage_layers())
            if self.freeze_stages > stages:
                raise ValueError(
                    f"freeze_stages is {self.freeze_stages}; {self.backbone} has {stages} stages"
                )
        return self


class AssignConfig(Section):
    """Which anchors learn what. Flat over all assigners: fields the chosen one lacks are unused."""

    name: str = Field("mutual_guidance", description="assigner")
    sigma: float = Field(
        2.0,
        gt=1.0,
        le=100.0,
        description="mutual_guidance(_soft): how little scores amplify overlap",
    )
    localize_to_classify: bool = Field(
        True,
        description="mutual_guidance(_soft): regressed boxes choose what learns to classify; "
        "false: static anchors do",
    )
    classify_to_localize: bool = Field(
        True,
        description="mutual_guidance(_soft): class scores choose what learns to regress; "
        "false: static anchors do",
    )
    pos_threshold: float = Field(
        0.5,
        gt=0.0,
        lt=1.0,
        description="anchor IoU from which an anchor counts as positive",
    )
    ignore_threshold: float = Field(
        0.4,
        gt=0.0,
        lt=1.0,
        description="anchor IoU from which an anchor counts as ignored",
    )
    topk: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="anchors per object that count towards its number of positives "
        "(mutual_guidance_soft, sim_ota) or become positive (task_aligned); unset: 15, 10, 13",
    )
    candidates: int = Field(
        9, ge=1, le=1000, description="atss: nearest cells per level and object"
    )
    radius: float = Field(
        2.5, gt=0.0, le=100.0, description="sim_ota: half side of the centre region, in strides"
    )
    iou_weight: float = Field(
        3.0, gt=0.0, le=1000.0, description="sim_ota: factor of -log(IoU) beside the class cost"
    )
    alpha: float = Field(1.0, gt=0.0, le=100.0, description="task_aligned: exponent of the score")
    beta: float = Field(6.0, gt=0.0, le=100.0, description="task_aligned: exponent of the IoU")

    @field_validator("name")
    @classmethod
    def _known_assigner(cls, value: str) -> str:
        return _one_of(value, ASSIGNERS)

    @model_validator(mode="after")
    def _ordered(self) -> AssignConfig:
        if self.ignore_threshold > self.pos_threshold:
            raise ValueError(
                f"ignore_threshold {self.ignore_threshold} is above pos_threshold "
                f"{self.pos_threshold}; it must not be"
            )
        return self


class LossConfig(Section):
    """Losses and their weights. Flat over all losses."""

    classification: str = Field("focal", description="loss of the class scores")
    alpha: Probability | None = Field(
        None,
        description="focal: weight of positives; quality_focal: weight of the others; "
        "unset: 0.25, 0.75",
    )
    gamma: float | None = Field(
        None,
        ge=0.0,
        le=10.0,
        description="exponent that mutes easy scores; unset: 1 (focal), 2 (quality_focal)",
    )
    poly: float = Field(1.0, ge=0.0, description="quality_focal: factor of the term (1 - p_t)^3")
    classification_weight: float = Field(1.0, ge=0.0, description="factor of the class loss")
    localization: str = Field("balanced_l1", description="loss of the offsets")
    localization_weight: float = Field(1.0, ge=0.0, description="factor of the offset loss")
    overlap: str = Field("none", description="further loss of the decoded boxes")
    overlap_weight: float = Field(2.0, ge=0.0, description="factor of the overlap loss")

    @field_validator("classification")
    @classmethod
    def _known_classification(cls, value: str) -> str:
        return _one_of(value, CLASSIFICATION_LOSSES)

    @field_validator("localization")
    @classmethod
    def _known_localization(cls, value: str) -> str:
        return _one_of(value, LOCALIZATION_LOSSES)

    @field_validator("overlap")
    @classmethod
    def _known_overlap(cls, value: str) -> str:
        return _one_of(value, OVERLAP_LOSSES)


class TrainConfig(Section):
    """Length, batch, optimizer and numerics of one training."""

    epochs: float = Field(20.0, gt=0.0, description="passes over the training set")
    batch_size: int = Field(8, ge=1, description="global batch G, images over all workers")
    micro_batch: int = Field(32, ge=1, description="most images per forward pass and worker")
    lr: float = Field(0.05, gt=0.0, description="peak learning rate of SGD, for the global batch")
    momentum: float = Field(0.9, ge=0.0, lt=1.0, description="SGD momentum")
    weight_decay: float = Field(5e-4, ge=0.0, description="L2 decay; none on norms and biases")
    warmup_steps: int = Field(100, ge=0, description="steps of linear warm-up before the cosine")
    final_lr: Probability = Field(0.01, description="last learning rate, as a share of lr")
    clip_norm: float = Field(10.0, gt=0.0, description="largest gradient norm")
    ema_decay: float = Field(
        0.998,
        ge=0.0,
        lt=1.0,
        description="decay of the averaged weights, per step; 0: no average",
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="fixes weights, order and augmentation")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="bf16 autocast or full precision; auto: bf16 on GPU"
    )
    channels_last: bool = Field(True, description="memory layout of images and weights")
    checkpoint_every: float = Field(1.0, gt=0.0, description="epochs between checkpoints")
    keep_checkpoints: int = Field(
        2,
        ge=1,
        description="best checkpoints kept, or last ones without data.val; the latest stays too",
    )
    log_every: int = Field(10, ge=1, description="steps between logged loss values")


class EvaluateConfig(Section):
    """Post-processing and scoring."""

    every: float = Field(1.0, gt=0.0, description="epochs between evaluations on data.val")
    batch_size: int = Field(16, ge=1, description="images per forward pass and worker")
    score_threshold: Probability = Field(0.01, description="lowest score of a scored detection")
    nms_iou: Probability = Field(0.5, description="overlap above which the weaker box is dropped")
    max_candidates: int = Field(1000, ge=1, description="boxes per image that enter NMS")
    max_detections: int = Field(100, ge=1, description="boxes per image that leave NMS")
    pictures: int = Field(8, ge=0, description="images drawn with truth beside detections")


class TrackingConfig(Section):
    """The MLflow run."""

    uri: str | None = Field(
        None,
        description="MLflow tracking URI; unset: $MLFLOW_TRACKING_URI, else sqlite in ./mlflow",
    )
    experiment: str = Field("detection", min_length=1, description="MLflow experiment")


class RegistryConfig(Section):
    """The model registry."""

    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]*$",
        description="registered model to add a version to, of letters, digits, '.', '_', '-'; "
        "none: do not",
    )
    score_threshold: Probability = Field(
        0.3, description="default lowest score of the registered model's answers"
    )


class RayConfig(Section):
    """Workers and where their files go."""

    enabled: bool = Field(
        True,
        description="train in Ray workers; false: alone, in this process",
    )
    address: str | None = Field(
        None,
        description="cluster to join; unset: $RAY_ADDRESS, else a local one is started",
    )
    workers: int = Field(1, ge=1, description="training workers (ranks)")
    cpus_per_worker: float = Field(1.0, gt=0.0, description="CPUs reserved for each worker")
    gpu: bool = Field(False, description="give each worker one GPU")
    threads_per_worker: int = Field(
        0, ge=0, description="compute threads of a worker; 0: its CPUs, at least one"
    )
    storage: str | None = Field(
        None,
        description="absolute folder or URI for checkpoints, seen by all nodes; unset: ./runs",
    )
    max_failures: int = Field(3, ge=0, description="restarts after a worker fails")

    @field_validator("storage")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        if value is not None and "://" not in value and not Path(value).is_absolute():
            raise ValueError(f"{value!r} is relative; give an absolute folder or a URI")
        return value


class SweepConfig(Section):
    """A search over any fields of the tree."""

    trials: int = Field(8, ge=1, description="trainings to run")
    concurrency: int = Field(
        0, ge=0, description="trials at a time; 0: as many as the cluster holds"
    )
    metric: str = Field("val/ap", description="metric to maximise, as logged per epoch")
    grace_epochs: int = Field(1, ge=1, description="ASHA: epochs before a trial may be stopped")
    reduction: int = Field(2, ge=2, description="ASHA: one in this many trials goes on")
    seed: int = Field(0, ge=0, description="seed of the search")
    space: dict[str, dict[str, Any]] = Field(
        {},
        description="field -> {uniform|loguniform: [low, high]} | {randint: [low, high]} | "
        "{choice: [values]}",
    )


class Config(Section):
    """Everything one training needs."""

    model_config = ConfigDict(protected_namespaces=())

    data: DataConfig = Field(default_factory=DataConfig, description=DataConfig.__doc__)
    model: ModelConfig = Field(default_factory=ModelConfig, description=ModelConfig.__doc__)
    assign: AssignConfig = Field(default_factory=AssignConfig, description=AssignConfig.__doc__)
    loss: LossConfig = Field(default_factory=LossConfig, description=LossConfig.__doc__)
    train: TrainConfig = Field(default_factory=TrainConfig, description=TrainConfig.__doc__)
    evaluate: EvaluateConfig = Field(
        default_factory=EvaluateConfig, description=EvaluateConfig.__doc__
    )
    sweep: SweepConfig = Field(default_factory=SweepConfig, description=SweepConfig.__doc__)
    tracking: TrackingConfig = Field(
        default_factory=TrackingConfig, description=TrackingConfig.__doc__
    )
    registry: RegistryConfig = Field(
        default_factory=RegistryConfig, description=RegistryConfig.__doc__
    )
    ray: RayConfig = Field(default_factory=RayConfig, description=RayConfig.__doc__)

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Config:
        """Validate a nested dict; raises UserError with one line per mistake."""
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise UserError(explain(error)) from None

    def recorded(self) -> dict[str, Any]:
        """The tree for files beside checkpoints, without the tracking URI, which may hold a
        password and is no property of the training."""
        return self.model_dump(mode="json", exclude={"tracking": {"uri"}})

    def replace(self, overrides: Mapping[str, Any]) -> Config:
        """A validated copy with dotted fields changed, such as ``{"assign.sigma": 3.0}``."""
        tree = self.model_dump()
        for path, value in overrides.items():
            set_dotted(tree, path, value)
        return Config.from_dict(tree)


class _Settings(BaseSettings, Config):
    """The same tree as a source of environment and command-line values; never built itself."""

    model_config = SettingsConfigDict(
        extra="forbid",
        env_prefix="MG_",
        env_nested_delimiter="__",
        env_parse_none_str="null",
        cli_parse_none_str="null",
        cli_avoid_json=True,
        protected_namespaces=(),
    )


def load_config(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> tuple[Config, argparse.Namespace]:
    """Parse a job's command line: its own options and one option per config field.

    The parser gets ``--config`` and every ``--section.field``. Returns the validated config and
    the parsed job options. Raises UserError on a wrong value or unknown key, in whichever source.
    """
    parser.add_argument("--config", type=Path, metavar="FILE", help="recipe (YAML) to start from")
    cli = CliSettingsSource[argparse.ArgumentParser](
        _Settings, root_parser=parser, cli_parse_none_str="null", cli_avoid_json=True
    )
    parser.usage = "%(prog)s [--config FILE] [options] [--SECTION.FIELD VALUE ...]"
    options = parser.parse_args(argv)
    given = {key: value for key, value in vars(options).items() if "." in key}
    command_line = cli(parsed_args=given)()
    tree: dict[str, Any] = read_recipe(options.config) if options.config else {}
    for source in (_environment(), command_line):
        tree = _merged(tree, source)
    return Config.from_dict(tree), options


def _merged(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    tree = dict(base)
    for key, value in top.items():
        both = isinstance(value, Mapping) and isinstance(tree.get(key), Mapping)
        tree[key] = _merged(tree[key], value) if both else value
    return tree


def _environment() -> dict[str, Any]:
    for name in os.environ:
        section = name.removeprefix("MG_").split("__")[0].lower()
        if name.startswith("MG_") and section not in Config.model_fields:
            raise UserError(
                f"environment variable {name}: no section {section!r}; "
                f"known: {', '.join(Config.model_fields)}"
            )
    try:
        return EnvSettingsSource(_Settings, env_parse_none_str="null")()
    except SettingsError as error:
        raise UserError(f"environment: {error}") from None


def read_recipe(path: Path) -> dict[str, Any]:
    """A recipe's nested dict, unvalidated. Raises UserError if it is no YAML mapping."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = " ".join(str(error).split())
        raise UserError(f"--config {path}: not valid YAML: {where}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"--config {path}: expected sections such as 'train:', got {tree!r}")
    return tree


def set_dotted(tree: dict[str, Any], path: str, value: Any) -> None:
    """Set ``tree["a"]["b"]`` for the path ``a.b``, making sections on the way."""
    *sections, leaf = path.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[leaf] = value


def explain(error: ValidationError) -> str:
    """One line per mistake: the field, what was given, what was expected."""
    return "\n".join(_explain_one(item) for item in error.errors())


def _explain_one(item: Any) -> str:
    # Unions add the tried type to the location; the field itself is enough for a reader.
    path, kind = [str(part) for part in item["loc"]], item["type"]
    known = _fields(path[:-1])
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        return f"{'.'.join(path)}: unknown key; {hint}"
    if kind == "value_error":
        return f"{'.'.join(path)}: {item['ctx']['error']}"
    field = _field(path)
    meaning = f" ({field.description})" if field is not None and field.description else ""
    return f"{'.'.join(path)}: got {item['input']!r}; {item['msg'].lower()}{meaning}"


def _field(path: Sequence[str]) -> FieldInfo | None:
    model: Any = Config
    field = None
    for part in path:
        fields = getattr(model, "model_fields", {})
        if part not in fields:
            break
        field = fields[part]
        model = field.annotation
    return field


def _fields(section: Sequence[str]) -> list[str]:
    if not section:
        return list(Config.model_fields)
    field = _field(section)
    return list(getattr(field.annotation, "model_fields", {})) if field else []
