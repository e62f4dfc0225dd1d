"""Test promotion from end to end in a real store; only the quality of the versions is chosen."""

import contextlib
import json
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.data import load_manifest
from pipeline.errors import OutageError, UserError
from pipeline.promotion import promote as module
from pipeline.promotion.aliases import read_moves
from pipeline.promotion.promote import Options, promote, rollback
from pipeline.tracking import connect
from tests.pipeline.promotion.conftest import add_version


def current(store) -> dict[str, int]:
    found = connect(store.uri).get_registered_model("shapes").aliases
    return {alias: int(version) for alias, version in found.items() if alias != "candidate"}


def decide(store, version, evaluate, scenes, **options):
    return promote(
        store.uri, "shapes", version, scenes["test"], store.config, Options(**options), evaluate
    )


def test_first_version_then_better_ones_then_back(store, evaluate, scenes) -> None:
    first = decide(store, 1, evaluate, scenes)
    assert first.decision.verdict == "promoted"
    assert "there is no champion" in first.decision.reasons[0]
    better = decide(store, 3, evaluate, scenes)
    assert (better.decision.verdict, better.champion, better.previous) == ("promoted", 3, 1)
    assert better.verdict is not None and better.verdict.gain is not None
    assert better.verdict.gain.low > 0
    worse = decide(store, 2, evaluate, scenes)
    assert (worse.decision.verdict, worse.champion) == ("refused", 3)
    assert decide(store, 3, evaluate, scenes).decision.verdict == "unchanged"
    assert current(store) == {"champion": 3, "previous": 1}
    decide(store, 4, evaluate, scenes)
    assert current(store) == {"champion": 4, "previous": 3}
    assert rollback(store.uri, "shapes").champion == 3
    assert current(store) == {"champion": 3, "previous": 1}
    assert rollback(store.uri, "shapes", "still bad").champion == 1
    assert current(store) == {"champion": 1}
    with pytest.raises(UserError, match="no previous champion"):
        rollback(store.uri, "shapes")
    moves = read_moves(connect(store.uri), "shapes")
    assert [(move.action, move.after) for move in moves] == [
        ("promote", 1),
        ("promote", 3),
        ("promote", 4),
        ("rollback", 3),
        ("rollback", 1),
    ]
    assert moves[-1].reason.endswith("still bad")


def test_decision_is_recorded_with_its_figures(store, evaluate, scenes) -> None:
    decide(store, 1, evaluate, scenes)
    outcome = decide(store, 2, evaluate, scenes)
    run_id, file = outcome.record.removeprefix("runs:/").split("/")
    client = connect(store.uri)
    record = json.loads(Path(client.download_artifacts(run_id, file)).read_text())
    assert record["verdict"] == "promoted"
    assert (record["version"], record["champion_before"]) == (2, 1)
    assert record["figures"]["gain"]["low"] > 0
    assert {item["name"] for item in record["figures"]["classes"]} == {"circle", "square"}
    assert record["data"]["content_hash"] and record["data"]["images"] == 60
    assert record["gate"]["confidence"] == 0.95
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["gain/low"] == pytest.approx(record["figures"]["gain"]["low"])
    tags = client.get_model_version("shapes", "2").tags
    assert tags["promotion.verdict"] == "promoted"
    assert tags["promotion.record"] == outcome.record


def test_refusal_is_recorded_and_moves_nothing(store, evaluate, scenes) -> None:
    decide(store, 2, evaluate, scenes)
    outcome = decide(store, 1, evaluate, scenes)
    assert outcome.decision.verdict == "refused" and outcome.record
    assert "the candidate is worse" in outcome.decision.reasons[0]
    tags = connect(store.uri).get_model_version("shapes", "1").tags
    assert tags["promotion.verdict"] == "refused"
    assert current(store) == {"champion": 2}


def test_dry_run_leaves_no_trace(store, evaluate, scenes) -> None:
    decide(store, 1, evaluate, scenes)
    runs = len(all_runs(store))
    outcome = decide(store, 3, evaluate, scenes, dry_run=True)
    assert outcome.decision.verdict == "promoted" and not outcome.record
    assert current(store) == {"champion": 1}
    assert len(all_runs(store)) == runs
    assert "promotion.verdict" not in connect(store.uri).get_model_version("shapes", "3").tags


def all_runs(store) -> list:
    client = connect(store.uri)
    experiments = [item.experiment_id for item in client.search_experiments()]
    return list(client.search_runs(experiments))


def test_force_needs_no_data_and_is_recorded(store, evaluate, scenes) -> None:
    decide(store, 3, evaluate, scenes)
    outcome = promote(store.uri, "shapes", 1, None, store.config, Options(force="camera changed"))
    assert (outcome.decision.verdict, outcome.decision.forced) == ("promoted", True)
    assert "camera changed" in outcome.decision.reasons[0]
    assert current(store) == {"champion": 1, "previous": 3}
    with_data = decide(store, 2, evaluate, scenes, force="again")
    assert with_data.verdict is not None and "again" in with_data.decision.reasons[0]


def remove_files(store, version: int) -> None:
    source = connect(store.uri).get_model_version_download_uri("shapes", str(version))
    shutil.rmtree(source.removeprefix("file://"))


