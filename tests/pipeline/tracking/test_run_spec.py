"""Runs that are begun by a driver that dies, twice, or where no store answers."""

import pytest

from pipeline.config import Config
from pipeline.tracking import Tracker, create_run, forget_beginning
from tests.ports import free_port


def test_a_driver_killed_at_the_beginning_finds_its_run_again(uri, client, tmp_path, monkeypatch):
    config = Config.from_dict({"tracking": {"experiment": "begun"}})

    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.tracking.run_spec._record", killed)
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
    away = f"http://127.0.0.1:{free_port()}"
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
