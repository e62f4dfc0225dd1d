import errno
import json
import logging
import os
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from pipeline.config import Config, TrackingConfig
from pipeline.errors import UserError
from pipeline.tracking import (
    Tracker,
    connect,
    create_run,
    finish_run,
    forget_beginning,
    mask,
    resolve_uri,
    resume_run,
    sync,
)
from pipeline.tracking.params import flat_params
from pipeline.tracking.provenance import git_state
from pipeline.tracking.system import SystemSampler
from tests.stores import new_store

ROOT = Path(__file__).resolve().parents[2]
NODE = platform.node()


class Shapes:
    name = "shapes"
    content_hash = "ab" * 32


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return new_store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def client(uri):
    return connect(uri)


@pytest.fixture
def run_id(uri, client):
    experiment = client.get_experiment_by_name("points")
    identifier = experiment.experiment_id if experiment else client.create_experiment("points")
    return client.create_run(identifier).info.run_id


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def points(client, run_id, key):
    return [(p.step, p.value) for p in client.get_metric_history(run_id, key)]


# Where the store is


def test_the_config_wins_over_the_environment_and_that_over_sqlite_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://from.environment:5000")
    assert resolve_uri(TrackingConfig(uri="http://from.config:5000")) == "http://from.config:5000"
    assert resolve_uri(TrackingConfig()) == "http://from.environment:5000"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert resolve_uri(TrackingConfig()) == f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    assert (tmp_path / "mlflow" / "mlflow.db").stat().st_size > 0


@pytest.mark.parametrize(
    "wrong", ["./mlruns", "file:///tmp/runs", "sqlite://", "sqlite:///:memory:"]
)
def test_what_is_no_store_is_named(wrong):
    with pytest.raises(UserError, match=r"tracking\.uri"):
        resolve_uri(TrackingConfig(uri=wrong))


def test_a_file_that_is_no_database_is_named(tmp_path):
    path = tmp_path / "mlflow.db"
    path.write_text("no database, " * 1000)
    with pytest.raises(UserError, match=str(path)):
        resolve_uri(TrackingConfig(uri=f"sqlite:///{path}"))


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_an_absent_server_is_an_error_in_seconds_that_hides_the_password(scheme):
    port = closed_port()
    before = time.monotonic()
    with pytest.raises(UserError) as error:
        create_run(f"{scheme}://me:s3cret@127.0.0.1:{port}/db", Config(), "name")
    assert time.monotonic() - before < 10
    assert f"{scheme}://me:***@127.0.0.1:{port}" in str(error.value)
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://host:5000/a", "http://host:5000/a"),
        (
            "see http://me:pw@host, http://you:p:w@host",
            "see http://me:***@host, http://you:***@host",
        ),
        ("https://token@host/x.git", "https://***@host/x.git"),
        ("postgresql+psycopg2://u:p@ss@db:5432/m", "postgresql+psycopg2://u:***@db:5432/m"),
        ("s3://b/k?X-Amz-Signature=abc&v=1", "s3://b/k?X-Amz-Signature=***&v=1"),
        ("mail me@host.org", "mail me@host.org"),
    ],
)
def test_mask_hides_secrets_only(text, expected):
    assert mask(text) == expected


def test_telemetry_is_off():
    import mlflow.telemetry.utils

    assert mlflow.telemetry.utils.is_telemetry_disabled()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


# What a run records


