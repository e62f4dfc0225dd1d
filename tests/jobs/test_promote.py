import json
import sys

import pytest

from jobs import promote
from jobs._cli import run_job
from pipeline.errors import OutageError
from pipeline.tracking import connect
from tests.stores import new_store


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    folder = tmp_path_factory.mktemp("registry")
    uri = new_store(folder)
    client = connect(uri)
    client.create_registered_model("shapes")
    for _ in range(2):
        client.create_model_version("shapes", source=f"{folder}/model")
    return uri


def test_promote_twice_and_roll_back(uri, capsys):
    options = ["shapes", "--tracking.uri", uri]
    assert promote.main([*options, "--version", "1"])["changed"]
    assert "version 1 is now the champion (no previous version)" in capsys.readouterr().err
    assert promote.main([*options, "--version", "2"])["previous"] == 1
    assert not promote.main([*options, "--version", "2"])["changed"]
    assert "version 2 is already the champion" in capsys.readouterr().err
    assert promote.main([*options, "--rollback"])["champion"] == 1
    assert connect(uri).get_model_version_by_alias("shapes", "champion").version == 1


def test_json_is_one_line_on_stdout(uri, capfd):
    run_job(promote.main, ["shapes", "--version", "2", "--tracking.uri", uri, "--json"])
    sys.stdout.flush()
    (line,) = capfd.readouterr().out.splitlines()
    answer = json.loads(line)
    assert answer["champion"] == 2
    assert answer["model_uri"] == "models:/shapes@champion"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shapes"], "give either --version V or --rollback"),
        (["shapes", "--version", "1", "--rollback"], "give either"),
        (["shapes", "--version", "one"], "--version"),
        (["shapes", "--version", "9"], "no version 9; versions: 1, 2"),
        (["squares", "--version", "1"], "'squares' does not exist"),
    ],
)
def test_user_errors_are_one_line_and_exit_code_2(uri, arguments, message, capfd):
    with pytest.raises(SystemExit) as stop:
        run_job(promote.main, [*arguments, "--tracking.uri", uri])
    assert stop.value.code == 2
    error = capfd.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_unreachable_server_is_named():
    with pytest.raises(OutageError, match="127.0.0.1:9 cannot be reached"):
        promote.main(["shapes", "--version", "1", "--tracking.uri", "http://127.0.0.1:9"])
