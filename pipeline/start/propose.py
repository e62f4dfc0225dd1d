"""Apply the rules to a data set and this machine, in order: later ones need earlier ones."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.names import TIMM_PREFIX
from model.published import PUBLISHED
from pipeline.config import Config
from pipeline.errors import OutageError, UserError
from pipeline.pretrained import check_start, read_weights, stages_to_freeze
from pipeline.pretrained.published import published_file, read_published
from pipeline.reports.doctor.examine import Diagnosis, examine
from pipeline.reports.doctor.finding import percent
from pipeline.start import rules
from pipeline.start.facts import Machine, SetFacts
from pipeline.start.prepare import PreparedSets
from pipeline.start.rules import Choice
from pipeline.tracking import resolve_run_store


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
    the user, with absolute paths, which replace all others. Raises UserError if fields do not fit
    each other, or given weights not the network.
    """
    fields: dict[str, Any] = {f"data.{use}": uri for use, uri in sets.uris.items()} | dict(places)
    choices: list[Choice] = []

    def add(choice: Choice) -> None:
        choices.append(rules.override(choice, given))
        fields.update(choices[-1].fields)

    add(_network(facts, machine, given))
    if fields["model.init"]:
        started = Config().replace({**fields, **given})
        add(rules.choose_freezing(stages_to_freeze(started, facts.images), facts))
    add(rules.choose_input(facts, machine))
    others = [uri for use, uri in sets.uris.items() if use != "train"]
    diagnosis = examine(sets.uris["train"], Config().replace({**fields, **given}), others)
    add(_anchors(diagnosis))
    add(rules.choose_assigner())
    add(rules.choose_augmentation())
    epochs = given.get("train.epochs")
    add(rules.choose_batch(facts, machine, given.get("ray.workers"), epochs))
    add(rules.choose_schedule(facts, int(fields["train.batch_size"]), epochs))
    add(rules.choose_optimizer(fields["model.init"]))
    add(rules.choose_precision(machine))
    fields.update(given)
    config = Config().replace(fields)
    if given.get("model.init"):  # a rule has looked for its own
        check_start(config, sets.manifests["train"].classes, _registry(config))
    return Proposal(config, choices, fields, diagnosis)


def _network(facts: SetFacts, machine: Machine, given: Mapping[str, Any]) -> Choice:
    """Choose the network; of given weights, the backbone that they are of."""
    backbone, init = given.get("model.backbone"), given.get("model.init")
    if init is None:
        return rules.choose_network(facts, machine, missing_weights, backbone)
    if backbone is None and init in PUBLISHED:
        usual = rules.NETWORK_SMALL[0]
        backbone = usual if usual in PUBLISHED[init] else next(iter(PUBLISHED[init]))
    elif backbone is None:
        config = Config().replace(given)
        backbone = read_weights(init, config.model.init_sha256, _registry(config)).backbone
        if backbone is None:
            raise UserError(f"model.init {init} does not name its backbone; give --model.backbone")
    fields = {"model.backbone": backbone, "model.init": init}
    return Choice("network", f"{backbone} from the weights {init}", "as given", fields)


def _registry(config: Config) -> str | None:
    """Return the tracking store if the weights are a registered version."""
    registered = str(config.model.init).startswith("models:")
    return resolve_run_store(config.tracking) if registered else None


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


def missing_weights(backbone: str, name: str) -> str:
    """Return why published weights are not here and cannot be downloaded; "" if they can."""
    try:
        if backbone.startswith(TIMM_PREFIX):
            read_published(name, backbone)
        else:
            published_file(PUBLISHED[name][backbone])
    except (UserError, OutageError) as error:
        return str(error)
    return ""


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