def test_a_run_holds_config_revision_environment_and_data(uri, client, monkeypatch, tmp_path):
    monkeypatch.setenv("SOME_PASSWORD", "hunter2-in-the-environment")
    config = Config.from_dict(
        {
            "data": {"train": "https://me:s3cret@host/shards"},
            "tracking": {"uri": uri, "experiment": "recorded"},
        }
    )
    run_id = create_run(uri, config, "first", {"note": "x"}, None, {"train": Shapes()})
    child = create_run(uri, config, "child", parent_run_id=run_id)

    run = client.get_run(run_id)
    assert run.info.status == "RUNNING"
    assert run.info.run_name == "first"
    assert run.data.params["train.epochs"] == "20.0"
    assert run.data.params["data.train"] == "https://me:***@host/shards"
    assert run.data.tags["note"] == "x"
    assert run.data.tags["data.train.fingerprint"] == Shapes.content_hash
    assert client.get_run(child).data.tags["mlflow.parentRunId"] == run_id
    dataset = run.inputs.dataset_inputs[0]
    assert (dataset.dataset.name, dataset.dataset.digest) == ("shapes", "ab" * 18)
    assert dataset.tags[0].value == "train"

    folder = Path(client.download_artifacts(run_id, "", str(tmp_path)))
    stored = {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*.*")}
    assert "epochs: 20.0" in stored["config.yaml"]
    assert "torch==" in stored["environment/packages.txt"]
    assert json.loads(stored["environment/machine.json"])["python"].startswith("3.")
    everything = "".join(stored.values()) + str(run.to_dictionary())
    assert "hunter2-in-the-environment" not in everything
    assert "s3cret" not in stored["config.yaml"] + str(run.to_dictionary())
    state = git_state()
    assert run.data.tags.get("mlflow.source.git.commit") == state.revision
    assert run.data.tags.get("git.dirty") == {True: "true", False: "false", None: None}[state.dirty]
    assert ("environment/uncommitted.diff" in stored) == bool(state.diff)


def test_artifacts_lie_beside_the_sqlite_file(uri, client):
    run_id = create_run(uri, Config.from_dict({"tracking": {"experiment": "beside"}}), "name")
    store = Path(uri.removeprefix("sqlite:///")).parent
    assert client.get_run(run_id).info.artifact_uri.startswith((store / "artifacts").as_uri())


def test_params_of_other_assigners_are_left_out():
    params = flat_params(Config.from_dict({"assign": {"name": "max_iou"}}))
    assert params["assign.name"] == "max_iou"
    assert "assign.pos_threshold" in params
    assert "assign.sigma" not in params
    assert "assign.sigma" in flat_params(Config())


def test_params_too_long_for_mlflow_are_in_the_config_file_only(uri, client, tmp_path):
    config = Config.from_dict({"data": {"train": "/" + "x" * 7000}})
    run_id = create_run(uri, config, "long")
    assert "data.train" not in client.get_run(run_id).data.params
    assert "x" * 7000 in Path(
        client.download_artifacts(run_id, "config.yaml", str(tmp_path))
    ).read_text().replace("\n", "")


def test_a_deleted_experiment_is_named(uri, client):
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(UserError, match="'gone' was deleted"):
        create_run(uri, Config.from_dict({"tracking": {"experiment": "gone"}}), "name")


def test_resume_and_finish(uri, client, run_id, tmp_path):
    assert finish_run(uri, run_id, tmp_path, "FAILED")
    assert client.get_run(run_id).info.status == "FAILED"
    resume_run(uri, run_id)
    resume_run(uri, run_id)
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["resumes"]) == ("RUNNING", "2")
    with pytest.raises(UserError, match="does not exist"):
        resume_run(uri, "0" * 32)


def test_an_end_without_a_server_waits_for_one(uri, client, run_id, tmp_path, caplog):
    away = f"http://127.0.0.1:{closed_port()}"
    assert not finish_run(away, run_id, tmp_path, "KILLED", "a reason", timeout=0)
    assert "waits in" in caplog.text
    with Tracker(uri, run_id, tmp_path, system_metrics=False):
        pass
    run = client.get_run(run_id)
    assert run.info.status == "KILLED"
    assert [v for k, v in run.data.tags.items() if k.startswith("history.")] == ["KILLED: a reason"]


# Rank 0's tracker


def test_everything_logged_arrives(uri, client, run_id, tmp_path):
    spool = tmp_path / "spool"
    file = tmp_path / "notes.txt"
    file.write_text("a note")
    figure = Figure()
    figure.add_subplot().plot([0, 1])
    with Tracker(uri, run_id, spool, system_metrics=False) as tracker:
        for step in range(1200):
            tracker.log({"loss": 1 / (step + 1), "val/AP é": step}, step)
        tracker.tag("state", "good")
        tracker.artifact(file, "notes")
        file.unlink()
        tracker.text("more", "notes/more.txt")
        tracker.picture(np.zeros((4, 5, 3), np.uint8), "pictures/black.png")
        tracker.figure(figure, "curve.png")
    assert points(client, run_id, "loss") == [(s, 1 / (s + 1)) for s in range(1200)]
    assert len(points(client, run_id, "val/AP é")) == 1200
    assert client.get_run(run_id).data.tags["state"] == "good"
    names = {
        f.path
        for folder in ("", "notes", "pictures")
        for f in client.list_artifacts(run_id, folder)
    }
    assert {"notes/notes.txt", "notes/more.txt", "pictures/black.png", "curve.png"} <= names
    assert not spool.exists()


