"""The sections ``train``, ``evaluate`` and ``ray``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.base import Probability, Section
from pipeline.errors import UserError


class TrainConfig(Section):
    """Length, batch size, optimizer and numerics of one training."""

    epochs: float = Field(20.0, gt=0.0, description="passes over the training set")
    batch_size: int = Field(
        8, ge=1, description="global batch size: images per step over all workers"
    )
    micro_batch: int = Field(
        32,
        ge=1,
        description="maximum images per forward pass and worker; gradients are accumulated over "
        "several passes",
    )
    lr: float = Field(
        0.05, gt=0.0, description="peak learning rate of SGD, for the global batch size"
    )
    lr_scaling: Literal["none", "linear", "sqrt"] = Field(
        "none",
        description="scale lr by batch_size / lr_batch (linear), by its square root (sqrt), or not "
        "at all (none)",
    )
    lr_batch: int = Field(8, ge=1, description="batch size that lr was chosen for, with lr_scaling")
    momentum: float = Field(0.9, ge=0.0, lt=1.0, description="SGD momentum")
    nesterov: bool = Field(False, description="use Nesterov's momentum; needs train.momentum")
    weight_decay: float = Field(
        5e-4, ge=0.0, description="L2 weight decay; not applied to norms and biases"
    )
    warmup_steps: int = Field(
        100, ge=0, description="steps of linear warm-up before the cosine decay"
    )
    final_lr: Probability = Field(0.01, description="final learning rate, as a fraction of lr")
    clip_norm: float = Field(
        10.0,
        ge=0.0,
        description="maximum norm of the whole gradient; larger ones are clipped; 0: no clipping",
    )
    skip_non_finite: int = Field(
        0,
        ge=0,
        description="batches with a non-finite gradient that are skipped before training fails",
    )
    ema_decay: float = Field(
        0.998,
        ge=0.0,
        lt=1.0,
        description="decay per step of the averaged weights (EMA); 0: no averaging",
    )
    ema_ramp: float = Field(
        200.0,
        gt=0.0,
        description="steps over which ema_decay is approached: decay x (1 - exp(-step / ema_ramp))",
    )
    seed: int = Field(
        0, ge=0, le=2**31 - 1, description="seed of initial weights, sample order and augmentation"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="fp32, or bf16 or fp16 autocast; auto: bf16 on GPUs that have it, fp16 on "
        "other GPUs, fp32 on CPUs",
    )
    channels_last: bool = Field(
        True, description="use the channels-last memory layout for images and weights"
    )
    compile: bool = Field(
        False,
        description="use torch.compile; the first step, and the first one of each of data.sizes, "
        "then takes minutes",
    )
    sync_batch_norm: bool = Field(
        False, description="compute batch-norm statistics over all workers; needs GPUs"
    )
    patience: int = Field(
        0,
        ge=0,
        description="stop after this many evaluations on data.val without improvement (early "
        "stopping); 0: never",
    )
    min_improvement: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="increase of val/ap (VOC: val/ap50) that counts as improvement, for patience",
    )
    profile_steps: int = Field(
        0,
        ge=0,
        le=100,
        description="steps of rank 0 to profile, after 5 warm-up steps; the trace is logged to the "
        "run; 0: none",
    )
    checkpoint_every: float = Field(1.0, gt=0.0, description="epochs between checkpoints")
    checkpoint_steps: int = Field(
        0, ge=0, description="steps between additional checkpoints; 0: none"
    )
    checkpoint_minutes: float = Field(
        10.0,
        ge=0.0,
        description="maximum minutes between checkpoints, at least 5 s; 0: no limit",
    )
    keep_checkpoints: int = Field(
        2,
        ge=1,
        description="best checkpoints to keep (without data.val: the last ones); the latest is "
        "always kept",
    )
    log_every: int = Field(10, ge=1, description="steps between logged losses")

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> TrainConfig:
        if self.nesterov and not self.momentum:
            raise ValueError(
                "nesterov is true, but momentum is 0; set a momentum, or nesterov false"
            )
        return self

    def passes(self, workers: int) -> int:
        """Return the number of forward passes of the worker with the largest share of a batch.

        Raises UserError if ``sync_batch_norm`` needs as many passes of a worker with fewer images.
        """
        passes = math.ceil(math.ceil(self.batch_size / workers) / self.micro_batch)
        if self.sync_batch_norm and workers <= self.batch_size < passes * workers:
            raise UserError(
                f"train.sync_batch_norm with train.micro_batch {self.micro_batch} needs a "
                f"train.batch_size that is divisible by the workers: {self.batch_size} images for "
                f"{workers} workers; raise train.micro_batch to 2, or change the other two"
            )
        return passes


Protocol = Literal["coco", "voc07", "voc"]


class EvaluateConfig(Section):
    """Post-processing and evaluation."""

    protocol: Protocol = Field(
        "coco",
        description="how a set is scored: coco (AP over IoU 0.50:0.95 decides), voc07 (11-point AP "
        "at IoU 0.5 decides) or voc (area under the curve at IoU 0.5 decides)",
    )
    every: float = Field(1.0, gt=0.0, description="epochs between evaluations on data.val")
    batch_size: int = Field(16, ge=1, description="images per forward pass and worker")
    score_threshold: Probability = Field(
        0.01, description="minimum score of detections that are evaluated"
    )
    nms_iou: Probability = Field(
        0.5, description="IoU above which the lower-scored box is suppressed"
    )
    class_agnostic: bool = Field(
        False, description="let boxes of different classes suppress each other (class-agnostic NMS)"
    )
    max_candidates: int = Field(1000, ge=1, description="maximum boxes per image before NMS")
    max_detections: int = Field(100, ge=1, description="maximum boxes per image after NMS")
    pictures: int = Field(
        8, ge=0, description="images logged with ground truth and detections drawn side by side"
    )

    @property
    def deciding_metric(self) -> str:
        """Return the metric on data.val that ranks checkpoints and stops a training early."""
        return deciding_metric(self.protocol)


def deciding_metric(protocol: str) -> str:
    """Return the metric on data.val that ranks the checkpoints of a protocol."""
    return "val/ap" if protocol == "coco" else "val/ap50"


class RayConfig(Section):
    """Workers, and where their files are stored."""

    enabled: bool = Field(
        True,
        description="train in Ray workers; false: in this process, or in the processes of torchrun",
    )
    address: str | None = Field(
        None,
        description="Ray cluster to join; unset: $RAY_ADDRESS, else a local cluster is started",
    )
    workers: int | tuple[int, int] = Field(
        1,
        description="number of training workers (ranks), or [min, max]: as many as the cluster has "
        "resources for",
    )
    resize_seconds: float = Field(
        60.0, ge=1.0, description="seconds between checks whether more workers can be added"
    )
    collective_timeout: int = Field(
        1800,
        ge=1,
        description="seconds that a worker waits for the others before the training fails",
    )
    cpus_per_worker: float = Field(1.0, gt=0.0, description="CPUs reserved for each worker")
    gpu: bool | Literal["auto"] = Field(
        "auto",
        description="give each worker one GPU; auto: if the cluster, or without Ray each machine, "
        "has one for every worker when the training starts",
    )
    threads_per_worker: int = Field(
        0, ge=0, description="compute threads per worker; 0: as many as its CPUs, at least one"
    )
    storage: str | None = Field(
        None,
        description="absolute folder or URI for checkpoints that all nodes can access (without "
        "Ray: rank 0); unset: ./runs",
    )
    lease_seconds: float = Field(
        60.0,
        ge=1.0,
        description="seconds without a heartbeat of the driver after which another machine may "
        "take over its run",
    )
    max_failures: int = Field(
        3,
        ge=-1,
        description="restarts after worker failures; lost nodes, outages and mistakes do not "
        "count; -1: no limit",
    )
    max_outages: int = Field(
        20,
        ge=-1,
        description="restarts, after growing pauses of up to 5 minutes, when data, storage or the "
        "run store does not respond; -1: no limit",
    )
    wait_for_nodes: float = Field(
        0.0,
        ge=0.0,
        description="minutes to wait for nodes that the cluster does not have yet, such as those "
        "of an autoscaler; 0: refuse to start without them",
    )

    def storage_uri(self) -> str:
        """Return the configured storage, by default ``./runs`` as an absolute path."""
        return self.storage or str(Path("runs").absolute())

    @property
    def min_workers(self) -> int:
        """Return the number of workers that training needs at least."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def max_workers(self) -> int:
        """Return the number of workers that training uses at most."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @field_validator("workers", mode="before")
    @classmethod
    def _number_or_range(cls, value: Any) -> int | tuple[int, int]:
        # The command line passes a single number as a list.
        numbers = list(value) if isinstance(value, list | tuple) else [value]
        if not 1 <= len(numbers) <= 2 or not all(str(n).isdecimal() for n in numbers):
            raise ValueError(f"{value!r} is neither a number of workers nor [min, max]")
        low, high = int(numbers[0]), int(numbers[-1])
        if not 1 <= low <= high:
            given = low if len(numbers) == 1 else numbers
            raise ValueError(f"{given} is not valid; give 1 or more, and [min, max] in that order")
        return low if len(numbers) == 1 else (low, high)

    @field_validator("gpu", mode="before")
    @classmethod
    def _boolean_or_auto(cls, value: Any) -> bool | str:
        # The command line and the environment pass text.
        known: dict[str, bool | str] = {"true": True, "false": False, "auto": "auto"}
        if str(value).lower() not in known:
            raise ValueError(f"{value!r} is not true, false or auto")
        return known[str(value).lower()]

    @field_validator("storage")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        if value is not None and "://" not in value and not Path(value).is_absolute():
            raise ValueError(f"{value!r} is a relative path; give an absolute path or a URI")
        return value
