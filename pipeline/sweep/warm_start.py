"""What an earlier sweep has found, for the searcher of another."""

from __future__ import annotations

from typing import Any

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.storage.folder import split
from pipeline.storage.redact import mask
from pipeline.sweep.domain import Domain
from pipeline.sweep.space import SearchSpace
from pipeline.training.run_record import RunRecord
from pipeline.trials.trial_records import Params, TrialRecords


def former_trials(config: Config, space: SearchSpace) -> list[tuple[Params, float]]:
    """Return points and scores of ``sweep.warm_start`` that are points of this space too.

    A field that it did not search has the value of its configuration.
    """
    uri = config.sweep.warm_start
    if uri is None:
        return []
    info = RunRecord(*split(uri)).read()
    records = TrialRecords(uri)
    records.load()
    if info is None or not records.all:
        raise UserError(f"sweep.warm_start {mask(uri)}: not the folder of a sweep")
    ranked = {name: info.config["sweep"].get(name) for name in ("metric", "mode")}
    if ranked != {"metric": config.sweep.metric, "mode": config.sweep.mode}:
        raise UserError(
            f"sweep.warm_start {mask(uri)}: its trials are ranked by {ranked['metric']} "
            f"({ranked['mode']}), these by {config.sweep.metric} ({config.sweep.mode})"
        )
    if info.config["evaluate"].get("protocol", "coco") != config.evaluate.protocol:
        raise UserError(f"sweep.warm_start {mask(uri)}: it has another evaluate.protocol")

    def former_value(field: str, _domain: Domain) -> Any:
        section, _, name = field.partition(".")
        return info.config[section].get(name)

    found = []
    for record in records.all.values():
        score = record.best(config.sweep.mode)
        if score is None or record.state not in ("finished", "stopped early"):
            continue
        try:
            space.check_point(record.params, "")
            point = space.complete(record.params, former_value)
            space.check_point(point, "")
        except UserError:
            continue
        found.append((point, score))
    if not found:
        raise UserError(f"sweep.warm_start {mask(uri)}: none of its trials is in sweep.space")
    return found
