"""Run specs: drivers that die, specs that change, stores that do not respond, old formats."""

import json

import pytest
import yaml

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.tracking import Tracker, create_run, discard_run_spec, sync
from pipeline.tracking.provenance import GitState
from pipeline.tracking.run_spec import build_run_spec
from pipeline.tracking.spool.offline_runs import load_run_spec, load_spool_info, save_run_spec
from tests.ports import free_port
from tests.stores import points


def test_driver_killed_while_creating_a_run_finds_it_again(uri, client, tmp_path, monkeypatch):
    config = Config.from_dict({"tracking": {"experiment": "killed"}})

    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.tracking.run_spec._record", killed)
        with pytest.raises(Killed):
            create_run(uri, config, "one", spool=tmp_path)
    run_id = create_run(uri, config, "one", spool=tmp_path)
    (run,) = client.search_runs([client.get_experiment_by_name("killed").experiment_id])
    assert (run.info.run_id, run.info.status) == (run_id, "RUNNING")
    assert run.data.params["train.epochs"] == "20.0"
    # Also a driver that was killed before it recorded the run id.
    assert create_run(uri, config, "one", spool=tmp_path) == run_id
    discard_run_spec(tmp_path, run_id)
    assert create_run(uri, config, "one", spool=tmp_path) != run_id


def test_rates_that_follow_the_optimizer_are_recorded_as_numbers():
    config = Config.from_dict({"train": {"optimizer": "adamw", "weight_decay": 0.0}})
    spec = build_run_spec(config)
    rates = [spec.params[f"train.{name}"] for name in ("optimizer", "lr", "weight_decay")]
    assert rates == ["adamw", "0.001", "0.0"]
    train = yaml.safe_load(spec.files["config.yaml"])["train"]
    assert (train["lr"], train["weight_decay"]) == (1e-3, 0.0)


def test_spec_has_no_secrets_in_params_tags_and_files(monkeypatch):
    diff = "+uri = 'http://me:S3cret@host'\n+AWS_SECRET_ACCESS_KEY=S3cret/x\n"
    monkeypatch.setattr(
        "pipeline.tracking.run_spec.git_state", lambda: GitState("abc", "main", diff, True)
    )
    config = Config.from_dict(
        {
            "model": {"init": "https://host/w.pth?sig=S3cret", "init_sha256": "0" * 64},
            "tracking": {"uri": "mssql+pyodbc:///?odbc_connect=PWD%3DS3cret"},
        }
    )
    spec = build_run_spec(config, tags={"note": "password=S3cret"})
    assert spec.params["model.init"] == "https://host/w.pth?sig=***"
    assert spec.files["environment/uncommitted.diff"] == (
        "+uri = 'http://me:***@host'\n+AWS_SECRET_ACCESS_KEY=***\n"
    )
    assert b"S3cret" not in spec.encode()


def test_names_of_classes_are_in_the_value_of_a_param_and_not_in_its_key():
    config = Config.from_dict({"loss": {"class_weights": {"a+b, café": 2}}})
    params = build_run_spec(config).params
    assert json.loads(params["loss.class_weights"]) == {"a+b, café": 2.0}
    assert not any(key.startswith("loss.class_weights.") for key in params)


def test_changed_configuration_creates_another_run(uri, client, tmp_path):
    first = Config.from_dict({"tracking": {"experiment": "changed"}})
    first_id = create_run(uri, first, "one", spool=tmp_path)  # then the driver is killed
    changed = first.replace({"train.lr": 0.5})
    run_id = create_run(uri, changed, "one", spool=tmp_path)
    assert run_id != first_id and client.get_run(first_id).info.status == "KILLED"
    assert client.get_run(run_id).data.params["train.lr"] == "0.5"
    assert create_run(uri, changed, "one", spool=tmp_path) == run_id


def test_several_processes_create_one_run_when_the_store_responds(uri, client, tmp_path):
    away = f"http://127.0.0.1:{free_port()}"
    config = Config.from_dict({"tracking": {"experiment": "late", "required": False}})
    run_id = create_run(away, config, "late", spool=tmp_path)
    trackers = [Tracker(uri, run_id, tmp_path, system_metrics=False) for _ in range(4)]
    for number, tracker in enumerate(trackers):
        tracker.log_metrics({f"loss{number}": 1.0}, 1)
    sent = [tracker.close() for tracker in trackers]
    assert sent == [True] * 4
    (run,) = client.search_runs([client.get_experiment_by_name("late").experiment_id])
    assert {tracker.run_id for tracker in trackers} == {run.info.run_id}
    assert run.data.metrics == {f"loss{number}": 1.0 for number in range(4)}
    assert not tmp_path.exists()


