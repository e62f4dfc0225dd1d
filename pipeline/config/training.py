"""How long and where training runs, and how it is scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from pipeline.config.base import Probability, Section


class TrainConfig(Section):
    """Length, batch, optimizer and numerics of one training."""

    epochs: float = Field(20.0, gt=0.0, description="passes over the training set")
    batch_size: int = Field(8, ge=1, description="global batch G, images over all workers")
    micro_batch: int = Field(
        32,
        ge=1,
        description="most images per forward pass and worker; gradients of several passes add up",
    )
    lr: float = Field(0.05, gt=0.0, description="peak learning rate of SGD, for the global batch")
    lr_scaling: Literal["none", "linear", "sqrt"] = Field(
        "none",
        description="multiply lr by batch_size / lr_batch, by its square root, or by nothing",
    )
    lr_batch: int = Field(8, ge=1, description="batch size that lr is meant for, with lr_scaling")
    momentum: float = Field(0.9, ge=0.0, lt=1.0, description="SGD momentum")
    weight_decay: float = Field(5e-4, ge=0.0, description="L2 decay; none on norms and biases")
    warmup_steps: int = Field(100, ge=0, description="steps of linear warm-up before the cosine")
    final_lr: Probability = Field(0.01, description="last learning rate, as a share of lr")
    clip_norm: float = Field(
        10.0, gt=0.0, description="largest norm of the whole gradient; longer ones are shortened"
    )
    ema_decay: float = Field(
        0.998,
        ge=0.0,
        lt=1.0,
        description="decay of the averaged weights, per step; 0: no average",
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="fixes weights, order, augmentation")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="bf16 autocast or full precision; auto: bf16 on GPU"
    )
    channels_last: bool = Field(True, description="memory layout of images and weights")
    compile: bool = Field(
        False, description="compile the network with torch.compile; the first steps take minutes"
    )
    sync_batch_norm: bool = Field(
        False, description="batch norm over the images of all workers; needs ray.gpu"
    )
    patience: int = Field(
        0,
        ge=0,
        description="stop after this many evaluations on data.val without a better one; 0: never",
    )
    min_improvement: float = Field(
        0.0, ge=0.0, le=1.0, description="rise of val/ap that counts as better, for patience"
    )
    profile_steps: int = Field(
        0,
        ge=0,
        le=100,
        description="steps of rank 0, after 5 others, whose trace goes to the run; 0: none",
    )
    checkpoint_every: float = Field(1.0, gt=0.0, description="epochs between checkpoints")
    checkpoint_steps: int = Field(
        0, ge=0, description="steps between checkpoints, besides those of the epochs; 0: none"
    )
    checkpoint_minutes: float = Field(
        10.0,
        ge=0.0,
        description="most minutes without a checkpoint, at least 5 s; 0: no limit",
    )
    keep_checkpoints: int = Field(
        2,
        ge=1,
        description="best checkpoints kept, or last ones without data.val; the latest stays too",
    )
    log_every: int = Field(10, ge=1, description="steps between logged loss values")


class EvaluateConfig(Section):
    """Post-processing and scoring."""

    every: float = Field(1.0, gt=0.0, description="epochs between evaluations on data.val")
    batch_size: int = Field(16, ge=1, description="images per forward pass and worker")
    score_threshold: Probability = Field(0.01, description="lowest score of a scored detection")
    nms_iou: Probability = Field(0.5, description="overlap above which the weaker box is dropped")
    class_agnostic: bool = Field(
        False, description="let boxes of different classes suppress each other too"
    )
    max_candidates: int = Field(1000, ge=1, description="boxes per image that enter NMS")
    max_detections: int = Field(100, ge=1, description="boxes per image that leave NMS")
    pictures: int = Field(8, ge=0, description="images drawn with truth beside detections")


class RayConfig(Section):
    """Workers and where their files go."""

    enabled: bool = Field(
        True,
        description="train in Ray workers; false: in this process, or in those of torchrun",
    )
    address: str | None = Field(
        None,
        description="cluster to join; unset: $RAY_ADDRESS, else a local one is started",
    )
    workers: int | tuple[int, int] = Field(
        1,
        description="training workers (ranks), or [fewest, most]: as many as there is room for",
    )
    resize_seconds: float = Field(
        60.0, ge=1.0, description="seconds between looks for room for more workers, up to the most"
    )
    collective_timeout: int = Field(
        1800, ge=1, description="seconds a worker waits for the others before the training fails"
    )
    cpus_per_worker: float = Field(1.0, gt=0.0, description="CPUs reserved for each worker")
    gpu: bool = Field(False, description="give each worker one GPU")
    threads_per_worker: int = Field(
        0, ge=0, description="compute threads of a worker; 0: its CPUs, at least one"
    )
    storage: str | None = Field(
        None,
        description="absolute folder or URI for checkpoints, seen by all nodes; unset: ./runs",
    )
    max_failures: int = Field(3, ge=0, description="restarts after a worker fails")
    wait_for_nodes: float = Field(
        0.0,
        ge=0.0,
        description="minutes to wait for nodes that the cluster does not have yet, such as those "
        "an autoscaler adds; 0: refuse to start without them",
    )

    @property
    def fewest_workers(self) -> int:
        """Workers that training needs to go on."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        """Workers that training uses where there is room."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @field_validator("workers", mode="before")
    @classmethod
    def _number_or_range(cls, value: Any) -> int | tuple[int, int]:
        # The command line gives one number as a list.
        numbers = list(value) if isinstance(value, list | tuple) else [value]
        if not 1 <= len(numbers) <= 2 or not all(str(n).isdecimal() for n in numbers):
            raise ValueError(f"{value!r} is neither a number of workers nor [fewest, most]")
        fewest, most = int(numbers[0]), int(numbers[-1])
        if not 1 <= fewest <= most:
            given = fewest if len(numbers) == 1 else numbers
            raise ValueError(f"{given} is too few, or the most before the fewest")
        return fewest if len(numbers) == 1 else (fewest, most)

    @field_validator("storage")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        if value is not None and "://" not in value and not Path(value).is_absolute():
            raise ValueError(f"{value!r} is relative; give an absolute folder or a URI")
        return value
