"""``ray.gpu: auto`` uses GPUs where every worker can have one, and says why it does not."""

from typing import Any

import pytest

from pipeline.config import Config
from pipeline.distributed.gpus import GpuChoice, choose_gpus
from pipeline.distributed.ray_cluster import gpu_choice
from pipeline.distributed.world import world_from_environment
from pipeline.errors import UserError


@pytest.mark.parametrize(
    ("setting", "gpus", "workers", "used", "note"),
    [
        ("auto", 0, 1, False, None),
        ("auto", 2, 2, True, None),
        ("auto", 1, 2, False, "1 GPU found for 2 workers: training on CPUs"),
        (True, 0, 1, True, None),
        (False, 8, 1, False, None),
    ],
)
def test_auto_takes_gpus_if_every_worker_can_have_one(
    setting: Any, gpus: int, workers: int, used: bool, note: str | None
) -> None:
    choice = choose_gpus(setting, gpus, workers, supported=True)
    assert choice.used is used
    assert (choice.note or "").startswith(note or "") and bool(choice.note) == bool(note)


def test_torch_without_cuda_leaves_gpus_unused() -> None:
    choice = choose_gpus("auto", 4, 1, supported=False)
    note = "4 GPUs found, but torch is built without CUDA: training on CPUs"
    assert choice == GpuChoice(False, note)


@pytest.mark.parametrize("value", ["auto", "true", "False", True])
def test_value_may_be_text(value: Any) -> None:
    expected = value if isinstance(value, bool) else {"auto": "auto"}.get(value, value == "true")
    assert Config.from_dict({"ray": {"gpu": value}}).ray.gpu is expected


def test_wrong_value_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^ray.gpu: 'cuda' is not true, false or auto$"):
        Config.from_dict({"ray": {"gpu": "cuda"}})


def test_elastic_training_needs_a_gpu_for_the_smallest_number_of_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.distributed.is_nccl_available", lambda: True)
    ray = Config.from_dict({"ray": {"workers": [2, 8]}}).ray
    assert gpu_choice(ray, {"CPU": 64.0, "GPU": 2.0}).used
    assert not gpu_choice(ray, {"CPU": 64.0, "GPU": 1.0}).used


def test_process_without_ray_uses_the_gpus_that_torch_finds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    devices: list[Any] = []
    monkeypatch.setattr("torch.distributed.is_nccl_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.set_device", devices.append)
    assert world_from_environment("auto")[0].device.type == "cuda"
    assert world_from_environment(False)[0].device.type == "cpu"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # more processes than GPUs
    assert world_from_environment("auto")[0].device.type == "cpu"
    assert [str(device) for device in devices] == ["cuda:0"]


def test_missing_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="ray.gpu is true, but torch finds no GPU"):
        world_from_environment(True)