# The files of a spool as the first format wrote them: no versions, and records without a type.
OLD_SPEC = (
    '{"time": 1795731499729, "experiment": "old", "name": "one", "tags": {"mlflow.user": "root", '
    '"git.dirty": "false", "mlflow.source.git.commit": "cf40a68c272cc2f25e3ee221b179f11b0953e236", '
    '"data.train.fingerprint": "abab", "note": "x", "run.key": "fe93a5df31bb4a23a510bf5be762c012"}'
    ', "params": {"data.train": "https://me:***@host/x", "data.val": "null", "data.parts": "64"}, '
    '"data": [{"use": "train", "name": "shapes", "digest": "abababababababababababababababababab", '
    '"uri": "https://me:***@host/x"}], "files": {"config.yaml": "data:\\n  train: x\\n", '
    '"environment/packages.txt": "torch==2.0\\n"}, "key": "fe93a5df31bb4a23a510bf5be762c012"}'
)
OLD_INFO = '{"run_id": "offline-fe93a5df31bb4a23a510bf5be762c012", "uri": "http://127.0.0.1:9"}'
OLD_RECORDS = """\
{"time": 1795731499733, "metrics": {"loss": 1.0, "x": NaN, "y": Infinity}, "step": 1}
{"time": 1795731499733, "tag": ["state", "good"]}
{"time": 1795731499733, "file": "FOLDER/files/c196fa1f/more.txt", "folder": "notes"}
{"time": 1795731502729, "metrics": {"system/n/cpu": 1.5}, "step": null}
{"time": 1795731499733, "status": "RUNNING"}
{"time": 1795731499737, "tag": ["history.2026-11-26 22:18:19.736", "FAILED: x"]}
{"time": 1795731499737, "status": "FAILED"}
"""


@pytest.fixture
def old_spool(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "runs" / "one" / "tracking"
    (folder / "files" / "c196fa1f").mkdir(parents=True)
    (folder / "files" / "c196fa1f" / "more.txt").write_text("more")
    (folder / "begin.json").write_text(OLD_SPEC)
    (folder / "about.json").write_text(OLD_INFO)
    records = OLD_RECORDS.replace("FOLDER", str(folder))
    (folder / "01795731499732666857-13764.jsonl").write_text(records)
    return folder


def test_spool_of_the_first_format_is_sent(uri, client, old_spool, tmp_path):
    (sent,) = sync(tmp_path / "runs", uri, lambda: uri)
    assert sent.complete
    (run,) = client.search_runs([client.get_experiment_by_name("old").experiment_id])
    assert (run.info.run_id, run.info.status, run.info.run_name) == (sent.run_id, "FAILED", "one")
    assert (run.info.start_time, run.info.end_time) == (1795731499729, 1795731499737)
    assert run.data.params["data.parts"] == "64"
    assert run.data.metrics["loss"] == 1.0
    assert points(client, sent.run_id, "system/n/cpu") == [(3, 1.5)]
    assert (run.data.tags["note"], run.data.tags["state"]) == ("x", "good")
    assert run.data.tags["history.2026-11-26 22:18:19.736"] == "FAILED: x"
    assert run.inputs.dataset_inputs[0].dataset.name == "shapes"
    assert [f.path for f in client.list_artifacts(sent.run_id, "notes")] == ["notes/more.txt"]
    assert not old_spool.exists()


def test_sync_reports_records_of_a_newer_version_as_queued(uri, client, old_spool, tmp_path):
    (newer,) = old_spool.glob("*.jsonl")
    with newer.open("a") as file:
        file.write('{"type": "trace", "time": 1}\n')
    (sent,) = sync(tmp_path / "runs", uri, lambda: uri)
    assert not sent.complete
    assert client.get_run(sent.run_id).data.metrics["loss"] == 1.0
    assert newer.exists()


def test_spec_of_the_first_format_is_the_current_one(old_spool):
    spec = load_run_spec(old_spool)
    assert spec.key == "fe93a5df31bb4a23a510bf5be762c012"
    new = {"format_version": 2, "artifacts": None}
    assert json.loads(spec.encode()) == {**json.loads(OLD_SPEC), **new}
    save_run_spec(old_spool, spec)
    assert load_run_spec(old_spool) == spec


@pytest.mark.parametrize("name", ["begin.json", "about.json"])
def test_spool_of_a_newer_format_is_named(uri, old_spool, tmp_path, name):
    path = old_spool / name
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 9}))
    read = load_run_spec if name == "begin.json" else load_spool_info
    with pytest.raises(UserError, match=f"{path} has format 9, written by a newer version"):
        read(old_spool)
    with pytest.raises(UserError, match="newer version"):
        sync(tmp_path / "runs", uri, lambda: uri)
    assert (old_spool / "01795731499732666857-13764.jsonl").exists()


@pytest.mark.parametrize("name", ["about.json", "begin.json"])
def test_damaged_document_of_a_spool_is_one_line_with_the_remedy(uri, old_spool, tmp_path, name):
    (old_spool / name).write_text('{"run_id": "abc')
    with pytest.raises(UserError, match=rf"{name}: not valid JSON.*restore the file, or delete"):
        sync(tmp_path / "runs", uri, lambda: uri)
