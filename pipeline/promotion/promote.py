"""Decide about a version, record the decision, and move the champion: promotion and rollback."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from model import build_detector
from pipeline.config import Config
from pipeline.errors import OutageError, UserError
from pipeline.evaluation.model_evaluation import (
    ModelEvaluation,
    evaluate_model,
    evaluation_config,
    latencies,
)
from pipeline.promotion import aliases
from pipeline.promotion.aliases import CHAMPION, PREVIOUS
from pipeline.promotion.decision import Decision, figures, write_record
from pipeline.promotion.gate import Subject, Verdict, judge
from pipeline.promotion.moving import carry_out, recover, tag_version
from pipeline.registry.load import LoadedDetector, check_version, get_aliases, load_detector
from pipeline.storage.redact import first_line
from pipeline.tracking import connect
from pipeline.tracking.client import store_errors
from pipeline.tracking.provenance import git_state

Evaluate = Callable[[LoadedDetector, str, Sequence[str] | None], ModelEvaluation]


class Options(NamedTuple):
    """How a version is decided about. ``force`` gives the reason to promote it regardless."""

    force: str | None = None
    dry_run: bool = False
    allow_class_change: bool = False


_DEFAULTS = Options()


@dataclass(frozen=True)
class Outcome:
    """A decision, the aliases after it, and where it is recorded ("" if it is not)."""

    decision: Decision
    champion: int | None
    previous: int | None
    record: str = ""
    verdict: Verdict | None = field(default=None, repr=False)


def promote(
    uri: str,
    name: str,
    version: int,
    data: str | None,
    config: Config,
    options: Options = _DEFAULTS,
    evaluate: Evaluate | None = None,
) -> Outcome:
    """Compare a version with the champion on a shard set, and make it champion if it passes.

    The gate is ``config.promote``. Without a champion, its absolute minimums decide. The decision
    is recorded before an alias moves, unless it is a dry run. ``evaluate`` scores a model on a set,
    for all its classes or for some; by default in this process. Raises UserError if a version, its
    files or the set cannot be used, and if the champion changes until the decision is made;
    OutageError if the registry does not respond. Then no alias has moved.
    """
    client = connect(uri)
    with store_errors(uri):
        before = get_aliases(client, uri, name)
        check_version(client, name, version)
        if not options.dry_run and recover(client, uri, name):
            before = get_aliases(client, uri, name)
    champion = before.get(CHAMPION)
    if champion == version:
        decision = _decision(
            name, version, before, "unchanged", [f"version {version} is the champion already"]
        )
        return Outcome(decision, champion, before.get(PREVIOUS))
    if data is None and options.force is None:
        raise UserError("give --data SHARDSET to compare on, or --force with --reason TEXT")
    candidate = load_checked(uri, name, version)
    verdict = None
    description = None
    if data is not None:
        reference = load_checked(uri, name, champion) if champion is not None else None
        classes, notes = _common_classes(candidate, reference, options.allow_class_change)
        run = evaluate or _evaluate_here(config)
        found = run(candidate, data, classes)
        against = run(reference, data, classes) if reference else None
        if not (~found.evaluation.table.object_ignored).any():
            raise UserError(f"{data} has no objects of these classes, so nothing can be compared")
        verdict = _judge(config, (candidate, found, version), (reference, against, champion))
        verdict.notes.extend(notes)
        description = {
            "name": found.data.name,
            "content_hash": found.data.content_hash,
            "images": found.evaluation.table.images,
            "classes": found.classes,
        }
    passed = options.force is not None or (verdict is not None and verdict.passed)
    reasons = [f"forced by {aliases.user()}: {options.force}"] if options.force is not None else []
    reasons += verdict.reasons if verdict else []
    decision = _decision(
        name,
        version,
        before,
        "promoted" if passed else "refused",
        reasons,
        notes=verdict.notes if verdict else [],
        forced=options.force is not None,
        dry_run=options.dry_run,
        data=description,
        gate=config.promote.model_dump(mode="json"),
        figures=figures(verdict) if verdict else None,
    )
    if options.dry_run:
        return Outcome(decision, champion, before.get(PREVIOUS), verdict=verdict)
    record = write_record(client, decision)
    if not passed:
        with store_errors(uri):
            tag_version(client, decision, record)
        return Outcome(decision, champion, before.get(PREVIOUS), record, verdict)
    action: aliases.Action = "force" if options.force is not None else "promote"
    carry_out(client, uri, decision, action, champion, record)
    return Outcome(decision, version, champion, record, verdict)


def rollback(uri: str, name: str, reason: str = "", dry_run: bool = False) -> Outcome:
    """Make the champion before the present one champion again; repeated, go further back.

    Versions whose files do not load are skipped, with a reason. Raises UserError if there is no
    earlier champion that loads.
    """
    client = connect(uri)
    with store_errors(uri):
        before = get_aliases(client, uri, name)
        if not dry_run and recover(client, uri, name):
            before = get_aliases(client, uri, name)
        stack = aliases.champions(aliases.read_moves(client, name), before)
    champion = before.get(CHAMPION)
    if len(stack) < 2:
        raise UserError(f"{name} has no previous champion to roll back to")
    reasons = [f"rolled back by {aliases.user()}" + (f": {reason}" if reason else "")]
    earlier = stack[:-1]
    while earlier:
        try:
            load_checked(uri, name, earlier[-1])
            break
        except UserError as error:
            reasons.append(f"version {earlier.pop()} is skipped: {first_line(error)}")
    else:
        raise UserError(f"{name}: no earlier champion can be loaded; {'; '.join(reasons[1:])}")
    target, previous = earlier[-1], earlier[-2] if len(earlier) > 1 else None
    decision = _decision(name, target, before, "rolled back", reasons, dry_run=dry_run)
    if dry_run:
        return Outcome(decision, champion, before.get(PREVIOUS))
    record = write_record(client, decision)
    carry_out(client, uri, decision, "rollback", previous, record)
    return Outcome(decision, target, previous, record)


def load_checked(uri: str, name: str, version: int) -> LoadedDetector:
    """Load a version as far as predicting needs it. Raises UserError if that fails."""
    model = f"models:/{name}/{version}"
    try:
        loaded = load_detector(model, uri)
        build_detector(**loaded.spec.model_dump()).load_state_dict(loaded.state)
    except (UserError, OutageError):
        raise
    except Exception as error:  # damaged files raise errors of many types
        raise UserError(f"{model} cannot be loaded: {first_line(error)}") from error
    return loaded


def _common_classes(
    candidate: LoadedDetector, champion: LoadedDetector | None, allowed: bool
) -> tuple[list[str] | None, list[str]]:
    """Return the classes to compare, None for all, and notes about the others."""
    if champion is None or champion.classes == candidate.classes:
        return None, []
    common = [name for name in candidate.classes if name in champion.classes]
    if not allowed:
        raise UserError(
            f"the candidate has the classes {', '.join(candidate.classes)}, the champion "
            f"{', '.join(champion.classes)}; --allow-class-change compares them on the common ones"
        )
    if not common:
        raise UserError("candidate and champion have no class in common")
    gone = [name for name in champion.classes if name not in common]
    new = [name for name in candidate.classes if name not in common]
    note = f"compared on the common classes {', '.join(common)}"
    note += f"; lost: {', '.join(gone)}" if gone else ""
    note += f"; new: {', '.join(new)}" if new else ""
    return common, [note]


def _judge(
    config: Config,
    candidate: tuple[LoadedDetector, ModelEvaluation, int],
    champion: tuple[LoadedDetector | None, ModelEvaluation | None, int | None],
) -> Verdict:
    loaded, found, version = candidate
    reference, against, champion_version = champion
    both = [loaded] if reference is None else [loaded, reference]
    subjects = []
    seconds = latencies(both, config)
    results = [found] if against is None else [found, against]
    versions = [version, champion_version or 0]
    for own, result, number, time in zip(both, results, versions, seconds, strict=False):
        megabytes = sum(t.numel() * t.element_size() for t in own.state.values()) / 1e6
        subjects.append(Subject(number, result.evaluation.table, time, megabytes))
    protocol = evaluation_config(loaded, config).evaluate.protocol
    other = subjects[1] if len(subjects) > 1 else None
    return judge(subjects[0], other, found.classes, config.promote, protocol)


def _evaluate_here(config: Config) -> Evaluate:
    def run(loaded: LoadedDetector, data: str, classes: Sequence[str] | None) -> ModelEvaluation:
        found = evaluate_model(loaded, data, classes=classes, config=config)
        assert found is not None, "this process is rank 0"
        return found

    return run


def _decision(
    name: str,
    version: int,
    before: dict[str, int],
    verdict: str,
    reasons: list[str],
    **fields: object,
) -> Decision:
    content = {
        "model": name,
        "verdict": verdict,
        "reasons": reasons,
        "version": version,
        "champion_before": before.get(CHAMPION),
        "previous_before": before.get(PREVIOUS),
        "by": aliases.user(),
        "at": aliases.now(),
        "machine": platform.node(),
        "revision": git_state().revision,
        **fields,
    }
    return Decision.model_validate(content)
