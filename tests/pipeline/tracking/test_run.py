"""The records of a run when it is created, resumed and finished."""

import json
import uuid
from pathlib import Path

import pytest

from pipeline.config import Config
from pipeline.errors import OutageError, UserError
from pipeline.tracking import Tracker, create_run, finish_run, resume_run
from pipeline.tracking.provenance import git_state
from pipeline.tracking.run_spec import flat_params
from tests.ports import free_port


class Shapes:
    name = "shapes"
    content_hash = "ab" * 32


def test_create_run_records_config_revision_environment_and_data(
    uri, client, monkeypatch, tmp_path
):
    secret = uuid.uuid4().hex  # not a literal: the run may record a diff of this file
    monkeypatch.setenv("SOME_PASSWORD", secret)
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
    assert secret not in everything
    assert "s3cret" not in stored["config.yaml"] + str(run.to_dictionary())
    state = git_state()
    assert run.data.tags.get("mlflow.source.git.commit") == state.revision
    assert run.data.tags.get("git.dirty") == {True: "true", False: "false", None: None}[state.dirty]
    assert ("environment/uncommitted.diff" in stored) == bool(state.diff)


def test_artifacts_are_stored_next_to_the_sqlite_file(uri, client):
    run_id = create_run(uri, Config.from_dict({"tracking": {"experiment": "beside"}}), "name")
    store = Path(uri.removeprefix("sqlite:///")).parent
    assert client.get_run(run_id).info.artifact_uri.startswith((store / "artifacts").as_uri())


def test_stated_artifacts_hold_files_and_models_of_a_new_experiment(
    uri, client, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "shared"
    tracking = {"experiment": "stated", "artifacts": str(root)}
    run_id = create_run(uri, Config.from_dict({"tracking": tracking}), "name")
    experiment = client.get_experiment_by_name("stated")
    assert experiment.artifact_location == root.as_uri()
    assert list(root.rglob("config.yaml"))
    model = client.create_logged_model(experiment.experiment_id, "detector", run_id)
    assert model.artifact_location.startswith(root.as_uri())
    assert [path.name for path in tmp_path.iterdir()] == ["shared"]
    other = Config.from_dict({"tracking": {**tracking, "artifacts": "s3://bucket/x"}})
    with pytest.raises(UserError, match="stores its artifacts in file://.*, not in .*s3://"):
        create_run(uri, other, "name")


def test_params_of_other_assigners_are_omitted():
    params = flat_params(Config.from_dict({"assign": {"name": "max_iou"}}))
    assert params["assign.name"] == "max_iou"
    assert "assign.pos_threshold" in params
    assert "assign.sigma" not in params
    assert "assign.sigma" in flat_params(Config())


def test_params_too_long_for_mlflow_are_only_in_the_config_file(uri, client, tmp_path):
    config = Config.from_dict({"data": {"train": "/" + "x" * 7000}})
    run_id = create_run(uri, config, "long")
    assert "data.train" not in client.get_run(run_id).data.params
    assert "x" * 7000 in Path(
        client.download_artifacts(run_id, "config.yaml", str(tmp_path))
    ).read_text().replace("\n", "")


def test_create_run_in_a_deleted_experiment_names_it(uri, client):
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(UserError, match="'gone' was deleted"):
        create_run(uri, Config.from_dict({"tracking": {"experiment": "gone"}}), "name")


def test_resume_run_reopens_a_finished_run(uri, client, run_id, tmp_path):
    assert finish_run(uri, run_id, tmp_path, "FAILED")
    assert client.get_run(run_id).info.status == "FAILED"
    resume_run(uri, run_id)
    resume_run(uri, run_id)
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["resumes"]) == ("RUNNING", "2")
    with pytest.raises(UserError, match="does not exist"):
        resume_run(uri, "0" * 32)


def test_finish_run_without_server_queues_the_status(uri, client, run_id, tmp_path, caplog):
    away = f"http://127.0.0.1:{free_port()}"
    assert not finish_run(away, run_id, tmp_path, "KILLED", "a reason", timeout=0)
    assert "is queued in" in caplog.text
    with Tracker(uri, run_id, tmp_path, system_metrics=False):
        pass
    run = client.get_run(run_id)
    assert run.info.status == "KILLED"
    assert [v for k, v in run.data.tags.items() if k.startswith("history.")] == ["KILLED: a reason"]


@pytest.mark.parametrize("method", ["create_run", "log_batch", "log_text"])
def test_slow_store_is_one_line_and_creates_one_run(uri, client, tmp_path, monkeypatch, method):
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    call = getattr(MlflowClient, method)

    def responds_too_late(*arguments, **options):
        call(*arguments, **options)
        raise MlflowException("API request failed with timeout exception\nRead timed out.")

    config = Config.from_dict({"tracking": {"experiment": f"slow {method}"}})
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, method, responds_too_late)
        with pytest.raises(OutageError, match=r"^tracking\.uri sqlite.*timeout exception$"):
            create_run(uri, config, "one", spool=tmp_path)
        with pytest.raises(OutageError, match="timeout exception$"):
            create_run(uri, config, "another")
        optional = config.replace({"tracking.required": False})
        offline = create_run(uri, optional, "offline", spool=tmp_path / "offline")
        assert offline.startswith("offline-")
    run_id = create_run(uri, config, "one", spool=tmp_path)
    experiment = client.get_experiment_by_name(f"slow {method}").experiment_id
    runs = client.search_runs([experiment], "tags.mlflow.runName = 'one'")
    assert [run.info.run_id for run in runs] == [run_id]
    assert runs[0].info.status == "RUNNING"


def test_resume_run_of_a_slow_store_is_one_line_or_queued(
    uri, client, run_id, tmp_path, monkeypatch, capsys
):
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    def fail(*_, **__):
        raise MlflowException("timeout exception")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_tag", fail)
        with pytest.raises(OutageError, match="timeout exception"):
            resume_run(uri, run_id, tmp_path)
        assert resume_run(uri, run_id, tmp_path, required=False) == run_id
    assert "tracking.required is false" in capsys.readouterr().err
    assert finish_run(uri, run_id, tmp_path)
    assert any(key.startswith("history.") for key in client.get_run(run_id).data.tags)
