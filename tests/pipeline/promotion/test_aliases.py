"""Test the moves of the champion: one at a time, all of them kept, and undone as a whole."""

import threading

import pytest

from pipeline.errors import OutageError, UserError
from pipeline.promotion import aliases
from pipeline.promotion.aliases import (
    ChampionChangedError,
    Move,
    MoveUnfinishedError,
    champions,
    claim,
    read_moves,
)
from pipeline.tracking import connect
from tests.stores import new_store


@pytest.fixture
def uri(tmp_path) -> str:
    uri = new_store(tmp_path)
    client = connect(uri)
    client.create_registered_model("shapes")
    for _ in range(9):
        client.create_model_version("shapes", source=f"{tmp_path}/model")
    return uri


def move(before: int | None, after: int, action: aliases.Action = "promote") -> Move:
    return Move(action, before, after, "ada", aliases.now(), "because")


def move_champion(client, uri: str, name: str, move: Move, previous: int | None) -> None:
    with claim(client, name) as still_claimed:
        aliases.move_champion(client, uri, name, move, previous, still_claimed)


def current(uri: str) -> dict[str, int]:
    found = connect(uri).get_registered_model("shapes").aliases
    return {alias: int(version) for alias, version in found.items()}


@pytest.mark.parametrize(
    ("actions", "expected"),
    [
        ([("promote", None, 1), ("promote", 1, 2), ("force", 2, 3)], [1, 2, 3]),
        ([("promote", None, 1), ("promote", 1, 2), ("rollback", 2, 1)], [1]),
        # Back twice reaches 1; a version that was rolled back may come again.
        (
            [
                ("promote", None, 1),
                ("promote", 1, 2),
                ("promote", 2, 3),
                ("rollback", 3, 2),
                ("rollback", 2, 1),
                ("promote", 1, 3),
            ],
            [1, 3],
        ),
        ([("promote", 7, 8)], [7, 8]),  # 7 became champion by other means
    ],
)
def test_rollback_follows_the_trail(actions, expected) -> None:
    moves = [move(before, after, action) for action, before, after in actions]
    assert champions(moves, {"champion": expected[-1]}) == expected


def test_aliases_that_were_set_by_hand_count() -> None:
    assert champions([], {"champion": 5, "previous": 4}) == [4, 5]
    assert champions([move(None, 1)], {"champion": 6}) == [1, 6]
    assert champions([], {}) == []


def test_moves_are_kept_and_read_in_their_order(uri: str) -> None:
    client = connect(uri)
    first, second = move(None, 1), move(1, 2)
    move_champion(client, uri, "shapes", first, None)
    move_champion(client, uri, "shapes", second, 1)
    assert current(uri) == {"champion": 2, "previous": 1}
    assert read_moves(client, "shapes") == [first, second]
    assert [key for key in client.get_registered_model("shapes").tags if "claim" in key] == []


def test_moves_of_earlier_versions_of_this_software_are_read(uri: str) -> None:
    text = '{"action": "promote", "from": null, "to": 1, "by": "ada", "at": "2026-01-01T00:00:00"}'
    connect(uri).set_registered_model_tag("shapes", "promotion.20260101T000000.000000Z", text)
    (old,) = read_moves(connect(uri), "shapes")
    assert (old.before, old.after, old.record) == (None, 1, "")