def test_a_resumed_training_doubles_no_point(uri, client, run_id, tmp_path):
    with Tracker(uri, run_id, tmp_path, system_metrics=False) as tracker:
        for step in range(10):
            tracker.log({"loss": float(step)}, step)
    with Tracker(uri, run_id, tmp_path, system_metrics=False) as tracker:
        for step in range(6, 15):
            tracker.log({"loss": float(step)}, step)
        tracker.log({"only later": 1.0}, 3)
    assert points(client, run_id, "loss") == [(step, float(step)) for step in range(15)]
    assert points(client, run_id, "only later") == [(3, 1.0)]


def test_not_a_number_and_infinity_are_kept(uri, client, run_id, tmp_path):
    with Tracker(uri, run_id, tmp_path, system_metrics=False) as tracker:
        tracker.log({"loss": float("nan")}, 0)
        tracker.log({"loss": float("inf")}, 1)
        tracker.log({"loss": 1.0}, 2)
    values = [value for _, value in points(client, run_id, "loss")]
    assert np.isnan(values[0])
    assert values[1] > 1e300
    assert values[2] == 1.0


def test_a_server_that_is_away_costs_nothing_and_loses_nothing(
    uri, client, run_id, tmp_path, caplog
):
    away = f"http://127.0.0.1:{closed_port()}"
    tracker = Tracker(away, run_id, tmp_path / "spool", system_metrics=False)
    before = time.monotonic()
    for step in range(100):
        tracker.log({"loss": float(step)}, step)
    tracker.text("kept", "kept.txt")
    assert time.monotonic() - before < 1.0
    assert not tracker.close(timeout=0.5)
    assert time.monotonic() - before < 10.0
    assert "waits in" in caplog.text

    with Tracker(uri, run_id, tmp_path / "spool", system_metrics=False) as tracker:
        tracker.log({"loss": 100.0}, 100)
    assert points(client, run_id, "loss") == [(step, float(step)) for step in range(101)]
    assert [f.path for f in client.list_artifacts(run_id)] == ["kept.txt"]
    assert not (tmp_path / "spool").exists()


def test_a_batch_that_arrived_without_its_answer_is_not_doubled(
    uri, client, run_id, tmp_path, monkeypatch
):
    from mlflow import MlflowClient

    send, failures = MlflowClient.log_batch, iter([ConnectionError("answer lost")])

    def answer_lost(self, *arguments, **options):
        send(self, *arguments, **options)
        for failure in failures:
            raise failure

    monkeypatch.setattr(MlflowClient, "log_batch", answer_lost)
    with Tracker(uri, run_id, tmp_path, system_metrics=False) as tracker:
        for step in range(5):
            tracker.log({"loss": float(step)}, step)
    assert points(client, run_id, "loss") == [(step, float(step)) for step in range(5)]


def test_a_refused_metric_holds_up_no_other(uri, client, run_id, tmp_path, caplog):
    with Tracker(uri, run_id, tmp_path, system_metrics=False) as tracker:
        tracker.log({"x" * 300: 1.0, "loss": 1.0}, 0)
    assert points(client, run_id, "loss") == [(0, 1.0)]
    assert "refused metric" in caplog.text


def test_wrong_calls_are_reported_and_never_raise(uri, run_id, tmp_path, caplog):
    with Tracker(uri, run_id, tmp_path, system_metrics=False) as tracker:
        tracker.log({"loss": "no number"}, 0)
        tracker.artifact(tmp_path / "absent.txt")
        tracker.picture(np.zeros((2, 2, 7), np.uint8), "odd.png")
    assert caplog.text.count("was not recorded") == 3


