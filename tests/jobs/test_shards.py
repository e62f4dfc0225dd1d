"""The job that looks into shard sets."""

from pathlib import Path

import pytest

from jobs import prepare, shards
from pipeline.errors import UserError


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    arguments = ["--source", "shapes", "--count", "7", "--size", "64", "--shard-samples", "3"]
    prepare.main([*arguments, "--out", str(tmp_path / "scenes")])
    return tmp_path / "scenes"


def test_a_sound_set_is_said_to_be_so(scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = shards.main(["verify", str(scenes)])
    assert (result["samples"], result["shards"]) == (7, 3)
    assert "sound: 7 samples in 3 shards" in capsys.readouterr().out


def test_every_fault_is_a_line(scenes: Path) -> None:
    with (scenes / "shard-000001.tar").open("r+b") as file:
        file.truncate(700)
    (scenes / "shard-000002.tar").unlink()
    with pytest.raises(UserError) as caught:
        shards.main(["verify", str(scenes)])
    text = str(caught.value)
    assert "shard-000001.tar: cut at byte 700, inside member '000000003.jpg'" in text
    assert "shard-000002.tar: absent" in text and "samples 7, the shards have 3" in text


@pytest.mark.parametrize("arguments", [[], ["verify"], ["mend", "x"]])
def test_a_wrong_command_is_one_line(arguments: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        shards.main(arguments)
    assert "\n" not in str(caught.value)
