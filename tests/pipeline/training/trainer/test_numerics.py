"""Each field of `train` that changes the arithmetic of a step has its documented effect."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from model.layers import DepthwiseConv
from pipeline.config import Config
from pipeline.data import Batch, load_manifest
from pipeline.data.loading.rank_share import rank_positions
from pipeline.data.loading.sample_order import SampleOrder
from pipeline.distributed.precision import resolve_precision
from pipeline.distributed.world import World
from pipeline.errors import UserError
from pipeline.training.error_hints import translate_errors
from pipeline.training.run_log import RunLog
from pipeline.training.trainer.assignment_health import assignment_health
from pipeline.training.trainer.parallelize import build_training_detector, parallelize
from pipeline.training.trainer.seeding import seed_step
from pipeline.training.trainer.trainer import Tensors, Trainer
from pipeline.training.worker import validate
from tests.pipeline.training.trainer.test_trainer import batch, rows, weights


def make_trainer(
    world: World | None = None,
    freeze_norm: bool = True,
    norm: str = "batch",
    sizes: tuple[int, ...] = (),
    **train: Any,
) -> Trainer:
    world = world or World()
    plain = {
        "batch_size": 4,
        "warmup_steps": 0,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "lr": 0.1,
        "precision": "fp32" if world.device.type == "cpu" else "auto",
    }
    config = Config.from_dict(
        {
            "model": {"image_size": 64, "freeze_norm": freeze_norm, "norm": norm},
            "train": {**plain, **train},
            "data": {"sizes": sizes},
        }
    )
    return Trainer(config, world, num_classes=3, total_steps=10)


@pytest.mark.parametrize(
    ("scaling", "expected"), [("none", 0.1), ("linear", 0.05), ("sqrt", 0.1 / math.sqrt(2))]
)
def test_learning_rate_scales_with_the_global_batch(scaling: str, expected: float) -> None:
    trainer = make_trainer(lr_scaling=scaling, lr_batch=8)
    trainer.step(batch())
    assert trainer.learning_rate == pytest.approx(expected)


def test_logged_learning_rate_is_that_of_the_step() -> None:
    trainer = make_trainer(warmup_steps=4)
    rates = []
    for _ in range(4):
        before = weights(trainer)
        norm = trainer.step(batch())["gradient_norm"].clamp(max=10.0)
        rates.append(float((weights(trainer) - before).norm() / norm))
        assert trainer.learning_rate == pytest.approx(rates[-1], rel=1e-3)
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1], rel=1e-3)


def test_long_gradient_is_clipped() -> None:
    free, clipped = make_trainer(clip_norm=1e6), make_trainer(clip_norm=0.01)
    before = weights(free)
    parts = free.step(batch()), clipped.step(batch())
    assert parts[0]["gradient_norm"] == parts[1]["gradient_norm"] > 0.01
    change, clipped_change = weights(free) - before, weights(clipped) - before
    assert float(clipped_change.norm()) == pytest.approx(0.1 * 0.01, rel=1e-3)
    assert torch.cosine_similarity(change, clipped_change, dim=0) > 0.9999


def test_gradient_is_not_clipped_with_a_norm_of_zero() -> None:
    free, unclipped = make_trainer(clip_norm=1e6), make_trainer(clip_norm=0.0)
    parts = free.step(batch()), unclipped.step(batch())
    assert parts[0]["gradient_norm"] == parts[1]["gradient_norm"] > 0
    assert torch.equal(weights(free), weights(unclipped))


def outputs_of_convolutions(trainer: Trainer) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    for module in trainer.detector.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *args: seen.append(args[-1]))
    return seen


def test_bf16_computes_in_16_bits() -> None:
    full, half = make_trainer(precision="fp32"), make_trainer(precision="bf16")
    seen = outputs_of_convolutions(full), outputs_of_convolutions(half)
    losses = [float(trainer.step(batch())["loss"]) for trainer in (full, half)]
    assert {x.dtype for x in seen[0]} == {torch.float32}
    assert {x.dtype for x in seen[1]} == {torch.bfloat16}
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert all(p.dtype == torch.float32 for p in half.detector.parameters())


@pytest.mark.parametrize("feature", ["avx512_bf16", "amx_bf16", "avx512_f"])
def test_cpu_computes_in_bf16_by_default_if_it_has_it(
    feature: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, feature: True})
    expected = "fp32" if feature == "avx512_f" else "bf16"
    config = Config()
    assert resolve_precision(config, World()) == expected
    given = config.replace({"train.precision": "fp32"})
    assert resolve_precision(given, World()) == "fp32"
    # Depthwise convolutions of other libraries are slower in bf16.
    backbone = config.model.model_copy(update={"backbone": "timm:mobilenetv3_small_100"})
    timm = config.model_copy(update={"model": backbone})  # timm may not be installed
    assert resolve_precision(timm, World()) == "fp32"


def test_ranks_compute_in_bf16_if_all_of_them_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class OneOfTwo(World):
        def sum(self, value: torch.Tensor) -> torch.Tensor:
            return value  # the other rank has none

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert resolve_precision(Config(), OneOfTwo(0, 2)) == "fp32"


def test_depthwise_convolutions_compute_in_float32_on_cpus() -> None:
    model = {"image_size": 64, "backbone": "mobilenetv2"}
    config = Config.from_dict({"model": model, "train": {"batch_size": 4, "precision": "bf16"}})
    trainer = Trainer(config, World(), num_classes=3, total_steps=10)
    types: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    for module in trainer.detector.modules():
        if isinstance(module, nn.Conv2d):
            seen = types[isinstance(module, DepthwiseConv)]
            module.register_forward_hook(lambda *args, seen=seen: seen.add(args[-1].dtype))
    assert math.isfinite(float(trainer.step(batch())["loss"]))
    assert types == {True: {torch.float32}, False: {torch.bfloat16}}
    grouped = [m for m in trainer.detector.modules() if getattr(m, "groups", 1) > 1]
    assert grouped and all(isinstance(module, DepthwiseConv) for module in grouped)


def test_channels_last_does_not_change_the_result() -> None:
    plain, last = make_trainer(channels_last=False), make_trainer(channels_last=True)
    seen = outputs_of_convolutions(plain), outputs_of_convolutions(last)
    plain.step(batch())
    last.step(batch())
    maps = [x for x in seen[0] if min(x.shape[1:]) > 1]
    assert all(x.is_contiguous() for x in maps)
    maps = [x for x in seen[1] if min(x.shape[1:]) > 1]
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in maps)
    torch.testing.assert_close(weights(plain), weights(last), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_compiled_step_equals_eager_step() -> None:
    from torch._dynamo.utils import counters

    counters.clear()
    eager, compiled = make_trainer(), make_trainer(compile=True)
    eager.step(batch())
    assert not counters["stats"]
    compiled.step(batch())
    assert counters["stats"]["unique_graphs"] >= 1
    assert list(eager.detector.state_dict()) == list(compiled.detector.state_dict())
    torch.testing.assert_close(weights(eager), weights(compiled), rtol=1e-4, atol=1e-6)


@pytest.fixture
def compiled_graphs() -> Iterator[tuple[list[int], list[int]]]:
    """Compile with a backend that only counts: yield a list of graphs and one of their calls."""
    graphs: list[int] = []
    calls: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(len(graphs))

        def run(*inputs: Any) -> Any:
            calls.append(graphs[-1])
            return graph(*inputs)

        return run

    torch.compiler.reset()
    torch.compiler.set_default_backend(backend)
    yield graphs, calls
    torch.compiler.set_default_backend(None)
    torch.compiler.reset()


def test_network_is_compiled_for_each_side_and_not_for_assignment_health(
    compiled_graphs: tuple[list[int], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its limit torch would run further sides without compiling them."""
    monkeypatch.setattr("torch._dynamo.config.recompile_limit", 2)
    graphs, calls = compiled_graphs
    sides = (64, 128, 192)
    eager, compiled = (make_trainer(sizes=sides, compile=value) for value in (False, True))
    for side in sides:
        share = batch()._replace(images=nn.functional.interpolate(batch().images, side))
        eager.step(share)
        compiled.step(share)
    assert len(graphs) == len(calls) == len(sides)
    health = assignment_health(compiled, share)
    assert len(graphs) == len(calls) == len(sides)
    assert health == pytest.approx(assignment_health(eager, share), abs=1e-4)
    assert compiled.detector.training


