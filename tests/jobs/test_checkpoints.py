"""`jobs.checkpoints` on a folder with intact, damaged and incomplete checkpoints."""

import os
import time
from pathlib import Path

import pytest
import torch

from jobs import checkpoints
from pipeline.checkpoints.store import CheckpointStore
from pipeline.errors import TrainingFailed, UserError
from pipeline.training.run_record import RunRecord
from tests.pipeline.checkpoints.examples import example_meta


@pytest.fixture
def run(tmp_path: Path) -> Path:
    store = CheckpointStore(tmp_path / "one")
    for step, ap in ((2, 0.1), (4, 0.5), (6, 0.3), (8, 0.2)):
        meta = example_meta(step, ap=ap, config={"train": {"keep_checkpoints": 2}})
        store.save({"model": {"x": torch.full((9,), float(step))}}, meta)
    half = tmp_path / "one" / "step-00000009"
    half.mkdir()
    (half / "state.pt").write_bytes(b"half")
    return tmp_path / "one"


def names(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in run.iterdir())


def test_list_shows_all_checkpoints_and_problems(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = checkpoints.main(["list", str(run)])
    assert [row["name"][-1] for row in result["checkpoints"]] == ["2", "4", "6", "8", "9"]
    assert result["checkpoints"][1]["score"] == 0.5
    assert len(result["checkpoints"][0]["weights_sha256"]) == 64
    lines = capsys.readouterr().out.splitlines()
    assert "epoch 2.00  val/ap 0.5000" in lines[1]
    assert lines[4] == "step-00000009  not complete"


def test_verify_fails_only_on_damage(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(checkpoints.main(["verify", str(run)])["checkpoints"]) == 5
    assert capsys.readouterr().out.endswith("valid: 4 checkpoints\n")
    state = run / "step-00000004" / "state.pt"
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 1
    state.write_bytes(bytes(data))
    with pytest.raises(TrainingFailed, match="damaged: step-00000004"):
        checkpoints.main(["verify", str(run)])


def test_prune_keeps_as_many_as_the_run(run: Path) -> None:
    would = checkpoints.main(["prune", str(run), "--dry-run"])["deleted"]
    assert names(run) == [2, 4, 6, 8, 9]
    assert checkpoints.main(["prune", str(run)])["deleted"] == would == ["step-00000002"]
    assert names(run) == [4, 6, 8, 9]  # 9 may still be written
    an_hour_ago = time.time() - 3600
    os.utime(run / "step-00000009" / "state.pt", (an_hour_ago, an_hour_ago))
    checkpoints.main(["prune", str(run), "--keep", "1"])
    assert names(run) == [4, 8]


def test_prune_is_refused_while_the_run_is_trained(run: Path) -> None:
    driver = RunRecord(str(run.parent), run.name)
    driver.hold()
    try:
        assert checkpoints.main(["prune", str(run), "--dry-run"])["deleted"]
        with pytest.raises(UserError, match=r"'one' is being trained by process \d+"):
            checkpoints.main(["prune", str(run)])
    finally:
        driver.close()
    assert names(run) == [2, 4, 6, 8, 9]
    checkpoints.main(["prune", str(run)])
    assert names(run) == [4, 6, 8, 9]


def test_relative_folder_is_accepted(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    assert len(checkpoints.main(["list", "one"])["checkpoints"]) == 5


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("list", "/nowhere"), "/nowhere contains no checkpoints; give a run's folder"),
        (("list", "nosuch://x/y"), "not an absolute path or URI"),
        (("prune", "{run}", "--keep", "0"), "keep at least 1"),
        (("forget", "{run}"), "invalid choice: 'forget'"),
    ],
)
def test_user_errors_are_one_line(run: Path, arguments: tuple[str, ...], expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        checkpoints.main([argument.format(run=run) for argument in arguments])
    assert "\n" not in str(caught.value)
