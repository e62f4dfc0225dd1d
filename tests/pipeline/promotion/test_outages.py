"""Promotions against a real MLflow server: at once, killed, and while the server is down."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from jobs import promote as job
from jobs.cli.common import run_job
from pipeline.config import Config
from pipeline.errors import OutageError, UserError
from pipeline.promotion import aliases
from pipeline.promotion.aliases import read_moves
from pipeline.promotion.promote import Options, promote, rollback
from pipeline.tracking import connect
from tests.limiting_proxy import LimitingProxy
from tests.mlflow_server import MlflowServer
from tests.pipeline.promotion.conftest import CLASSES, Store, add_version, aliases_of

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

# Promotes version 3, and dies just before the given call of the client with the given argument.
DIES = """
import os, signal, sys
from mlflow import MlflowClient
from pipeline.config import Config
from pipeline.promotion.promote import Options, promote, rollback

uri, name, action, method, argument = sys.argv[1:]
real = getattr(MlflowClient, method)

def dies(client, *values, **named):
    if any(str(value).startswith(argument) for value in values):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(client, *values, **named)

setattr(MlflowClient, method, dies)
config = Config.from_dict({"tracking": {"uri": uri}})
if action == "rollback":
    rollback(uri, name)
else:
    promote(uri, name, 3, None, config, Options(force="better light"))
"""
POINTS = {
    "after the record": ("set_registered_model_tag", "promotion-claim."),
    "between the aliases": ("set_registered_model_alias", "champion"),
    "before the tags": ("set_model_version_tag", "promotion.verdict"),
    "before the end of the record": ("set_terminated", ""),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def store(server: MlflowServer, request: pytest.FixtureRequest, monkeypatch) -> Store:
    """Return a store whose model has four versions, the champion 2 after 1; claims expire soon."""
    if server._process is None:
        server.start()
    monkeypatch.setattr(aliases, "_CLAIM_SECONDS", 3.0)
    name = request.node.name.replace("[", "-").replace("]", "").replace(" ", "-")
    config = Config.from_dict({"promote": {"resamples": 100}, "tracking": {"uri": server.uri}})
    runs = [add_version(server.uri, config, CLASSES, name) for _ in range(4)]
    made = Store(server.uri, runs, config, name)
    for version in (1, 2):
        force(made, version)
    return made


def force(store: Store, version: int):
    return promote(store.uri, store.name, version, None, store.config, Options(force="sure"))


def versions(store: Store) -> dict[str, int]:
    found = aliases_of(store.uri, store.name)
    return {alias: found[alias] for alias in ("champion", "previous") if alias in found}


def moves(store: Store) -> list[int]:
    return [move.after for move in read_moves(connect(store.uri), store.name)]


def run(store: Store, capfd: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    """Run the job; return its exit code and what it prints on stderr."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        run_job(job.main, [store.name, f"--tracking.uri={store.uri}", "--json", *options])
    return int(stop.value.code), capfd.readouterr().err


def test_of_promotions_at_once_one_wins_and_the_others_say_so(store, evaluate, scenes) -> None:
    gate = threading.Barrier(2)
    results: dict[int, str] = {}

    def run_one(version: int) -> None:
        waited = []

        def at_once(*arguments):
            found = evaluate(*arguments)
            if not waited:
                waited.append(gate.wait(60))
            return found

        try:
            promote(store.uri, store.name, version, scenes["test"], store.config, evaluate=at_once)
            results[version] = "won"
        except UserError as error:
            results[version] = str(error)

    threads = [threading.Thread(target=run_one, args=(version,)) for version in (3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [version for version, result in results.items() if result == "won"]
    (message,) = [result for result in results.values() if result != "won"]
    assert f"version {winner} is the champion now, no longer version 2" in message
    assert versions(store) == {"champion": winner, "previous": 2}
    assert moves(store) == [1, 2, winner]
    statuses = [run.info.status for run in records(store) if version_of(run) in ("3", "4")]
    assert sorted(statuses) == ["FAILED", "FINISHED"]


def records(store: Store) -> list:
    client = connect(store.uri)
    ids = [item.experiment_id for item in client.search_experiments()]
    return list(client.search_runs(ids, f"tags.`promotion.model` = '{store.name}'"))


def version_of(run) -> str:
    return run.data.tags["promotion.version"]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("action", ["promote", "rollback"])
def test_killed_process_is_repaired_by_the_next(store, point, action) -> None:
    command = [sys.executable, "-c", DIES, store.uri, store.name, action, *POINTS[point]]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    assert result.returncode == -signal.SIGKILL, result.stderr
    moved = point.startswith("before the")
    target = 3 if action == "promote" else 1
    assert versions(store)["champion"] == (target if moved else 2)
    if action == "promote":
        outcome = force(store, 3)
        assert outcome.decision.verdict == ("unchanged" if moved else "promoted")
        assert versions(store) == {"champion": 3, "previous": 2}
        assert moves(store) == [1, 2, 3]
    else:
        if moved:
            with pytest.raises(UserError, match="no previous champion"):
                rollback(store.uri, store.name)
        else:
            rollback(store.uri, store.name)
        assert versions(store) == {"champion": 1}
        assert moves(store) == [1, 2, 1]


def test_server_that_is_down_before_or_during_the_evaluation(
    store, server, evaluate, scenes, capfd
) -> None:
    server.kill()
    code, error = run(store, capfd, "--version=3", f"--data={scenes['test']}")
    assert (code, len(error.splitlines())) == (1, 1)
    assert f"tracking.uri {server.uri}" in error
    server.start()

    def goes_down(*arguments):
        server.kill()
        return evaluate(*arguments)

    with pytest.raises(
        OutageError, match="the decision cannot be recorded.*aliases stay"
    ) as raised:
        promote(store.uri, store.name, 3, scenes["test"], store.config, evaluate=goes_down)
    assert len(str(raised.value).splitlines()) == 1
    server.start()
    assert versions(store) == {"champion": 2, "previous": 1}


@pytest.mark.parametrize("alias", ["claim", "previous", "champion"])
def test_server_that_goes_down_between_record_and_alias(
    store, server, capfd, monkeypatch, alias
) -> None:
    from mlflow import MlflowClient

    method = "set_registered_model_tag" if alias == "claim" else "set_registered_model_alias"
    real = getattr(MlflowClient, method)

    def goes_down(client, name, key, value):
        if alias == "claim" or key == alias:
            server.kill()
        return real(client, name, key, value)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, method, goes_down)
        code, error = run(store, capfd, "--version=3", "--force", "--reason=light")
    assert (code, len(error.splitlines())) == (1, 1)
    assert ("was not changed" if alias == "claim" else "it is not known whether") in error
    server.start()
    assert versions(store)["champion"] == 2
    assert force(store, 3).decision.verdict == "promoted"
    assert versions(store) == {"champion": 3, "previous": 2}
    assert moves(store) == [1, 2, 3]


@pytest.mark.parametrize("status", [413, 500])
def test_record_that_the_server_refuses_moves_nothing(store, capfd, status) -> None:
    with LimitingProxy(store.uri, limit=600, status=status) as proxy:
        code, error = run(
            store._replace(uri=proxy.uri), capfd, "--version=3", "--force", f"--reason={'x' * 900}"
        )
    assert (code, len(error.splitlines())) == (2 if status == 413 else 1, 1)
    assert "the decision cannot be recorded, and the aliases stay" in error
    assert proxy.rejected == {"decision.json"}
    assert versions(store) == {"champion": 2, "previous": 1}
    assert [run.info.status for run in records(store) if version_of(run) == "3"] == ["FAILED"]