def test_network_draws_differ_by_step_and_rank_and_are_repeatable() -> None:
    draws = {}
    for key in [(0, 1, 0), (0, 1, 1), (0, 2, 0), (1, 1, 0)]:
        seed_step(*key)
        draws[key] = torch.rand(3)
    assert len({tuple(draw.tolist()) for draw in draws.values()}) == 4
    seed_step(0, 1, 1)
    assert torch.equal(torch.rand(3), draws[0, 1, 1])


def test_each_step_seeds_its_draws() -> None:
    """With dropout before the network, a repeated step gives the same weights."""
    results = []
    for used in (0, 3):
        trainer = make_trainer()
        trainer.detector.backbone = nn.Sequential(nn.Dropout(0.5), trainer.detector.backbone)
        torch.rand(used)
        trainer.step(batch())
        results.append(weights(trainer))
    assert torch.equal(results[0], results[1])


def test_sync_batch_norm_needs_gpus() -> None:
    train = {"sync_batch_norm": True}
    with pytest.raises(UserError, match=r"train.sync_batch_norm needs GPUs, and ray.gpu is false"):
        Config.from_dict({"train": train, "ray": {"gpu": False}})
    config = Config.from_dict({"train": train})  # auto
    with pytest.raises(UserError, match=r"train.sync_batch_norm needs GPUs, and the workers have"):
        parallelize(nn.Linear(1, 1), config, World(0, 2))


