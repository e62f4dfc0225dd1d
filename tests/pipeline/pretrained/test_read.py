"""Weights from files, folders, runs and the registry."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.checkpoints.format import save_checkpoint
from pipeline.errors import UserError
from pipeline.pretrained import read_weights
from tests.pipeline.checkpoints.examples import example_meta

STATE = {"conv.weight": torch.arange(8.0).view(2, 1, 2, 2), "conv.bias": torch.ones(2)}


def assert_state(found: dict[str, torch.Tensor]) -> None:
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], value) for name, value in STATE.items())
    assert not any(value.requires_grad for value in found.values())


@pytest.mark.parametrize(
    "tree",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3},
        {"model": {f"module.{name}": value for name, value in STATE.items()}, "ema_updates": 3},
        {"model": {"conv.weight": torch.zeros(1)}, "ema": STATE},
        {name: nn.Parameter(value) for name, value in STATE.items()},
    ],
    ids=["plain", "nested", "parallel", "averaged", "parameters"],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_pth_files_of_all_layouts(tmp_path: Path, tree: dict, zipped: bool) -> None:
    path = tmp_path / "weights.pth"
    torch.save(tree, path, _use_new_zipfile_serialization=zipped)
    assert_state(read_weights(str(path)).state)


def test_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(STATE, path)
    weights = read_weights(str(path), hashlib.sha256(path.read_bytes()).hexdigest())
    assert_state(weights.state)
    assert (weights.backbone, weights.classes) == (None, None)


def test_sha256_of_a_file_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(STATE, path)
    with pytest.raises(UserError, match=r"has sha256 \w{64}, not the expected 0{64}"):
        read_weights(str(path), "0" * 64)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_code_in_a_file_is_rejected_and_not_run(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"w": Payload(tmp_path / "run")}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="not a file of plain tensors") as caught:
        read_weights(str(path))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("w.pth", b"not a checkpoint", "w.pth: not a file of plain tensors"),
        ("w.pth", b"", "w.pth: not a file of plain tensors"),
        ("w.safetensors", b"\xff" * 64, "w.safetensors: not a file of plain tensors"),
        ("w.onnx", b"", r"expected a \.pth, \.pt or \.safetensors file"),
    ],
)
def test_damaged_or_unknown_file_is_one_line(
    tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=expected) as caught:
        read_weights(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_file_without_tensors_is_rejected(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="no tensors by name found"):
        read_weights(str(tmp_path / "w.pth"))


def checkpoint(folder: Path, value: float, step: int, ap: float | None = None) -> None:
    state = {"model": {"w": torch.zeros(1)}, "ema": {"w": torch.full((1,), value)}}
    save_checkpoint(folder, state, example_meta(step, ap=ap))


def test_checkpoint_gives_its_averaged_weights(tmp_path: Path) -> None:
    checkpoint(tmp_path / "step-1", 1.0, step=1)
    for uri in (str(tmp_path / "step-1"), f"file://{tmp_path}/step-1"):
        weights = read_weights(uri)
        assert weights.state["w"].item() == 1.0
        assert (weights.backbone, weights.classes) == ("slim", ["a"])
        assert "step-1" in weights.source


def test_run_gives_its_best_checkpoint(tmp_path: Path) -> None:
    for step, ap in ((1, 0.2), (2, 0.4), (3, 0.3)):
        checkpoint(tmp_path / f"step-{step:08d}", float(step), step=step, ap=ap)
    checkpoint(tmp_path / "step-00000004", 4.0, step=4)
    assert read_weights(str(tmp_path)).source == str(tmp_path / "step-00000002")


def test_run_without_evaluations_gives_its_last_checkpoint(tmp_path: Path) -> None:
    for step in (9, 10):
        checkpoint(tmp_path / f"step-{step:08d}", float(step), step=step)
    assert read_weights(str(tmp_path)).state["w"].item() == 10.0


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("absent.pth", "absent.pth does not exist; give a .pth"),
        (".", "contains no checkpoint; give models:/"),
        ("https://host/w.pth", r"a URL needs model\.init_sha256"),
        ("file:///absent/step-1", "/absent/step-1 contains no checkpoint; give models:/"),
    ],
)
def test_missing_source_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=expected) as caught:
        read_weights(uri)
    assert "\n" not in str(caught.value)