def test_of_two_promotions_at_once_one_wins_and_the_other_says_so(uri: str) -> None:
    move_champion(connect(uri), uri, "shapes", move(None, 1), None)
    results: dict[int, object] = {}
    gate = threading.Barrier(4)

    def promote(version: int) -> None:
        client = connect(uri)
        gate.wait()
        try:
            move_champion(client, uri, "shapes", move(1, version), 1)
            results[version] = "won"
        except ChampionChangedError as error:
            results[version] = str(error)

    threads = [threading.Thread(target=promote, args=(version,)) for version in (2, 3, 4, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [version for version, result in results.items() if result == "won"]
    assert current(uri) == {"champion": winner, "previous": 1}
    for version, result in results.items():
        if version != winner:
            assert f"version {winner} is the champion now, no longer version 1" in str(result)
    assert [item.after for item in read_moves(connect(uri), "shapes")] == [1, winner]


def test_claim_of_a_killed_process_expires(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aliases, "_CLAIM_SECONDS", 0.5)
    client = connect(uri)
    old = '{"by": "bob on far", "at": "2026-01-01T00:00:00+00:00"}'
    client.set_registered_model_tag("shapes", "promotion-claim.dead", old)
    move_champion(client, uri, "shapes", move(None, 1), None)
    assert current(uri) == {"champion": 1}
    assert "promotion-claim.dead" not in client.get_registered_model("shapes").tags


def test_living_claim_is_named(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aliases, "_PATIENCE_SECONDS", -29.5)
    monkeypatch.setattr(aliases, "_PAUSE_SECONDS", 0.1)
    client = connect(uri)
    value = f'{{"by": "bob on far", "at": "{aliases.now()}"}}'
    client.set_registered_model_tag("shapes", "promotion-claim.other", value)
    with pytest.raises(UserError, match="shapes is being promoted by bob on far"):
        move_champion(client, uri, "shapes", move(None, 1), None)
    assert current(uri) == {}


@pytest.mark.parametrize("failing", ["set_registered_model_alias", "set_registered_model_tag"])
def test_failed_move_changes_nothing(
    uri: str, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    client = connect(uri)
    move_champion(client, uri, "shapes", move(None, 1), None)
    move_champion(client, uri, "shapes", move(1, 2), 1)
    real = getattr(client, failing)

    def breaks(name: str, key: str, value: str) -> None:
        if key == "champion" or key.startswith("promotion."):
            raise ConnectionError("the registry is down")
        real(name, key, value)

    monkeypatch.setattr(client, failing, breaks)
    with pytest.raises(OutageError, match="the champion was not changed: the registry is down"):
        move_champion(client, uri, "shapes", move(2, 3), 2)
    assert current(uri) == {"champion": 2, "previous": 1}
    assert [item.after for item in read_moves(client, "shapes")] == [1, 2]


def test_move_whose_response_was_lost_is_done(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = connect(uri)
    real = client.set_registered_model_alias

    def loses(name: str, alias: str, version: str) -> None:
        real(name, alias, version)
        if alias == "champion":
            raise ConnectionError("no response")

    monkeypatch.setattr(client, "set_registered_model_alias", loses)
    move_champion(client, uri, "shapes", move(None, 1), None)
    assert current(uri) == {"champion": 1}
    assert [item.after for item in read_moves(client, "shapes")] == [1]


def test_move_whose_claim_was_taken_changes_nothing(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect(uri)
    real = client.set_registered_model_tag

    def steals(name: str, key: str, value: str) -> None:
        real(name, key, value)
        if key.startswith("promotion."):
            for tag in list(client.get_registered_model(name).tags):
                if tag.startswith("promotion-claim."):
                    client.delete_registered_model_tag(name, tag)

    monkeypatch.setattr(client, "set_registered_model_tag", steals)
    with pytest.raises((UserError, OutageError), match="another one has taken its turn"):
        move_champion(client, uri, "shapes", move(None, 1), None)
    assert current(uri) == {}
    assert read_moves(client, "shapes") == []


def test_move_that_can_not_be_undone_is_called_unknown(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect(uri)
    move_champion(client, uri, "shapes", move(None, 1), None)

    def down(*_: object) -> None:
        raise ConnectionError("the registry is down")

    def goes_down(name: str, alias: str, version: str) -> None:
        monkeypatch.setattr(client, "get_registered_model", down)
        down()

    monkeypatch.setattr(client, "set_registered_model_alias", goes_down)
    with pytest.raises(MoveUnfinishedError, match="not known whether.*run the same command again"):
        move_champion(client, uri, "shapes", move(1, 2), 1)


def test_interrupted_move_is_undone(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = connect(uri)
    move_champion(client, uri, "shapes", move(None, 1), None)
    move_champion(client, uri, "shapes", move(1, 2), 1)
    real = client.set_registered_model_alias

    def interrupted(name: str, alias: str, version: str) -> None:
        if alias == "champion":
            raise KeyboardInterrupt
        real(name, alias, version)

    monkeypatch.setattr(client, "set_registered_model_alias", interrupted)
    with pytest.raises(KeyboardInterrupt):
        move_champion(client, uri, "shapes", move(2, 3), 2)
    assert current(uri) == {"champion": 2, "previous": 1}
    assert [item.after for item in read_moves(client, "shapes")] == [1, 2]
    assert not [key for key in client.get_registered_model("shapes").tags if "claim" in key]
