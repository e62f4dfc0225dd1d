"""One checkpoint: complete or absent, verified, loaded without executing code."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.checkpoints.format import (
    DamagedCheckpoint,
    add_evaluation,
    load_averaged_weights,
    load_meta,
    load_state,
    save_checkpoint,
    tensors_sha256,
    verify_checkpoint,
)
from pipeline.checkpoints.meta import EarlyStoppingState
from pipeline.errors import UserError
from tests.pipeline.checkpoints.examples import BrokenStorage, example_meta

ROOT = Path(__file__).parents[3]


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "b.weight": torch.randn(4, 3, 5, 5, generator=generator).to(
            memory_format=torch.channels_last
        ),
        "a.count": torch.tensor(7),
        "a.half": torch.randn(6, generator=generator).bfloat16(),
        "none": torch.empty(0),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    state = {"model": weights(), "ema": {"x": torch.ones(2)}, "step": 3, "list": [1, (2.5, None)]}
    meta = example_meta(step=3, ap=0.1 + 0.2, config={"deep": {"b": [1]}})
    save_checkpoint(tmp_path / "one", state, meta)
    return tmp_path / "one"


def test_load_returns_what_was_saved(folder: Path) -> None:
    state, meta = load_state(folder), load_meta(str(folder))
    assert meta.metrics == {"val/ap": 0.1 + 0.2}
    assert meta.config == {"deep": {"b": [1]}}
    assert (state["step"], state["list"]) == (3, [1, (2.5, None)])
    for name, value in weights().items():
        assert torch.equal(state["model"][name], value)
        assert state["model"][name].dtype == value.dtype
    assert load_averaged_weights(folder)["x"].tolist() == [1.0, 1.0]
    assert sorted(path.name for path in folder.iterdir()) == ["meta.json", "state.pt"]
    assert verify_checkpoint(folder) == meta


def test_tensors_sha256_is_over_the_bytes_of_sorted_tensors(folder: Path) -> None:
    digest = hashlib.sha256()
    state = load_state(folder)["model"]
    for name in sorted(state):
        value = state[name].contiguous()
        raw = value.view(torch.int16) if value.dtype == torch.bfloat16 else value
        digest.update(raw.numpy().tobytes())
    assert tensors_sha256(state) == digest.hexdigest() == load_meta(folder).weights_sha256
    assert load_meta(folder).ema_sha256 == tensors_sha256({"x": torch.ones(2)})
    one_off = {**state, "a.count": torch.tensor(8)}
    assert tensors_sha256(one_off) != tensors_sha256(state)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x04
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.999])
@pytest.mark.parametrize("name", ["state.pt", "meta.json"])
def test_flipped_bit_is_detected(folder: Path, name: str, share: float) -> None:
    flip(folder / name, int(share * (folder / name).stat().st_size))
    with pytest.raises(DamagedCheckpoint, match=name):
        load_state(folder)


@pytest.mark.parametrize("name", ["state.pt", "meta.json"])
def test_truncated_or_missing_file_is_detected(folder: Path, name: str) -> None:
    with (folder / name).open("r+b") as file:
        file.truncate((folder / name).stat().st_size - 1)
    with pytest.raises(DamagedCheckpoint, match=name):
        verify_checkpoint(folder)
    (folder / name).unlink()
    with pytest.raises(DamagedCheckpoint, match=f"{name} not found"):
        verify_checkpoint(folder)


def test_folder_without_checkpoint_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a complete checkpoint"):
        load_meta(tmp_path)


def test_newer_format_is_reported_and_not_as_damage(folder: Path) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "format_version": 99}))
    with pytest.raises(UserError, match=r"format 99, newer .* update the software") as caught:
        load_meta(folder)
    assert not isinstance(caught.value, DamagedCheckpoint)


def test_older_format_is_reported_and_not_as_damage(folder: Path) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "format_version": 1}))
    with pytest.raises(UserError, match=r"format 1, older .* another --run name") as caught:
        load_meta(folder)
    assert not isinstance(caught.value, DamagedCheckpoint)


@pytest.mark.parametrize("content", ["[]", "null", "{}", '{"format_version": "three"}'])
def test_other_json_is_damage(folder: Path, content: str) -> None:
    (folder / "meta.json").write_text(content)
    with pytest.raises(DamagedCheckpoint, match=r"damaged: meta\.json"):
        load_meta(folder)


def test_added_evaluation_keeps_everything_else(folder: Path) -> None:
    before = load_meta(folder)
    state = EarlyStoppingState(best=0.5, evaluations_since_best=1)
    add_evaluation(folder, {"val/ap": 0.4}, state, 1.5)
    after = verify_checkpoint(folder)
    assert (after.metrics, after.early_stopping) == ({"val/ap": 0.4}, state)
    assert after.temperature == 1.5
    changed = {"metrics", "early_stopping", "temperature"}
    assert after.model_dump(exclude=changed) == before.model_dump(exclude=changed)


def test_state_with_code_is_rejected(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"path": Path("x")}, example_meta())
    with pytest.raises(Exception, match="[Ww]eights.only"):
        load_state(tmp_path)


def test_full_disk_raises_and_leaves_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "state.pt").symlink_to("/dev/full")
    state: dict[str, Any] = {"model": {"x": torch.randn(100_000)}}
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path / "one", state, example_meta())
    assert not (tmp_path / "one" / "meta.json").exists()


def test_failed_overwrite_leaves_no_checkpoint(folder: Path) -> None:
    (folder / "state.pt").unlink()
    (folder / "state.pt").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(folder, {"model": {"x": torch.randn(100_000)}}, example_meta())
    with pytest.raises(DamagedCheckpoint):
        load_meta(folder)


def test_disk_that_fills_anywhere_raises_and_leaves_no_file(tmp_path: Path) -> None:
    code = """
import resource, sys, torch
from pathlib import Path
from pipeline.checkpoints.format import save_checkpoint
from tests.pipeline.checkpoints.examples import example_meta
state = {"model": {str(i): torch.randn(20_000) for i in range(10)}}
size = 0
for size in [0, 1, 64, 1500, 50_000, 300_001, 500_000, *range(799_000, 807_000, 500)]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, -1))
    try:
        save_checkpoint(sys.argv[1], state, example_meta())
    except OSError as error:
        assert "File too large" in str(error), (size, error)
        assert not list(Path(sys.argv[1]).iterdir()), size
    else:
        assert size > 800_000, size
        break
else:
    raise AssertionError("no limit was high enough")
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    verify_checkpoint(tmp_path)


@pytest.mark.parametrize("capacity", [0, 64, 200_000, 400_900])
def test_broken_upload_raises_and_leaves_no_object(capacity: int) -> None:
    storage = BrokenStorage("mock:///one", capacity)  # in memory
    state = {"model": {"x": torch.randn(50_000), "y": torch.randn(50_000)}}
    with pytest.raises(OSError, match="NETWORK_CONNECTION"):
        save_checkpoint(storage, state, example_meta())
    assert storage.files() == []