def test_version_without_its_files_is_never_promoted(store, evaluate, scenes) -> None:
    decide(store, 1, evaluate, scenes)
    decide(store, 2, evaluate, scenes)
    for version in (3, 1):
        remove_files(store, version)
    with pytest.raises(UserError, match=r"models:/shapes/3.*cannot"):
        decide(store, 3, evaluate, scenes)
    with pytest.raises(UserError, match=r"models:/shapes/3.*cannot"):
        promote(store.uri, "shapes", 3, None, store.config, Options(force="now"))
    with pytest.raises(UserError, match="no earlier champion can be loaded.*version 1"):
        rollback(store.uri, "shapes")
    assert current(store) == {"champion": 2, "previous": 1}


def test_rollback_skips_a_version_without_its_files(store, evaluate, scenes) -> None:
    for version in (1, 2, 3):
        decide(store, version, evaluate, scenes)
    remove_files(store, 2)
    outcome = rollback(store.uri, "shapes")
    assert outcome.champion == 1
    assert "version 2 is skipped" in outcome.decision.reasons[1]


def test_record_that_cannot_be_written_stops_the_promotion(
    store, evaluate, scenes, monkeypatch
) -> None:
    from mlflow import MlflowClient

    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    decide(store, 1, evaluate, scenes)
    monkeypatch.setattr(MlflowClient, "log_text", full)
    with pytest.raises(OutageError, match="cannot be recorded, and the aliases stay: No space"):
        decide(store, 3, evaluate, scenes)
    assert current(store) == {"champion": 1}


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """Let no file of this process grow above 100 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("method", ["create_run", "log_text"])
def test_full_disk_stops_the_promotion(store, evaluate, scenes, monkeypatch, method) -> None:
    from mlflow import MlflowClient

    real = getattr(MlflowClient, method)

    def fills(*arguments: object, **options: object) -> object:
        with full_disk():
            return real(*arguments, **options)

    decide(store, 1, evaluate, scenes)
    monkeypatch.setattr(MlflowClient, method, fills)
    with pytest.raises(OutageError, match="cannot be recorded, and the aliases stay: ") as error:
        decide(store, 3, evaluate, scenes)
    assert len(str(error.value).splitlines()) == 1
    monkeypatch.undo()
    assert current(store) == {"champion": 1}
    assert decide(store, 3, evaluate, scenes).champion == 3


def test_champion_that_changes_during_the_evaluation_is_noticed(store, evaluate, scenes) -> None:
    decide(store, 1, evaluate, scenes)

    def slow(*arguments):
        connect(store.uri).set_registered_model_alias("shapes", "champion", "4")
        return evaluate(*arguments)

    with pytest.raises(UserError, match="version 4 is the champion now, no longer version 1"):
        decide(store, 3, slow, scenes)
    assert current(store)["champion"] == 4


def test_other_classes_are_compared_only_when_asked(store, evaluate, scenes) -> None:
    add_version(store.uri, store.config, ["square", "circle", "star"])
    decide(store, 1, evaluate, scenes)
    with pytest.raises(UserError, match="star.*--allow-class-change"):
        decide(store, 5, evaluate, scenes)
    outcome = decide(store, 5, evaluate, scenes, allow_class_change=True)
    assert outcome.decision.verdict == "promoted"
    (note,) = [note for note in outcome.decision.notes if "common" in note]
    assert "square, circle" in note and "new: star" in note


def test_set_without_objects_is_refused(store, evaluate, scenes) -> None:
    def empty(*arguments):
        found = evaluate(*arguments)
        table = found.evaluation.table
        hidden = table.object_crowd | True
        bare = type(table)(**{**vars(table), "object_crowd": hidden})
        return type(found)(
            found.model,
            found.data,
            found.classes,
            type(found.evaluation)(found.evaluation.result, bare),
        )

    with pytest.raises(UserError, match="has no objects of these classes"):
        decide(store, 1, empty, scenes)


def test_unknown_names_and_versions_list_what_exists(store, evaluate, scenes) -> None:
    with pytest.raises(UserError, match="no version 9; versions: 1, 2, 3, 4"):
        decide(store, 9, evaluate, scenes)
    with pytest.raises(UserError, match="'squares' does not exist .*registered: shapes"):
        promote(store.uri, "squares", 1, scenes["test"], store.config)
    with pytest.raises(UserError, match="--data SHARDSET"):
        promote(store.uri, "shapes", 1, None, store.config)


def test_real_detectors_are_evaluated_and_timed(store, scenes) -> None:
    config = store.config.replace({"data.loader_workers": 0, "promote.min_ap": 0.9})
    classes = load_manifest(scenes["test"]).classes
    add_version(store.uri, config, classes)
    outcome = promote(store.uri, "shapes", 5, scenes["test"], config)
    assert outcome.decision.verdict == "refused"
    assert "is not above promote.min_ap 0.9" in outcome.decision.reasons[0]
    assert module.load_checked(store.uri, "shapes", 5).classes == classes


def test_outage_neither_skips_a_version_nor_moves_the_champion(
    store, evaluate, scenes, monkeypatch
) -> None:
    for version in (1, 2, 3):
        decide(store, version, evaluate, scenes)

    def unavailable(*_: object, **__: object) -> None:
        raise ConnectionError("503 Service Unavailable")

    monkeypatch.setattr("mlflow.artifacts.download_artifacts", unavailable)
    with pytest.raises(OutageError, match="503 Service Unavailable"):
        rollback(store.uri, "shapes")
    with pytest.raises(OutageError, match="503 Service Unavailable"):
        decide(store, 4, evaluate, scenes)
    assert current(store) == {"champion": 3, "previous": 2}
