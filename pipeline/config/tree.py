"""The whole configuration, and its validation errors as readable lines."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from pipeline.config.base import Section
from pipeline.config.data import DataConfig
from pipeline.config.detector import AssignConfig, LossConfig, ModelConfig
from pipeline.config.ray import RayConfig
from pipeline.config.services import PromoteConfig, RegistryConfig, SweepConfig, TrackingConfig
from pipeline.config.training import EvaluateConfig, TrainConfig
from pipeline.errors import UserError

MAX_SHOWN_VALUE = 200  # characters of a wrong value in an error message


class Config(Section):
    """All settings of one training."""

    model_config = ConfigDict(protected_namespaces=())

    data: DataConfig = Field(default_factory=DataConfig, description=DataConfig.__doc__)
    model: ModelConfig = Field(default_factory=ModelConfig, description=ModelConfig.__doc__)
    assign: AssignConfig = Field(default_factory=AssignConfig, description=AssignConfig.__doc__)
    loss: LossConfig = Field(default_factory=LossConfig, description=LossConfig.__doc__)
    train: TrainConfig = Field(default_factory=TrainConfig, description=TrainConfig.__doc__)
    evaluate: EvaluateConfig = Field(
        default_factory=EvaluateConfig, description=EvaluateConfig.__doc__
    )
    promote: PromoteConfig = Field(default_factory=PromoteConfig, description=PromoteConfig.__doc__)
    sweep: SweepConfig = Field(default_factory=SweepConfig, description=SweepConfig.__doc__)
    tracking: TrackingConfig = Field(
        default_factory=TrackingConfig, description=TrackingConfig.__doc__
    )
    registry: RegistryConfig = Field(
        default_factory=RegistryConfig, description=RegistryConfig.__doc__
    )
    ray: RayConfig = Field(default_factory=RayConfig, description=RayConfig.__doc__)

    @model_validator(mode="after")
    def _sections_agree(self) -> Config:
        if self.train.sync_batch_norm and not self.ray.gpu:
            raise ValueError("train.sync_batch_norm needs GPUs, and ray.gpu is false")
        for workers in range(self.ray.min_workers, self.ray.max_workers + 1):
            self.train.passes(workers)
        if self.train.patience and not self.data.val:
            raise ValueError("train.patience needs data.val, the set whose score decides")
        return self

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Config:
        """Validate a nested dict; raise UserError with one line per error."""
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise UserError(explain(error)) from None

    @classmethod
    def known_fields(cls, tree: Mapping[str, Any]) -> Config:
        """Validate a recorded tree, without fields that this version does not have."""
        known = cls.model_fields
        return cls.from_dict(
            {
                section: {
                    field: value
                    for field, value in values.items()
                    if field in type(getattr(cls(), section)).model_fields
                }
                for section, values in tree.items()
                if section in known
            }
        )

    def recorded(self) -> dict[str, Any]:
        """Return the tree for files that are stored with checkpoints.

        It lacks the URIs of tracking and storage, which may contain passwords and are not
        properties of the training. Options of the loss that follow the assigner are filled in,
        options of the assigner that were added to it, and those that follow the optimizer and the
        starting weights.
        """
        uris = {"tracking": {"uri", "artifacts"}, "ray": {"storage"}}
        tree = self.model_dump(mode="json", exclude=uris)
        return {
            **tree,
            "assign": self.assign.recorded(),
            "loss": self.loss.options(self.assign.name),
            "model": self.model.recorded(),
            "train": self.train.recorded(),
        }

    def replace(self, overrides: Mapping[str, Any]) -> Config:
        """Return a validated copy with dotted fields changed, such as ``{"assign.sigma": 3.0}``."""
        tree = self.model_dump()
        for path, value in overrides.items():
            set_dotted(tree, path, value)
        return Config.from_dict(tree)


def set_dotted(tree: dict[str, Any], path: str, value: Any) -> None:
    """Set ``tree["a"]["b"]`` for the path ``a.b``; missing sections are created."""
    *sections, leaf = path.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[leaf] = value


def explain(error: ValidationError, source_of: Callable[[str], str | None] | None = None) -> str:
    """Return one line per error: the field, the given value, the expected one, its source.

    ``source_of`` returns where the value of a dotted field was given, or None if nowhere.
    """
    lines = []
    for item in error.errors():
        source = source_of(_path_of(item)) if source_of else None
        lines.append(_explain_one(item) + (f" [from {source}]" if source else ""))
    return "\n".join(lines)


def shorten(value: object) -> str:
    """Return a value as Python writes it, cut to a length that fits a message."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_VALUE else f"{text[:MAX_SHOWN_VALUE]}..."


def _explain_one(item: Any) -> str:
    # For unions pydantic appends the type it tried to the location; `_field` ignores it.
    path, kind = [str(part) for part in item["loc"]], item["type"]
    known = _fields(path[:-1])
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        return f"{'.'.join(path)}: unknown key; {hint}"
    if kind == "value_error":
        return ": ".join([*([".".join(path)] if path else []), str(item["ctx"]["error"])])
    field = _field(path)
    meaning = f" ({field.description})" if field is not None and field.description else ""
    return f"{'.'.join(path)}: got {shorten(item['input'])}; {item['msg'].lower()}{meaning}"


def _path_of(item: Any) -> str:
    """Return the dotted field of an error, without the type that a union appends to it."""
    return ".".join(str(part) for part in item["loc"][:2])


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
