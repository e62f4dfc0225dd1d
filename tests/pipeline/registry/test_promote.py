"""Promotion and rollback of the champion alias."""

import json

import pytest

from pipeline.errors import UserError
from pipeline.registry import load_detector, promote, rollback
from pipeline.tracking import connect
from tests.stores import new_store


@pytest.fixture
def uri(tmp_path):
    uri = new_store(tmp_path)
    client = connect(uri)
    client.create_registered_model("shapes")
    for _ in range(3):
        client.create_model_version("shapes", source=f"{tmp_path}/model")
    return uri


def test_promote_keeps_the_previous_champion_and_rollback_swaps_them(uri):
    assert promote(uri, "shapes", 1) == ("shapes", 1, None, True)
    assert promote(uri, "shapes", 3) == ("shapes", 3, 1, True)
    assert promote(uri, "shapes", 3) == ("shapes", 3, 1, False)
    assert rollback(uri, "shapes") == ("shapes", 1, 3, True)
    assert rollback(uri, "shapes") == ("shapes", 3, 1, True)
    assert connect(uri).get_registered_model("shapes").aliases == {"champion": 3, "previous": 1}


def test_promotions_are_logged_with_user_time_and_versions(uri, monkeypatch):
    monkeypatch.setenv("LOGNAME", "ada")
    promote(uri, "shapes", 1)
    promote(uri, "shapes", 2)
    rollback(uri, "shapes")
    client = connect(uri)
    tags = client.get_registered_model("shapes").tags
    log = [json.loads(tags[key]) for key in sorted(tags)]
    assert [(e["action"], e["from"], e["to"], e["by"]) for e in log] == [
        ("promote", None, 1, "ada"),
        ("promote", 1, 2, "ada"),
        ("rollback", 2, 1, "ada"),
    ]
    assert all(entry["at"].endswith("+00:00") for entry in log)
    assert client.get_model_version("shapes", "2").tags["promotion.from"] == "1"


def test_unknown_names_and_versions_list_what_exists(uri, tmp_path):
    with pytest.raises(UserError, match="'shape' does not exist .*registered: shapes"):
        promote(uri, "shape", 1)
    with pytest.raises(UserError, match="no version 7; versions: 1, 2, 3"):
        promote(uri, "shapes", 7)
    with pytest.raises(UserError, match="none is registered"):
        promote(new_store(tmp_path / "empty"), "shapes", 1)
    with pytest.raises(UserError, match="no previous champion"):
        rollback(uri, "shapes")


def test_champion_is_loaded_by_alias(registered):
    promote(registered.uri, "shapes", 2)
    assert load_detector("models:/shapes@champion", registered.uri).classes[0] == "cat"
