"""Trainings that start from given weights, with parts of the backbone frozen."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from model import build_detector
from pipeline.checkpoints.format import load_state
from pipeline.checkpoints.store import CheckpointStore
from pipeline.config import Config
from pipeline.data import Batch
from pipeline.distributed.world import World
from pipeline.errors import UserError
from pipeline.training.fit import fit
from pipeline.training.run_log import RunLog
from pipeline.training.session import LocalSession
from pipeline.training.trainer.trainer import Trainer
from pipeline.training.worker import train_worker
from tests.published import published_state

CLASSES = ["a", "b", "c"]


def batch(seed: int, count: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 255, (count, 3, 64, 64), dtype=torch.uint8, generator=generator)
    boxes = torch.tensor([8.0, 8.0, 40.0, 40.0]).expand(count, 1, 4).contiguous()
    labels = torch.full((count, 1), seed % 3)
    valid = torch.ones(count, dtype=torch.bool)
    ids = [str(i) for i in range(count)]
    return Batch(images, boxes, labels, torch.zeros(count, 0, 4), valid, ids, [])


def make_trainer(world: World | None = None, **model: Any) -> Trainer:
    config = Config.from_dict(
        {"model": {"image_size": 64, **model}, "train": {"batch_size": 2, "warmup_steps": 0}}
    )
    return Trainer(config, world or World(), num_classes=3, total_steps=10)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, value in after.items() if not torch.equal(before[name], value)}


@pytest.fixture
def weights(tmp_path: Path) -> str:
    torch.manual_seed(9)
    detector = build_detector("slim", image_size=64, num_classes=3)
    torch.save(detector.state_dict(), tmp_path / "start.pth")
    return str(tmp_path / "start.pth")


def test_detector_and_average_start_from_the_weights(weights: str) -> None:
    trainer = make_trainer(init=weights)
    report = trainer.start_from(CLASSES)
    expected = torch.load(weights, weights_only=True)
    for module in (trainer.detector, trainer.average.module):
        assert not changed(expected, state(module))
    assert report is not None and len(report.loaded) == len(expected)


def test_weights_keep_their_memory_format(tmp_path: Path) -> None:
    torch.save(published_state("resnet18"), tmp_path / "r.pth")
    trainer = make_trainer(backbone="resnet18", init=str(tmp_path / "r.pth"))
    trainer.start_from(CLASSES)
    weight = trainer.detector.backbone.conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


FROZEN: dict[str, Any] = {"freeze_stages": 2, "freeze_norm": True}


def test_frozen_parts_do_not_change_in_detector_and_average() -> None:
    trainer = make_trainer(**FROZEN)
    before, average = state(trainer.detector), state(trainer.average.module)
    for seed in range(2):
        trainer.step(batch(seed))
    backbone = trainer.detector.backbone
    norms = {n for n, m in backbone.named_modules() if isinstance(m, nn.BatchNorm2d)}
    still = {
        name
        for name in before
        if name.startswith(("backbone.stem.", "backbone.stages.0."))
        or name.removeprefix("backbone.").rsplit(".", 1)[0] in norms
    }
    convolutions = {
        name
        for name, value in before.items()
        if name.startswith(("backbone.", "neck.")) and value.ndim == 4 and name not in still
    }
    for initial, module in ((before, trainer.detector), (average, trainer.average.module)):
        assert changed(initial, state(module)).isdisjoint(still)
        assert convolutions <= changed(initial, state(module))


def test_optimizer_gets_only_trained_parameters() -> None:
    trainer = make_trainer(**FROZEN)
    given = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    assert all(p.requires_grad for p in given)
    assert len(given) == sum(p.requires_grad for p in trainer.detector.parameters())
    assert len(given) < len(list(trainer.detector.parameters()))


def _rank(rank: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    # Only rank 0 has the file, as if the weights were stored on one node.
    init = f"{folder}/start.pth" if rank == 0 else f"{folder}/absent.pth"
    trainer = make_trainer(World(rank, 2), init=init, **FROZEN)
    report = trainer.start_from(CLASSES)
    initial = state(trainer.detector)
    for seed in range(2):
        trainer.step(batch(2 * seed + rank, count=1))
    parts = {"initial": initial, "end": state(trainer.detector)}
    torch.save({**parts, "reports": report is not None}, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_ranks_start_from_the_same_weights_and_keep_frozen_parts(
    weights: str, tmp_path: Path
) -> None:
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    start = torch.load(weights, weights_only=True)
    learned = {name for name, _ in make_trainer().detector.named_parameters()}
    for rank in ranks:
        assert not changed(start, rank["initial"])
        frozen = {n for n in start if n.startswith(("backbone.stem.", "backbone.stages.0."))}
        assert changed(start, rank["end"]).isdisjoint(frozen)
    assert not changed(ranks[0]["end"], ranks[1]["end"]) & learned
    assert "heads.classify.0.weight" in changed(start, ranks[1]["end"])
    assert [rank["reports"] for rank in ranks] == [True, False]


def session(folder: Path) -> LocalSession:
    return LocalSession(World(), CheckpointStore(folder))


def test_run_starts_from_another_run_and_resumes_without_it(small: Config, tmp_path: Path) -> None:
    config = small.replace({"data.val": None, "data.test": None, "train.epochs": 0.4})
    first = train_worker(config, session(tmp_path / "first"), RunLog(None))
    end = load_state(tmp_path / "first" / first.checkpoint)["ema"]
    frozen = {"model.freeze_stages": 4, "train.epochs": 0.4}
    config = config.replace({"model.init": str(tmp_path / "first"), **frozen})
    second = train_worker(config, session(tmp_path / "second"), RunLog(None))
    state_ = load_state(tmp_path / "second" / second.checkpoint)["model"]
    moved = changed(end, state_)
    assert moved and not any(name.startswith("backbone.") for name in moved)
    # A resumed run does not need the folder that it started from.
    (tmp_path / "first").rename(tmp_path / "gone")
    train_worker(config, session(tmp_path / "second"), RunLog(None))


def test_weights_that_do_not_fit_are_rejected_before_the_run_is_created(
    small: Config, tmp_path: Path
) -> None:
    torch.save(published_state("resnet18"), tmp_path / "r.pth")
    config = small.replace({"model.init": str(tmp_path / "r.pth")})
    with pytest.raises(UserError, match="no tensor of this backbone"):
        fit(config, run="wrong")
    assert not (tmp_path / "runs" / "wrong" / "run.json").exists()


def test_fit_starts_from_a_relative_path_and_records_the_weights_used(
    small: Config,
    weights: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = {"data.val": None, "data.test": None, "train.epochs": 0.2, "train.lr": 1e-9}
    config = small.replace({**overrides, "model.init": Path(weights).name})
    result = fit(config, run="started")
    assert "1 of the 4 stages of slim, since" in capsys.readouterr().err
    end = load_state(Path(result.checkpoint))["model"]
    start = torch.load(weights, weights_only=True)
    kernel = "backbone.stages.2.1.first.0.weight"
    torch.testing.assert_close(end[kernel], start[kernel], rtol=1e-4, atol=1e-6)
    from mlflow import MlflowClient

    text = MlflowClient(result.tracking_uri)
    # The few images leave the first stage as it was, and the run shows the number.
    still = {name for name in start if name.startswith("backbone.stem.")}
    assert still and changed(start, end).isdisjoint(still)
    assert text.get_run(result.run_id).data.params["model.freeze_stages"] == "1"
    names = {item.path for item in text.list_artifacts(result.run_id)}
    assert "init.json" in names
