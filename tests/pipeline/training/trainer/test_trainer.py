"""One training step: accumulation, ranks and unusual batches."""

import copy
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pipeline.config import Config
from pipeline.data import Batch
from pipeline.distributed.world import World
from pipeline.training.trainer.trainer import Trainer
from tests.launches import CountLaunches

SETTINGS = {
    "model": {"image_size": 64},
    # Plain gradient descent in float32, so that the change of the weights is the gradient.
    "train": {
        "batch_size": 4,
        "warmup_steps": 0,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "lr": 0.1,
        "precision": "fp32",
    },
}


def batch(count: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(7)
    images = torch.randint(0, 255, (count, 3, 64, 64), dtype=torch.uint8, generator=generator)
    corner = torch.rand(count, 3, 2, generator=generator) * 30
    boxes = torch.cat([corner, corner + 12 + 16 * torch.rand(count, 3, 2, generator=generator)], 2)
    labels = torch.tensor([[0, 1, -1], [2, -1, -1], [0, 0, 1], [-1, -1, -1]])[:count]
    valid = torch.ones(count, dtype=torch.bool)
    ids = [str(i) for i in range(count)]
    return Batch(images, boxes, labels, torch.zeros(count, 0, 4), valid, ids, [])


def rows(whole: Batch, start: int, end: int) -> Batch:
    return Batch(*(value[start:end] for value in whole[:6]), problems=[])


# Every assigner whose positives do not depend on predictions (those of the first step of
# task_aligned do not), and every loss, at least once.
KINDS: list[dict[str, Any]] = [
    {"assign": {"name": "mutual_guidance"}},
    {"assign": {"name": "atss"}},
    {"assign": {"name": "max_iou"}, "loss": {"localization": "smooth_l1", "overlap": "giou"}},
    {"assign": {"name": "max_iou"}, "loss": {"classification": "quality_focal"}},
    {"assign": {"name": "mutual_guidance"}, "loss": {"overlap": "siou"}},
    {"assign": {"name": "task_aligned"}},
]


def make_trainer(
    world: World | None = None, kind: Mapping[str, Any] | None = None, **train: Any
) -> Trainer:
    tree = {**SETTINGS, **(kind or {}), "train": {**SETTINGS["train"], **train}}
    config = Config.from_dict(tree)
    trainer = Trainer(config, world or World(), num_classes=3, total_steps=10)
    # Batch statistics depend on how a batch is split; the gradients must not.
    trainer.network.eval()
    trainer.network.train = lambda mode=True: trainer.network  # type: ignore[method-assign]
    return trainer


def test_class_weights_are_in_the_order_of_the_classes_at_every_input_size() -> None:
    config = Config.from_dict({**SETTINGS, "loss": {"class_weights": {"cat": 2.0, "ant": 0.5}}})
    trainer = Trainer(config, World(), 3, total_steps=10, classes=["ant", "bee", "cat"])
    for side in (config.model.image_size, config.model.image_size + 64):
        trainer._resize_input(side)
        assert trainer.loss.class_weights is not None
        assert trainer.loss.class_weights.tolist() == [0.5, 1.0, 2.0]
    with pytest.raises(ValueError, match="unknown class 'cat'"):
        Trainer(config, World(), 3, total_steps=10)


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.detector.parameters()])


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_micro_batches_do_not_change_the_step(micro_batch: int) -> None:
    whole, split = make_trainer(), make_trainer(micro_batch=micro_batch)
    parts, split_parts = whole.step(batch()), split.step(batch())
    torch.testing.assert_close(weights(whole), weights(split), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(parts["loss"], split_parts["loss"], rtol=1e-5, atol=1e-7)
    assert parts["positives_cls"] == split_parts["positives_cls"]


def test_assigner_follows_the_progress_of_the_training_also_after_a_resume() -> None:
    """TaskAligned has ATSS assign the first third, which is steps 0 to 3 of 10."""
    kind = {"assign": {"name": "task_aligned"}}
    whole = make_trainer(kind=kind, momentum=0.9)
    aligned = make_trainer(kind={"assign": {"name": "task_aligned", "static_fraction": 0.0}})
    atss = make_trainer(kind={"assign": {"name": "atss"}})
    positives = [float(whole.step(batch())["positives_cls"]) for _ in range(4)]
    assert set(positives) == {float(atss.step(batch())["positives_cls"])}
    assert positives[0] != float(aligned.step(batch())["positives_cls"])
    resumed = make_trainer(kind=kind, momentum=0.9)
    resumed.load(copy.deepcopy(whole.state()))
    assert resumed.progress == whole.progress == 0.4
    parts = [trainer.step(batch()) for trainer in (whole, resumed)]
    assert parts[0] == parts[1] and float(parts[0]["positives_cls"]) != positives[0]
    assert torch.equal(weights(whole), weights(resumed))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_resume_with_a_slower_backbone_is_exact(optimizer: str) -> None:
    train = {"optimizer": optimizer, "backbone_lr": 0.1, "lr": 1e-3, "momentum": 0.9}
    whole, resumed = make_trainer(**train), make_trainer(**train)
    whole.step(batch())
    resumed.load(copy.deepcopy(whole.state()))
    for trainer in (whole, resumed):
        trainer.step(batch())
    assert torch.equal(weights(whole), weights(resumed))
    assert whole.learning_rate == resumed.learning_rate > 9e-4  # that of neck and heads


def step_without_finite_gradient(trainer: Trainer, share: Batch, on_this_rank: bool = True) -> None:
    """Take a step whose gradient is not finite on this rank, or on another one."""
    parameter = next(trainer.detector.parameters())
    handle = parameter.register_hook(lambda g: g * (float("nan") if on_this_rank else 1.0))
    with pytest.raises(FloatingPointError, match="not finite at step"):
        trainer.step(share)
    handle.remove()


def _rank(rank: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    # Unequal shares, micro-batches and positives: rank 1 has no positives.
    share = rows(batch(), 0, 3) if rank == 0 else rows(batch(), 3, 4)
    for number, kind in enumerate(KINDS):
        trainer = make_trainer(World(rank, 2), kind, micro_batch=2)
        trainer.step(share)
        torch.save(weights(trainer), f"{folder}/{rank}-{number}.pt")
    skipping = make_trainer(World(rank, 2), skip_non_finite=1)
    before = weights(skipping)
    step_without_finite_gradient(skipping, share, on_this_rank=rank == 1)
    assert skipping.skip_step() and skipping.step_count == 1
    assert torch.equal(weights(skipping), before)
    skipping.step(share)
    assert torch.isfinite(weights(skipping)).all()
    dist.destroy_process_group()


def test_step_of_two_unequal_ranks_equals_step_of_one_process(tmp_path: Path) -> None:
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    for number, kind in enumerate(KINDS):
        alone = make_trainer(kind=kind)
        alone.step(batch())
        for rank in (0, 1):
            got = torch.load(tmp_path / f"{rank}-{number}.pt", weights_only=True)
            torch.testing.assert_close(got, weights(alone), rtol=1e-5, atol=1e-7, msg=str(kind))


def test_batch_without_objects_trains_the_background() -> None:
    trainer = make_trainer()
    before = weights(trainer)
    empty = batch()._replace(
        boxes=torch.zeros(4, 0, 4), labels=torch.zeros(4, 0, dtype=torch.int64)
    )
    parts = trainer.step(empty)
    assert math.isfinite(parts["loss"])
    assert parts["gradient_norm"] > 0
    assert not torch.equal(before, weights(trainer))


def test_invalid_images_are_ignored() -> None:
    whole = batch()
    masked = whole._replace(valid=torch.tensor([True, True, False, True]))
    painted = masked._replace(images=whole.images.clone())
    painted.images[2] = 0
    one, other = make_trainer(), make_trainer()
    one.step(masked)
    other.step(painted)
    torch.testing.assert_close(weights(one), weights(other))


def test_non_finite_gradient_raises_before_the_weights_change() -> None:
    trainer = make_trainer()
    with torch.no_grad():
        next(trainer.detector.parameters()).fill_(float("nan"))
    before = trainer.average.updates
    with pytest.raises(FloatingPointError, match="not finite at step 0"):
        trainer.step(batch())
    assert (trainer.step_count, trainer.average.updates) == (0, before)


def test_skipped_step_leaves_everything_but_its_number() -> None:
    trainer = make_trainer(momentum=0.9, skip_non_finite=1, lr=0.01)
    del trainer.network.train  # so that the forward pass changes the statistics of batch norms
    trainer.step(batch())
    before = copy.deepcopy(trainer.state())
    (mean, *_) = [name for name in before["model"] if name.endswith("running_mean")]
    step_without_finite_gradient(trainer, batch())
    assert not torch.equal(trainer.state()["model"][mean], before["model"][mean])
    assert trainer.skip_step()
    after = trainer.state()
    assert after["step"] == 2 and after["schedule"]["last_epoch"] == 2
    assert after["ema_updates"] == before["ema_updates"]
    for part in ("model", "ema"):
        for name, value in after[part].items():
            assert torch.equal(value, before[part][name]), name
    for number, value in after["optimizer"]["state"].items():
        former = before["optimizer"]["state"][number]
        assert torch.equal(value["momentum_buffer"], former["momentum_buffer"])
    other = make_trainer(momentum=0.9, skip_non_finite=1, lr=0.01)
    other.load(copy.deepcopy(after))
    for one in (trainer, other):
        step_without_finite_gradient(one, batch())
        assert not one.skip_step()  # also after a restart
        assert (one.step_count, one.skipped_steps) == (2, 1)


def test_skipping_that_is_not_needed_changes_no_bit() -> None:
    one, other = make_trainer(), make_trainer(skip_non_finite=5)
    for trainer in (one, other):
        del trainer.network.train
        trainer.step(batch())
        trainer.step(batch())
    for name, value in one.detector.state_dict().items():
        assert torch.equal(value, other.detector.state_dict()[name])


def test_other_learning_rate_after_a_restart_follows_the_schedule() -> None:
    one, other, fresh = make_trainer(lr=0.1), make_trainer(lr=0.02), make_trainer(lr=0.02)
    for _ in range(3):
        one.step(batch())
        fresh.step(batch())
    other.load(copy.deepcopy(one.state()))
    assert other.schedule.state_dict() == fresh.schedule.state_dict()
    other.step(batch())
    fresh.step(batch())
    assert other.learning_rate == fresh.learning_rate
    assert not torch.equal(weights(one), weights(other))


OTHER_ANCHORS = {
    "model": {"image_size": 64, "anchor_base": 16.0, "anchor_scales": [1], "anchor_ratios": [1, 3]},
    "assign": {"name": "atss"},
}


def test_assigner_has_the_anchors_of_the_detector() -> None:
    trainer = make_trainer(kind=OTHER_ANCHORS)
    assert trainer.loss.assigner.anchors_per_cell == 2  # type: ignore[attr-defined]
    assert trainer.detector.anchors[0].tolist() == [-4, -4, 12, 12]


@pytest.mark.parametrize("kind", [{}, OTHER_ANCHORS])
def test_state_round_trip_continues_identically(kind: Mapping[str, Any]) -> None:
    one = make_trainer(kind=kind, momentum=0.9)
    for _ in range(2):
        one.step(batch())
    other = make_trainer(kind=kind, momentum=0.9, seed=5)
    other.load(copy.deepcopy(one.state()))
    one.step(batch())
    other.step(batch())
    assert torch.equal(weights(one), weights(other))
    assert one.average.updates == other.average.updates == 3
    for a, b in zip(
        one.average.module.state_dict().values(),
        other.average.module.state_dict().values(),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("name", "matches"),
    [("mutual_guidance", 3), ("max_iou", 1)],  # by A, R and Q, or by A alone
)
def test_step_matches_static_anchors_once(name: str, matches: int) -> None:
    trainer = make_trainer(kind={"assign": {"name": name}})
    with CountLaunches() as launches:
        trainer.step(batch())
    assert launches.counts["aten.scatter_reduce_"] == matches