@pytest.mark.parametrize(("workers", "micro_batch"), [(2, 4), (2, 1), (3, 2), (4, 2), (5, 1)])
def test_ranks_take_equally_many_passes_with_sync_batch_norm(
    workers: int, micro_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The passes are recorded and not taken: synchronised norms do not run on CPUs."""
    sizes: list[int] = []

    def backward(_: Trainer, tensors: Tensors, *__: Any) -> dict[str, torch.Tensor]:
        sizes.append(len(tensors.images))
        return {}

    monkeypatch.setattr(Trainer, "_backward", backward)
    monkeypatch.setattr(Trainer, "_update", lambda _: torch.tensor(0.0))
    monkeypatch.setattr(Trainer, "_normalisers", lambda *_: lambda: None)
    trainer = make_trainer(micro_batch=micro_batch, sync_batch_norm=True)
    for size in range(workers, 20):
        change = {"train.batch_size": size, "ray.workers": workers}
        if micro_batch == 1 and size % workers:
            with pytest.raises(UserError, match=f"divisible by the workers: {size} images for"):
                trainer.config.replace(change)
            continue
        trainer.config = trainer.config.replace(change)
        passes = set()
        for rank in range(workers):
            share = len(rank_positions(SampleOrder([size], 0), 0, size, rank, workers))
            trainer.world = World(rank, workers)
            sizes.clear()
            empty = torch.zeros(share, 0, 4)
            images = torch.zeros(share, 3, 64, 64, dtype=torch.uint8)
            valid = torch.ones(share, dtype=torch.bool)
            trainer.step(Batch(images, empty, empty[:, :, 0].long(), empty, valid, [], []))
            assert sum(sizes) == share and 0 < min(sizes) <= max(sizes) <= micro_batch
            passes.add(len(sizes))
        assert len(passes) == 1


def test_sync_batch_norm_keeps_names_weights_and_frozen_parts() -> None:
    tree = {"model": {"freeze_stages": 1}, "ray": {"gpu": True}}
    config = Config.from_dict({**tree, "train": {"sync_batch_norm": True}})
    torch.manual_seed(0)
    shared = build_training_detector(config, World(0, 2), 3).train()
    torch.manual_seed(0)
    own = build_training_detector(config, World(0, 1), 3).train()
    norms = [m for m in shared.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    assert not any(isinstance(norm, nn.SyncBatchNorm) for norm in own.modules())
    assert not all(norm.training for norm in norms)  # those of the frozen stage
    assert [m.training for m in shared.modules()] == [m.training for m in own.modules()]
    for (name, value), (other, same) in zip(
        shared.state_dict().items(), own.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(value, same)


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)  # those of the parent do not exist here
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    trainer = make_trainer(World(rank, 2), freeze_norm=False)
    for _ in range(2):
        trainer.step(rows(batch(), 2 * rank, 2 * rank + 2))
    own = trainer.detector.state_dict()
    torch.save({"own": own, "averaged": trainer.averaged().state_dict()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_ranks_share_weights_and_the_average_has_statistics_of_rank_0(tmp_path: Path) -> None:
    mp.start_processes(_rank, args=(str(tmp_path),), nprocs=2, start_method="fork")
    zero, one = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, value in zero["own"].items():
        if "running" not in name:
            assert torch.equal(value, one["own"][name]), name
    assert any(not torch.equal(value, one["own"][name]) for name, value in zero["own"].items())
    for name, value in zero["averaged"].items():
        assert torch.equal(value, one["averaged"][name]), name


def test_step_with_group_norm_does_not_depend_on_micro_batches() -> None:
    """In training mode, with nothing frozen: the only difference between one rank and several."""

    def after_a_step(norm: str, micro_batch: int) -> torch.Tensor:
        trainer = make_trainer(freeze_norm=False, norm=norm, micro_batch=micro_batch)
        trainer.step(batch())
        return weights(trainer)

    torch.testing.assert_close(
        after_a_step("group", 4), after_a_step("group", 1), rtol=1e-5, atol=1e-6
    )
    assert (after_a_step("batch", 4) - after_a_step("batch", 1)).abs().max() > 1e-3


@pytest.mark.gpu
def test_step_on_gpu_equals_step_on_cpu() -> None:
    on_cpu = make_trainer()
    on_gpu = make_trainer(World(device=torch.device("cuda", 0)), precision="fp32")
    torch.backends.cudnn.allow_tf32 = False
    on_cpu.step(batch())
    on_gpu.step(batch())
    torch.testing.assert_close(weights(on_cpu), weights(on_gpu).cpu(), rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
def test_gpu_computes_in_bf16_by_default() -> None:
    trainer = make_trainer(World(device=torch.device("cuda", 0)))
    seen = outputs_of_convolutions(trainer)
    trainer.step(batch())
    assert {x.dtype for x in seen} == {torch.bfloat16}


@pytest.mark.gpu
def test_gpu_out_of_memory_says_what_to_lower() -> None:
    world = World(device=torch.device("cuda", 0))
    trainer = make_trainer(world)
    torch.cuda.set_per_process_memory_fraction(1e-4)
    try:
        with (
            pytest.raises(UserError, match=r"out of GPU memory: lower train.micro_batch"),
            translate_errors(trainer.config, world),
        ):
            torch.empty(2**30, device="cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def _gpu_rank(rank: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1")
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("nccl", store=store, rank=rank, world_size=2)
    options = {"freeze_norm": False, "precision": "fp32", "sync_batch_norm": True}
    trainer = make_trainer(World(rank, 2, device), **options)
    trainer.step(rows(batch(), 2 * rank, 2 * rank + 2))
    torch.save(weights(trainer).cpu(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_step_of_two_gpus_with_sync_batch_norm_equals_step_of_one(tmp_path: Path) -> None:
    mp.spawn(_gpu_rank, args=(str(tmp_path),), nprocs=2)
    one = World(device=torch.device("cuda", 0))
    alone = make_trainer(one, freeze_norm=False, precision="fp32")
    alone.step(batch())
    for rank in (0, 1):
        got = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(got, weights(alone).cpu(), rtol=1e-3, atol=1e-4)


def test_evaluation_computes_in_the_precision_of_the_training(
    small: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, set[torch.dtype]] = {}
    forward = nn.Conv2d.forward

    def recorded(self: nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
        found = forward(self, images)
        if not self.training:
            seen.setdefault(precision, set()).add(found.dtype)
        return found

    monkeypatch.setattr(nn.Conv2d, "forward", recorded)
    for precision in ("fp32", "bf16"):
        config = small.replace({"train.precision": precision, "data.loader_workers": 0})
        trainer = Trainer(config, World(), num_classes=2, total_steps=1)
        content = load_manifest(str(config.data.val)).content_hash
        validate("val", str(config.data.val), content, trainer, RunLog(None))
    assert seen == {"fp32": {torch.float32}, "bf16": {torch.bfloat16}}