def test_the_machine_is_sampled(uri, client, run_id, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.tracking.tracker._SAMPLE_SECONDS", 0.1)
    with Tracker(uri, run_id, tmp_path):
        time.sleep(2.5)
    metrics = client.get_run(run_id).data.metrics
    assert 0 <= metrics[f"system/{NODE}/system_memory_usage_percentage"] <= 100
    steps = [step for step, _ in points(client, run_id, f"system/{NODE}/disk_usage_percentage")]
    assert len(steps) == len(set(steps)) >= 2


def test_each_node_has_a_group_of_its_own(uri, client, run_id, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.tracking.tracker._SAMPLE_SECONDS", 0.1)
    trackers = []
    for node in ("one", "other/odd"):
        monkeypatch.setattr("platform.node", lambda node=node: node)
        trackers.append(Tracker(uri, run_id, tmp_path))
    time.sleep(1.5)
    for tracker in trackers:
        tracker.close()
    names = set(client.get_run(run_id).data.metrics)
    for node in ("one", "other_odd"):
        assert f"system/{node}/system_memory_usage_percentage" in names


def test_system_load_is_plausible():
    sampler = SystemSampler()
    deadline = time.monotonic() + 0.3
    while time.monotonic() < deadline:
        pass
    metrics = sampler()
    assert 0 < metrics[f"system/{NODE}/cpu_utilization_percentage"] <= 100
    assert metrics[f"system/{NODE}/system_memory_usage_megabytes"] > 100


# Full disks


class FullDisk:
    """No room for data in some folders, and in files of theirs that are open."""

    def __init__(self, monkeypatch, *folders):
        self.folders, self.full = folders, False
        write, mkdir = os.write, Path.mkdir

        def refused(path):
            if self.full and any(str(path).startswith(str(folder)) for folder in self.folders):
                raise OSError(errno.ENOSPC, "No space left on device", str(path))

        def checked_write(descriptor, data):
            refused(os.readlink(f"/proc/self/fd/{descriptor}"))
            return write(descriptor, data)

        def checked_mkdir(path, *arguments, **options):
            refused(path)
            return mkdir(path, *arguments, **options)

        monkeypatch.setattr(os, "write", checked_write)
        monkeypatch.setattr(Path, "mkdir", checked_mkdir)


@pytest.mark.parametrize("cache_too", [False, True])
def test_a_disk_that_fills_up_keeps_nothing_from_a_store_that_answers(
    uri, client, run_id, tmp_path, monkeypatch, cache_too, caplog
):
    spool, cache = tmp_path / "spool", tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    disk = FullDisk(monkeypatch, spool, *([cache] if cache_too else []))
    with Tracker(uri, run_id, spool, system_metrics=False) as tracker:
        for step in range(50):
            tracker.log({"loss": float(step)}, step)
            disk.full = step >= 20
        if not cache_too:
            tracker.text("more", "notes/more.txt")
    assert points(client, run_id, "loss") == [(step, float(step)) for step in range(50)]
    if not cache_too:
        assert [f.path for f in client.list_artifacts(run_id, "notes")] == ["notes/more.txt"]
    assert finish_run(uri, run_id, spool, "FAILED", "full")  # begins on a full disk
    assert client.get_run(run_id).info.status == "FAILED"
    assert not list(tmp_path.rglob("*.jsonl"))
    assert "found no room" not in caplog.text


def test_what_a_full_disk_could_not_hold_is_sent_from_the_cache(
    uri, client, run_id, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    disk = FullDisk(monkeypatch, tmp_path / "runs")
    disk.full = True
    away = f"http://127.0.0.1:{closed_port()}"
    folder = tmp_path / "runs" / "one" / "tracking"
    assert not finish_run(away, run_id, folder, "KILLED", timeout=0)
    (sent,) = sync(tmp_path / "runs", uri, lambda: uri)
    assert sent.complete
    assert client.get_run(run_id).info.status == "KILLED"


def test_what_only_memory_held_at_the_end_is_counted(run_id, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    disk = FullDisk(monkeypatch, tmp_path)
    disk.full = True
    away = f"http://127.0.0.1:{closed_port()}"
    assert not finish_run(away, run_id, tmp_path / "spool", "KILLED", timeout=0)
    assert "2 records found no room" in caplog.text


@pytest.mark.integration
def test_a_fresh_sqlite_file_is_opened_by_many_processes_at_once(tmp_path):
    code = (
        "import sys; from pipeline.config import Config, TrackingConfig\n"
        "from pipeline.tracking import create_run, resolve_uri\n"
        "uri = resolve_uri(TrackingConfig(uri=sys.argv[1])); create_run(uri, Config(), 'n')"
    )
    command = [sys.executable, "-c", code, f"sqlite:///{tmp_path}/new/mlflow.db"]
    started = [subprocess.Popen(command, cwd=ROOT) for _ in range(5)]
    assert [process.wait(120) for process in started] == [0] * 5
    client = connect(command[-1])
    experiment = client.get_experiment_by_name("detection")
    assert len(client.search_runs([experiment.experiment_id])) == 5


def test_logging_is_cheap(tmp_path, caplog):
    caplog.set_level(logging.ERROR)
    tracker = Tracker(f"http://127.0.0.1:{closed_port()}", "0" * 32, tmp_path, system_metrics=False)
    before = time.perf_counter()
    for step in range(1000):
        tracker.log({"loss": 1.0, "lr": 0.1, "norm": 2.0}, step)
    assert time.perf_counter() - before < 2.0  # 2 ms a step at worst, under load
    tracker.close(timeout=0)


# Beginnings


def test_a_driver_killed_at_the_beginning_finds_its_run_again(uri, client, tmp_path, monkeypatch):
    config = Config.from_dict({"tracking": {"experiment": "begun"}})

    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.tracking.begin._record", killed)
        with pytest.raises(Killed):
            create_run(uri, config, "one", spool=tmp_path)
    run_id = create_run(uri, config, "one", spool=tmp_path)
    (run,) = client.search_runs([client.get_experiment_by_name("begun").experiment_id])
    assert (run.info.run_id, run.info.status) == (run_id, "RUNNING")
    assert run.data.params["train.epochs"] == "20.0"
    # Nor does one that is killed before it has noted the run.
    assert create_run(uri, config, "one", spool=tmp_path) == run_id
    forget_beginning(tmp_path, run_id)
    assert create_run(uri, config, "one", spool=tmp_path) != run_id  # the name begun anew


def test_a_beginning_with_another_configuration_makes_a_run_of_its_own(uri, client, tmp_path):
    first = Config.from_dict({"tracking": {"experiment": "changed"}})
    begun = create_run(uri, first, "one", spool=tmp_path)  # and then the driver is killed
    changed = first.replace({"train.lr": 0.5})
    run_id = create_run(uri, changed, "one", spool=tmp_path)
    assert run_id != begun and client.get_run(begun).info.status == "KILLED"
    assert client.get_run(run_id).data.params["train.lr"] == "0.5"
    assert create_run(uri, changed, "one", spool=tmp_path) == run_id


def test_several_processes_may_reach_the_store_first(uri, client, tmp_path):
    away = f"http://127.0.0.1:{closed_port()}"
    config = Config.from_dict({"tracking": {"experiment": "late", "required": False}})
    run_id = create_run(away, config, "late", spool=tmp_path)
    trackers = [Tracker(uri, run_id, tmp_path, system_metrics=False) for _ in range(4)]
    for number, tracker in enumerate(trackers):
        tracker.log({f"loss{number}": 1.0}, 1)
    sent = [tracker.close() for tracker in trackers]
    assert sent == [True] * 4
    (run,) = client.search_runs([client.get_experiment_by_name("late").experiment_id])
    assert {tracker.run_id for tracker in trackers} == {run.info.run_id}
    assert run.data.metrics == {f"loss{number}": 1.0 for number in range(4)}
    assert not tmp_path.exists()


def test_a_gap_behind_the_last_step_is_filled(uri, client, run_id, tmp_path):
    away = Tracker(
        f"http://127.0.0.1:{closed_port()}", run_id, tmp_path / "a", system_metrics=False
    )
    for step in range(5, 10):
        away.log({"loss": float(step)}, step)
    away.close(timeout=0)
    with Tracker(uri, run_id, tmp_path / "b", system_metrics=False) as tracker:
        for step in (*range(7), *range(10, 15)):
            tracker.log({"loss": float(step)}, step)
    with Tracker(uri, run_id, tmp_path / "a", system_metrics=False):
        pass
    assert sorted(points(client, run_id, "loss")) == [(step, float(step)) for step in range(15)]


def test_a_living_process_keeps_its_spool(uri, client, run_id, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "runs" / "one" / "tracking"
    away = f"http://127.0.0.1:{closed_port()}"
    with Tracker(uri, run_id, folder, system_metrics=False) as living:
        dead = Tracker(away, run_id, folder, system_metrics=False)
        dead.log({"loss": 1.0}, 1)
        dead.close(timeout=0)
        (sent,) = sync(tmp_path / "runs", uri, lambda: uri)
        assert sent.complete
        assert points(client, run_id, "loss") == [(1, 1.0)]
        living.log({"loss": 2.0}, 2)
    assert points(client, run_id, "loss") == [(1, 1.0), (2, 2.0)]
    assert sync(tmp_path / "runs", uri, lambda: uri) == []
