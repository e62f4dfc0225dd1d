"""One rank's detector, loss, optimizer and weight average, and the training step."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model import Detector
from model.assign import StaticPart, build_assigner
from model.loss import DetectionLoss
from pipeline.checkpoints.meta import EarlyStoppingState
from pipeline.config import Config
from pipeline.data import Batch
from pipeline.distributed.precision import autocast, resolve_precision
from pipeline.distributed.world import World
from pipeline.pretrained import TransferReport, start_from
from pipeline.training.trainer.early_stopping import EarlyStopping
from pipeline.training.trainer.ema import WeightAverage
from pipeline.training.trainer.gradient_check import GradientCheck
from pipeline.training.trainer.loss_scale import LossScale
from pipeline.training.trainer.optimizer import (
    averages_per_parameter,
    build_optimizer,
    build_schedule,
    restore_optimizer,
    restore_schedule,
)
from pipeline.training.trainer.parallelize import (
    build_training_detector,
    memory_format,
    parallelize,
)
from pipeline.training.trainer.seeding import seed_everything, seed_step


class Tensors(NamedTuple):
    """The tensors of a `Batch` on the device."""

    images: Tensor
    boxes: Tensor
    labels: Tensor
    ignore_boxes: Tensor
    valid: Tensor

    def split(self, size: int, at_least: int = 1) -> list[Tensors]:
        """Split into micro-batches of at most ``size`` images, and ``at_least`` so many."""
        parts = [value.split(size) for value in self]
        if len(parts[0]) < at_least:
            parts = [value.tensor_split(at_least) for value in self]
        return [Tensors(*values) for values in zip(*parts, strict=True)]


class Trainer:
    """Everything that a checkpoint restores; weights are the same on every rank at every step.

    ``classes`` are the names to which `loss.class_weights` refers.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        num_classes: int,
        total_steps: int,
        classes: Sequence[str] = (),
    ) -> None:
        self.config, self.world, self.step_count = config, world, 0
        self.classes = classes
        self.total_steps = total_steps
        self.precision = resolve_precision(config, world)
        seed_everything(config.train.seed)
        self.detector = build_training_detector(config, world, num_classes)
        self.loss = build_loss(config, self.detector, classes)
        self.average = WeightAverage(self.detector, config.train.ema_decay, config.train.ema_ramp)
        self.optimizer = build_optimizer(self.detector, config.train)
        self.schedule = build_schedule(self.optimizer, config.train, total_steps)
        self.early_stopping = EarlyStopping(config.train.patience, config.train.min_improvement)
        self.loss_scale = LossScale(world.device, self.optimizer, self.precision == "fp16")
        # A step that may be skipped is checked before it changes anything.
        on_cpu = world.device.type == "cpu"
        self.gradient_check = GradientCheck(not on_cpu and not config.train.skip_non_finite)
        self.network = parallelize(self.detector, config, world)
        self.learning_rate = 0.0  # of the last step
        self.skipped_steps = 0
        self._norm_statistics: list[Tensor] = []  # before the step, if it may be skipped

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Train on this rank's share of one global batch, at ``learning_rate``.

        The share is split into micro-batches; gradients are summed over micro-batches and ranks and
        normalised by the whole global batch. Returns scalars whose mean over ranks is the global
        batch's: losses, counts and ``gradient_norm``, in fp16 also ``loss_scale``.

        Raises NonFiniteGradientError, on every rank: on CPUs, and where a step may be skipped,
        before the gradient changes anything; else in the next step or in `check_gradients`.
        """
        self._batch = batch
        seed_step(self.config.train.seed, self.step_count, self.world.rank)
        self._resize_input(batch.images.shape[-1])
        self.network.train()
        if self.config.train.skip_non_finite:
            self._norm_statistics = [value.clone() for value in self._statistics()]
        tensors = self._on_device(batch)
        parts: dict[str, Tensor] = {}
        train = self.config.train
        # Synchronised norms communicate in every pass: all ranks need the same number of them.
        passes = train.passes(self.world.size) if train.sync_batch_norm else 1
        micro_batches = tensors.split(train.micro_batch, passes)
        static_parts = [self._static_part(part) for part in micro_batches]
        normalisers = self._normalisers(static_parts)
        for number, (micro_batch, static) in enumerate(
            zip(micro_batches, static_parts, strict=True), start=1
        ):
            with self._sync_gradients(last=number == len(micro_batches)):
                for name, value in self._backward(micro_batch, static, normalisers).items():
                    parts[name] = parts.get(name, torch.zeros_like(value)) + value
        if self.loss_scale.enabled:
            parts["loss_scale"] = self.loss_scale.value()
        parts["gradient_norm"] = self._update()
        return parts

    @property
    def progress(self) -> float:
        """Return the completed part of the training, 0 to 1, the same on every rank."""
        return self.step_count / self.total_steps

    def keep_precision(self, device: str | None, precision: str | None) -> None:
        """Continue in fp32 if that is what ``auto`` meant for the checkpoint, from CPUs.

        A training that was moved to CPUs with bf16, or began before `auto` used them, is then
        resumed exactly. The arguments are those of the checkpoint, None in old ones.
        """
        on_cpus = self.world.device.type == "cpu" and device in ("cpu", None)
        if self.config.train.precision == "auto" and on_cpus and precision in ("fp32", None):
            self.precision = "fp32"

    def check_gradients(self) -> None:
        """Raise NonFiniteGradientError if the last gradient was not finite; every rank calls it."""
        self.gradient_check.finish()

    def start_from(
        self, classes: Sequence[str], tracking_uri: str | None = None
    ) -> TransferReport | None:
        """Load ``model.init``, which rank 0 reads for all; return the report on rank 0."""
        report = None
        if self.world.is_main:
            report = start_from(self.config, self.detector, classes, tracking_uri)
        self.world.broadcast_tensors(self.detector.state_dict().values())
        self.average.module.load_state_dict(self.detector.state_dict())
        return report

    def _on_device(self, batch: Batch) -> Tensors:
        tensors = Tensors(*(value.to(self.world.device, non_blocking=True) for value in batch[:5]))
        images = tensors.images.contiguous(memory_format=memory_format(self.config))
        return tensors._replace(images=images)

    def _static_part(self, tensors: Tensors) -> StaticPart | None:
        return self.loss.static_part(
            self.detector.anchors,
            tensors.boxes,
            tensors.labels,
            tensors.valid,
            progress=self.progress,
        )

    def _normalisers(self, parts: Sequence[StaticPart | None]) -> Callable[[], Tensor | None]:
        counts = [part.positives for part in parts if part is not None]
        if not counts:
            return lambda: None
        # Only the loss needs the sum, so the collective runs during the forward pass.
        return self.world.begin_sum(torch.stack(counts).sum(0))

    def _resize_input(self, side: int) -> None:
        """Follow ``data.sizes``: anchors and their strides in the loss depend on the size."""
        if side != self.detector.image_size:
            self.detector.resize_input(side)
            self.loss = build_loss(self.config, self.detector, self.classes)

    def _backward(
        self, tensors: Tensors, static: StaticPart | None, summed: Callable[[], Tensor | None]
    ) -> dict[str, Tensor]:
        with autocast(self.world.device, self.precision):
            predictions = self.network(tensors.images)
        normalisers = summed()
        parts: dict[str, Tensor] = self.loss(
            predictions,
            self.detector.anchors,
            tensors.boxes,
            tensors.labels,
            ignore_boxes=tensors.ignore_boxes,
            valid=tensors.valid,
            normalisers=normalisers,
            static=static,
            progress=self.progress,
        )
        # DDP averages over ranks. Without shared normalisers, images weight a micro-batch.
        share = (
            1.0 if normalisers is not None else len(tensors.images) / self.config.train.batch_size
        )
        parts = {
            name: value * (self.world.size * (share if name.startswith("loss") else 1.0))
            for name, value in parts.items()
        }
        self.loss_scale.backward(parts["loss"])
        return {name: value.detach() for name, value in parts.items()}

    def _update(self) -> Tensor:
        self.loss_scale.unscale()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.config.train.clip_norm or math.inf)
        norm = self.loss_scale.without_overflow(norm)
        self.gradient_check.submit(self.step_count, self._batch, norm)
        self.learning_rate = float(self.schedule.get_last_lr()[0])
        self.loss_scale.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        self.average.update()
        self.step_count += 1
        return norm

    def skip_step(self) -> bool:
        """Complete a step whose gradient is not finite without an update, as configured.

        Weights, averages and momentum stay as they were before the step. Every rank calls it.
        Returns whether fewer than ``train.skip_non_finite`` steps were skipped before.
        """
        if self.skipped_steps >= self.config.train.skip_non_finite:
            return False
        for value, before in zip(self._statistics(), self._norm_statistics, strict=True):
            value.copy_(before)
        self.optimizer.zero_grad(set_to_none=True)
        self.loss_scale.skip()
        self.schedule.step()
        self.step_count += 1
        self.skipped_steps += 1
        return True

    def _statistics(self) -> list[Tensor]:
        """Return the saved buffers: the statistics of batch norms, which a forward pass changes."""
        saved = self.detector.state_dict()
        return [saved[name] for name, _ in self.detector.named_buffers() if name in saved]

    def _sync_gradients(self, last: bool) -> contextlib.AbstractContextManager[None]:
        if isinstance(self.network, DistributedDataParallel) and not last:
            return self.network.no_sync()
        return contextlib.nullcontext()

    def averaged(self) -> Detector:
        """Return the averaged detector in eval mode, with rank 0's statistics on every rank."""
        self.world.broadcast_tensors(self.average.module.buffers())
        return self.average.module

    def first_step_state(self) -> Iterator[nn.Parameter]:
        """Yield tensors like those that the first step of the optimizer adds to the state."""
        for _ in range(averages_per_parameter(self.config.train)):
            yield from self.detector.parameters()

    def state(self) -> dict[str, Any]:
        """Return all tensors that the next step depends on, and its number, without copying."""
        return {
            "model": self.detector.state_dict(),
            "ema": self.average.module.state_dict(),
            "ema_updates": self.average.updates,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "loss_scale": self.loss_scale.state(),
            "step": self.step_count,
            "skipped_steps": self.skipped_steps,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore a state returned by `state`."""
        self.detector.load_state_dict(state["model"])
        self.average.module.load_state_dict(state["ema"])
        self.average.updates = state["ema_updates"]
        restore_optimizer(self.optimizer, state["optimizer"])
        restore_schedule(self.schedule, self.optimizer, state["schedule"])
        self.loss_scale.load(state.get("loss_scale", {}))
        self.step_count = state["step"]
        self.skipped_steps = state.get("skipped_steps", 0)  # earlier versions skipped none
        if "patience" in state:  # format 2; from format 3 on meta.json alone has it
            self.early_stopping.load(
                EarlyStoppingState(
                    best=state["patience"]["best"],
                    evaluations_since_best=state["patience"]["waited"],
                )
            )


def build_loss(config: Config, detector: Detector, classes: Sequence[str] = ()) -> DetectionLoss:
    """Build the configured loss with the configured assigner, on the detector's device.

    Raises ValueError if `loss.class_weights` names a class that is not in ``classes``.
    """
    assigner = build_assigner(
        **config.assign.model_dump(),
        anchor_strides=detector.anchor_strides,
        anchors_per_cell=detector.anchor_shapes.per_cell,
    )
    loss = DetectionLoss(assigner, **config.loss.options(config.assign.name), classes=classes)
    return loss.to(detector.mean.device)
