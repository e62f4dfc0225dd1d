"""Test the job: one line per mistake, exit codes, and what it prints."""

import json
import sys

import pytest

from jobs import promote
from jobs.cli.common import run_job
from pipeline.data import load_manifest
from pipeline.errors import OutageError
from pipeline.tracking import connect
from tests.pipeline.conftest import scenes  # noqa: F401
from tests.pipeline.promotion.conftest import Store, add_version, store  # noqa: F401

LIMIT = "--promote.min_ap=0.9"  # more than an untrained detector has


@pytest.fixture
def shapes(store: Store, scenes) -> list[str]:  # noqa: F811
    """Return the options for a store whose version 5 fits the set, and that set."""
    add_version(store.uri, store.config, load_manifest(scenes["test"]).classes)
    return [
        *("shapes", f"--tracking.uri={store.uri}", f"--data={scenes['test']}"),
        "--promote.resamples=100",
    ]


def champion(store: Store) -> int | None:  # noqa: F811
    found = connect(store.uri).get_registered_model("shapes").aliases
    return int(found["champion"]) if "champion" in found else None


def test_refused_version_has_exit_code_3_and_one_line_of_json(shapes, store, capfd) -> None:  # noqa: F811
    with pytest.raises(SystemExit) as stop:
        run_job(promote.main, [*shapes, "--version=5", LIMIT, "--json"])
    assert stop.value.code == 3
    sys.stdout.flush()
    captured = capfd.readouterr()
    (line,) = captured.out.splitlines()
    answer = json.loads(line)
    assert (answer["verdict"], answer["champion"], answer["gain"]) == ("refused", None, None)
    assert answer["record"].startswith("runs:/")
    assert "shapes version 5: refused" in captured.err
    assert champion(store) is None


def test_forced_promotion_history_and_rollback(shapes, store, capsys) -> None:  # noqa: F811
    assert promote.main([*shapes, "--version=5"])["verdict"] == "promoted"
    assert promote.main([*shapes, "--version=5"])["verdict"] == "unchanged"
    no_data = [option for option in shapes if not option.startswith("--data=")]
    forced = promote.main([*no_data, "--version=2", "--force", "--reason=the camera is gone"])
    assert (forced["champion"], forced["previous"]) == (2, 5)
    assert "forced by" in capsys.readouterr().err
    history = promote.main([*no_data, "--history"])
    assert [move["action"] for move in history["moves"]] == ["promote", "force"]
    assert "the camera is gone" in capsys.readouterr().err
    back = promote.main([*no_data, "--rollback"])
    assert (back["verdict"], back["champion"], back["previous"]) == ("rolled back", 5, None)
    assert champion(store) == 5


def test_model_against_itself_is_refused(shapes, store, scenes) -> None:  # noqa: F811
    add_version(store.uri, store.config, load_manifest(scenes["test"]).classes)
    assert promote.main([*shapes, "--version=5"])["verdict"] == "promoted"
    result = promote.main([*shapes, "--version=6"])
    assert (result["verdict"], result["champion"]) == ("refused", 5)
    assert result["gain"] == {"ap": 0.0, "low": 0.0, "high": 0.0}
    dry = promote.main([*shapes, "--version=6", "--promote.min_gain=-0.5", "--dry-run"])
    assert (dry["verdict"], dry["champion"], dry["record"]) == ("promoted", 5, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one of --version V, --rollback and --history"),
        (["--version=1", "--rollback"], "give one of"),
        (["--version=one"], "--version"),
        (["--version=9"], "no version 9; versions: 1, 2, 3, 4, 5"),
        (["--version=1", "--force"], "--force needs --reason TEXT"),
        (["--rollback", "--force", "--reason=x"], "--force is for --version"),
        (["--version=1"], "they must be the same"),
        (["--rollback"], "no previous champion"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(shapes, arguments, message, capfd) -> None:
    with pytest.raises(SystemExit) as stop:
        run_job(promote.main, [*shapes, *arguments])
    assert stop.value.code == 2
    error = capfd.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_unreachable_server_is_named() -> None:
    with pytest.raises(OutageError, match="127.0.0.1:9 cannot be reached"):
        promote.main(["shapes", "--version", "1", "--tracking.uri", "http://127.0.0.1:9"])
