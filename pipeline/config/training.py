"""The sections ``train`` and ``evaluate``."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from pipeline.config.base import Probability, Section
from pipeline.errors import UserError


class OptimizerDefaults(NamedTuple):
    """What ``train.lr`` and ``train.weight_decay`` are with an optimizer, where they are unset."""

    lr: float
    weight_decay: float


OPTIMIZERS = {
    "sgd": OptimizerDefaults(lr=0.05, weight_decay=5e-4),
    "adamw": OptimizerDefaults(lr=1e-3, weight_decay=0.05),
}


def _unset(option: str) -> str:
    """Return the defaults of an option by optimizer, for its description."""
    own = (f"{getattr(defaults, option):g} ({name})" for name, defaults in OPTIMIZERS.items())
    return f"unset: {', '.join(own)}"


class TrainConfig(Section):
    """Length, batch size, optimizer and numerics of one training."""

    epochs: float = Field(20.0, gt=0.0, description="passes over the training set")
    min_steps: int = Field(
        0, ge=0, description="minimum steps: epochs are raised to reach them on a small set"
    )
    batch_size: int = Field(
        8, ge=1, description="global batch size: images per step over all workers"
    )
    micro_batch: int = Field(
        32,
        ge=1,
        description="maximum images per forward pass and worker; gradients are accumulated over "
        "several passes",
    )
    optimizer: Literal["sgd", "adamw"] = Field(
        "sgd",
        description="sgd: stochastic gradient descent with momentum; adamw: Adam with decoupled "
        "weight decay",
    )
    lr: float | None = Field(
        None,
        gt=0.0,
        description=f"peak learning rate, for the global batch size; {_unset('lr')}",
    )
    backbone_lr: float = Field(
        1.0,
        gt=0.0,
        description="learning rate of the backbone, as a multiple of that of neck and heads",
    )
    lr_scaling: Literal["none", "linear", "sqrt"] = Field(
        "none",
        description="scale lr by batch_size / lr_batch (linear), by its square root (sqrt), or not "
        "at all (none)",
    )
    lr_batch: int = Field(8, ge=1, description="batch size that lr was chosen for, with lr_scaling")
    momentum: float = Field(0.9, ge=0.0, lt=1.0, description="momentum of sgd")
    nesterov: bool = Field(
        False, description="use Nesterov's momentum; needs sgd and train.momentum"
    )
    weight_decay: float | None = Field(
        None,
        ge=0.0,
        description="weight decay, not applied to norms and biases: added to the gradient (sgd), "
        f"or a share of the weights per step, times the learning rate (adamw); "
        f"{_unset('weight_decay')}",
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
        description="fp32, or bf16 or fp16 autocast; auto: bf16 on GPUs and CPUs that compute in "
        "it, fp16 on other GPUs, fp32 on other CPUs",
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
        if self.nesterov and self.optimizer != "sgd":
            raise ValueError(
                f"nesterov is true, but optimizer is {self.optimizer}, which has no momentum of "
                "this kind; set nesterov false, or optimizer sgd"
            )
        if self.nesterov and not self.momentum:
            raise ValueError(
                "nesterov is true, but momentum is 0; set a momentum, or nesterov false"
            )
        return self

    def recorded(self) -> dict[str, Any]:
        """Return the section with the values of ``lr`` and ``weight_decay`` that are in force."""
        following = {
            name: value
            for name, value in OPTIMIZERS[self.optimizer]._asdict().items()
            if getattr(self, name) is None
        }
        return {**self.model_dump(mode="json"), **following}

    def epochs_of(self, samples: int) -> float:
        """Return the epochs of a training on a set of this size: enough for ``min_steps``."""
        return max(self.epochs, self.min_steps * self.batch_size / max(1, samples))

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
