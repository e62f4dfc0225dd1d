"""Paths of weights in a search space: absolute, since trials run in other working directories."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.config import Config
from pipeline.training.fit import absolute_value
from pipeline.training.run_record import RunInfo
from pipeline.trials.trial_records import Params, TrialRecord


def absolute_search(config: Config) -> Config:
    """Return the configuration with absolute paths in the space and the points of its sweep."""
    search = _absolute(config.sweep.model_dump())
    return config.replace({f"sweep.{name}": value for name, value in search.items()})


def as_recorded(config: Config, info: RunInfo | None) -> Config:
    """Return the configuration with the recorded space, if only relative paths differ there.

    Sweeps of earlier versions recorded paths as they were given.
    """
    recorded = info.config.get("sweep", {}) if info is not None else {}
    now = config.sweep.model_dump(include={"space", "points"})
    if _absolute(recorded) != now:
        return config
    return config.replace({f"sweep.{name}": recorded[name] for name in now if name in recorded})


def absolute_record(record: TrialRecord) -> TrialRecord:
    """Return the record of a trial with absolute paths."""
    return record.model_copy(update={"params": _absolute_values(record.params)})


def _absolute(sweep: Mapping[str, Any]) -> dict[str, Any]:
    space = {
        field: {
            key: _absolute_values(value)
            if key == "when" and isinstance(value, dict)
            else absolute_value(field, value)
            for key, value in spec.items()
        }
        for field, spec in sweep.get("space", {}).items()
    }
    return {"space": space, "points": [_absolute_values(one) for one in sweep.get("points", [])]}


def _absolute_values(values: Mapping[str, Any]) -> Params:
    return {field: absolute_value(field, value) for field, value in values.items()}
