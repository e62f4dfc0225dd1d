"""Apply the rules to a data set and this machine, in order: later ones need earlier ones."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.published import PUBLISHED
from pipeline.config import Config
from pipeline.errors import OutageError, UserError
from pipeline.pretrained import stages_to_freeze
from pipeline.pretrained.published import published_file
from pipeline.reports.doctor.examine import Diagnosis, examine
from pipeline.reports.doctor.finding import percent
from pipeline.start import rules
from pipeline.start.facts import Machine, SetFacts
from pipeline.start.prepare import PreparedSets
from pipeline.start.rules import Choice


@dataclass(frozen=True)
class Proposal:
    """A configuration, the choices that led to it, and what the doctor found with it."""

    config: Config
    choices: list[Choice]
    fields: dict[str, Any]
    """All that the recipe sets, by dotted field."""
    diagnosis: Diagnosis


def propose(
    facts: SetFacts,
    machine: Machine,
    sets: PreparedSets,
    places: Mapping[str, Any],
    given: Mapping[str, Any],
) -> Proposal:
    """Return the proposal for prepared sets.

    ``places`` are fields that no rule decides, such as names and folders; ``given`` are those of
    the user, which replace all others. Raises UserError if fields do not fit each other.
    """
    fields: dict[str, Any] = {f"data.{use}": uri for use, uri in sets.uris.items()} | dict(places)
    choices: list[Choice] = []

    def add(choice: Choice) -> None:
        choices.append(rules.override(choice, given))
        fields.update(choices[-1].fields)

    backbone = given.get("model.backbone")
    add(rules.choose_network(facts, machine, weights_available, backbone))
    if fields["model.init"]:
        started = Config().replace({**fields, **given})
        add(rules.choose_freezing(stages_to_freeze(started, facts.images), facts))
    add(rules.choose_input(facts, machine))
    others = [uri for use, uri in sets.uris.items() if use != "train"]
    diagnosis = examine(sets.uris["train"], Config().replace({**fields, **given}), others)
    add(_anchors(diagnosis))
    add(rules.choose_assigner())
    add(rules.choose_augmentation())
    add(rules.choose_batch(facts, machine, given.get("ray.workers")))
    batch = int(fields["train.batch_size"])
    add(rules.choose_schedule(facts, batch, given.get("train.epochs")))
    add(rules.choose_optimizer(fields["model.init"]))
    add(rules.choose_precision(machine))
    fields.update(given)
    return Proposal(Config().replace(fields), choices, fields, diagnosis)


def _anchors(diagnosis: Diagnosis) -> Choice:
    found, fitted = diagnosis.statistics, diagnosis.fitted
    missed = f"{percent(found.missed, found.objects)} of the objects have none that fits"
    if fitted is None:
        return rules.choose_anchors(diagnosis.shapes, None, missed)
    missed = (
        f"{percent(fitted.missed, 1)} of the objects have none that fits; "
        f"with the default {percent(found.missed, found.objects)}"
    )
    return rules.choose_anchors(diagnosis.shapes, fitted.shapes, missed)


def weights_available(backbone: str, name: str) -> bool:
    """Return whether published weights are here or can be downloaded."""
    try:
        published_file(PUBLISHED[name][backbone])
    except (UserError, OutageError):
        return False
    return True


def given_fields(config: Config) -> dict[str, Any]:
    """Return the fields that were set explicitly, by dotted name."""
    return {
        f"{section}.{name}": getattr(getattr(config, section), name)
        for section in sorted(config.model_fields_set)
        for name in sorted(getattr(config, section).model_fields_set)
    }


def places_for(name: str, out: Path) -> dict[str, Any]:
    """Return the names of experiment and model, and the folder of the runs."""
    letters = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", letters).strip("-._") or "data"
    return {
        "tracking.experiment": plain,
        "registry.name": f"{plain}-detector",
        "ray.storage": str((out / "runs").absolute()),
    }
