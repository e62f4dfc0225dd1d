"""The configuration as the run shows it: dotted params, and the whole tree as a recipe."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from pipeline.config import Config
from pipeline.tracking.store import mask

# The run's other sections change nothing about the result; they are in config.yaml.
_PARAM_SECTIONS = ("data", "model", "assign", "loss", "train", "evaluate", "ray")
_PARAM_LENGTH = 6000


def config_yaml(config: Config) -> str:
    """The whole config as a recipe, with the secrets in its URIs masked."""
    return yaml.safe_dump(_masked(config.model_dump(mode="json")), sort_keys=False)


def flat_params(config: Config) -> dict[str, str]:
    """Dotted config fields as MLflow params, without those the chosen assigner does not use."""
    tree = config.model_dump(mode="json", include=set(_PARAM_SECTIONS))
    tree["assign"] = _used_by_assigner(tree["assign"])
    params = {key: mask(_text(value)) for key, value in _flatten(tree)}
    return {key: value for key, value in params.items() if len(value) <= _PARAM_LENGTH}


def _used_by_assigner(assign: dict[str, Any]) -> dict[str, Any]:
    from model.assign import assigner_options

    used = {"name", *assigner_options(assign["name"])}
    return {key: value for key, value in assign.items() if key in used}


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _masked(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _masked(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_masked(item) for item in value]
    return mask(value) if isinstance(value, str) else value
