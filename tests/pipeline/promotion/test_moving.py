"""Test that a promotion that ends anywhere leaves a state that the next command repairs."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from mlflow import MlflowClient

from pipeline.errors import OutageError, UserError
from pipeline.promotion import aliases
from pipeline.promotion.aliases import ChampionChangedError, read_moves
from pipeline.promotion.decision import Decision, end_record, write_record
from pipeline.promotion.moving import carry_out, recover, unfinished_move
from pipeline.tracking import connect
from tests.pipeline.promotion.conftest import aliases_of
from tests.stores import new_store

# The first call of the client that does not come to the registry any more, with its argument.
CLAIM = ("set_registered_model_tag", "promotion-claim.")
TRAIL = ("set_registered_model_tag", "promotion.2")
PREVIOUS = ("set_registered_model_alias", "previous")
CHAMPION = ("set_registered_model_alias", "champion")
TAGS = ("set_model_version_tag", "promotion.verdict")
LAST_TAG = ("set_model_version_tag", "promotion.record")
CANDIDATE = ("delete_registered_model_alias", "candidate")
END = ("set_terminated", "")


class Death(BaseException):
    """The end of a process: nothing that it does afterwards reaches the registry."""


@contextmanager
def dies(point: tuple[str, str]) -> Iterator[None]:
    """Let no call reach the registry from the first one with this method and argument on."""
    with pytest.MonkeyPatch.context() as patch:
        names = [name for name in vars(MlflowClient) if not name.startswith("_")]
        real = {name: getattr(MlflowClient, name) for name in names}
        dead = False

        def replacement(name: str):
            def call(*values: object, **options: object) -> object:
                nonlocal dead
                starts = any(str(value).startswith(point[1]) for value in values[1:])
                dead = dead or (name == point[0] and starts)
                if dead:
                    raise Death
                return real[name](*values, **options)

            return call

        for name in names:
            if callable(real[name]):
                patch.setattr(MlflowClient, name, replacement(name))
        with pytest.raises(Death):
            yield
        assert dead


@pytest.fixture
def uri(tmp_path, monkeypatch) -> str:
    """Return a store whose model has four versions; claims expire soon."""
    monkeypatch.setattr(aliases, "_CLAIM_SECONDS", 0.2)
    monkeypatch.setattr(aliases, "_PAUSE_SECONDS", 0.1)
    uri = new_store(tmp_path)
    client = connect(uri)
    client.create_registered_model("shapes")
    for _ in range(4):
        client.create_model_version("shapes", source=f"{tmp_path}/model")
    client.set_registered_model_alias("shapes", "candidate", "3")
    return uri


def move(uri: str, version: int, back: bool = False, previous: int | None = None) -> str:
    """Move the champion to a version as `promote` or `rollback` do; return the record."""
    client = connect(uri)
    recover(client, uri, "shapes")
    before = aliases_of(uri)
    decision = Decision(
        model="shapes",
        verdict="rolled back" if back else "promoted",
        reasons=["because"],
        version=version,
        champion_before=before.get("champion"),
        previous_before=before.get("previous"),
        by="ada",
        at=aliases.now(),
        machine="here",
    )
    record = write_record(client, decision)
    previous = previous if back else before.get("champion")
    carry_out(client, uri, decision, "rollback" if back else "promote", previous, record)
    return record


def status(uri: str, record: str) -> str:
    return str(connect(uri).get_run(record.removeprefix("runs:/").split("/")[0]).info.status)


@pytest.mark.parametrize("point", [TRAIL, PREVIOUS, CHAMPION, TAGS, LAST_TAG, CANDIDATE, END])
def test_promotion_that_died_is_completed_or_undone_by_the_next(uri, point, caplog) -> None:
    client = connect(uri)
    move(uri, 1)
    move(uri, 2)
    with dies(point):
        move(uri, 3)
    moved = point in (TAGS, LAST_TAG, CANDIDATE, END)
    assert aliases_of(uri)["champion"] == (3 if moved else 2)
    left = unfinished_move(client, "shapes")
    assert (left is None) == (point == TRAIL)
    assert recover(client, uri, "shapes") == (left is not None)
    assert ("interrupted move of the champion to version 3, by ada" in caplog.text) == bool(left)
    assert unfinished_move(client, "shapes") is None
    after = {"champion": 3, "previous": 2}
    assert aliases_of(uri) == (after if moved else {"candidate": 3, "champion": 2, "previous": 1})
    assert [item.after for item in read_moves(client, "shapes")] == [1, 2, 3][: 3 if moved else 2]
    if moved:
        record = read_moves(client, "shapes")[-1].record
        assert client.get_model_version("shapes", "3").tags["promotion.record"] == record
        assert status(uri, record) == "FINISHED"
    elif left is not None:
        assert status(uri, left.record) == "KILLED"
        move(uri, 3)
        assert aliases_of(uri) == after


@pytest.mark.parametrize("point", [PREVIOUS, CHAMPION, TAGS])
def test_rollback_that_died_is_completed_or_undone_by_the_next(uri, point) -> None:
    for version in (1, 2, 3):
        move(uri, version)
    with dies(point):
        move(uri, 2, back=True, previous=1)
    client = connect(uri)
    assert recover(client, uri, "shapes")
    moved = point == TAGS
    assert aliases_of(uri) == (
        {"champion": 2, "previous": 1} if moved else {"champion": 3, "previous": 2}
    )
    assert len(read_moves(client, "shapes")) == (4 if moved else 3)


@pytest.mark.parametrize("back", [False, True])
def test_aliases_that_were_set_by_hand_are_restored(uri, back) -> None:
    client = connect(uri)
    by_hand = {"candidate": 3, "champion": 2, "previous": 1}
    for alias, version in by_hand.items():
        client.set_registered_model_alias("shapes", alias, str(version))
    with dies(CHAMPION):
        move(uri, 1 if back else 3, back)
    assert recover(client, uri, "shapes")
    assert aliases_of(uri) == by_hand
    assert not read_moves(client, "shapes")


def test_lost_record_does_not_stop_the_repair(uri, monkeypatch) -> None:
    with dies(TAGS):
        move(uri, 3)

    def lost(*_: object) -> None:
        raise FileNotFoundError("decision.json")

    monkeypatch.setattr("pipeline.promotion.moving.read_record", lost)
    client = connect(uri)
    assert recover(client, uri, "shapes")
    tags = client.get_model_version("shapes", "3").tags
    assert (tags["promotion.verdict"], tags["promotion.by"]) == ("promoted", "ada")
    move(uri, 1)
    with dies(CHAMPION):
        move(uri, 2)
    assert recover(client, uri, "shapes")
    assert aliases_of(uri) == {"champion": 1, "previous": 3}


def test_record_without_a_move_is_ended_when_it_is_old(uri, monkeypatch) -> None:
    client = connect(uri)
    with dies(CLAIM):
        move(uri, 3)
    (run,) = client.search_runs([found.experiment_id for found in client.search_experiments()])
    assert not recover(client, uri, "shapes")
    assert status(uri, run.info.run_id) == "RUNNING"  # its process may be about to move
    monkeypatch.setattr("pipeline.promotion.decision._ABANDONED_SECONDS", 0.0)
    client.create_registered_model("other")
    assert not recover(client, uri, "other")
    assert status(uri, run.info.run_id) == "RUNNING"
    assert not recover(client, uri, "shapes")
    assert status(uri, run.info.run_id) == "KILLED"
    assert aliases_of(uri) == {"candidate": 3}


def promotion_of_version_2() -> Decision:
    """Return a decision of another machine, made while there was no champion."""
    return Decision(
        model="shapes",
        verdict="promoted",
        reasons=["because"],
        version=2,
        champion_before=None,
        previous_before=None,
        by="bob",
        at=aliases.now(),
        machine="there",
    )


def test_promotion_whose_record_was_ended_moves_nothing(uri) -> None:
    client = connect(uri)
    decision = promotion_of_version_2()
    record = write_record(client, decision)
    end_record(client, record, "KILLED")
    with pytest.raises(UserError, match="^shapes: the record of this decision was closed"):
        carry_out(client, uri, decision, "promote", None, record)
    assert aliases_of(uri) == {"candidate": 3}
    assert not read_moves(client, "shapes")


def test_record_of_the_slower_of_two_promotions_is_marked_as_failed(uri) -> None:
    client = connect(uri)
    move(uri, 1)
    decision = promotion_of_version_2()
    record = write_record(client, decision)
    with pytest.raises(ChampionChangedError, match="version 1 is the champion now, no longer none"):
        carry_out(client, uri, decision, "promote", None, record)
    assert status(uri, record) == "FAILED"
    assert unfinished_move(client, "shapes") is None


def test_tags_that_cannot_be_set_are_set_by_the_next_promotion(uri, monkeypatch, caplog) -> None:
    def down(*_: object) -> None:
        raise ConnectionError("the registry is down")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_model_version_tag", down)
        move(uri, 3)
    assert "not everything could be noted: the registry is down" in caplog.text
    client = connect(uri)
    assert aliases_of(uri) == {"candidate": 3, "champion": 3}
    assert recover(client, uri, "shapes")
    assert aliases_of(uri) == {"champion": 3}
    assert "promotion.verdict" in client.get_model_version("shapes", "3").tags


@pytest.mark.parametrize("refused", [False, True])
def test_claim_that_cannot_be_set_changes_nothing_and_says_so(uri, monkeypatch, refused) -> None:
    from mlflow.exceptions import RestException

    def fails(*_: object) -> None:
        if refused:
            raise RestException({"error_code": "PERMISSION_DENIED", "message": "not allowed"})
        raise ConnectionError("not allowed now")

    move(uri, 1)
    monkeypatch.setattr(MlflowClient, "set_registered_model_tag", fails)
    kind = UserError if refused else OutageError
    with pytest.raises(kind, match="^shapes: the champion was not changed: .*not allowed") as error:
        move(uri, 3)
    assert len(str(error.value).splitlines()) == 1
    assert aliases_of(uri) == {"candidate": 3, "champion": 1}
    assert [item.after for item in read_moves(connect(uri), "shapes")] == [1]
