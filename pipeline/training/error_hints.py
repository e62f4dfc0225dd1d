"""Errors of torch that a person can do something about, in words that say what."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from pipeline.config import Config
from pipeline.distributed.world import World
from pipeline.errors import TrainingFailed, TrainingStopped, UserError

LOST_WORKER = "lost another worker"


class FailedForGood(TrainingFailed):
    """A failure that every rank knows of and that a restart would only repeat."""


@contextlib.contextmanager
def explained(config: Config, world: World) -> Iterator[None]:
    """Raise UserError where memory or the compiler is missing, TrainingFailed where a rank is.

    A gradient that is not finite is a FailedForGood. Only a lost rank is worth a restart.
    """
    try:
        yield
    except FloatingPointError as error:
        raise FailedForGood(str(error)) from error
    except (TrainingFailed, TrainingStopped):
        raise
    except RuntimeError as error:
        reason = _reason(error, config, world)
        if reason is None:
            raise
        raise reason from error


def told(error: BaseException) -> str:
    """The last line of what lies at the bottom of an error: Ray wraps tracebacks into messages."""
    lines = str(error.__cause__ or error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


def _reason(error: RuntimeError, config: Config, world: World) -> Exception | None:
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text:
        return UserError(_out_of_memory(config, world))
    if config.train.compile and type(error).__module__.startswith(("torch._dynamo", "torch._ind")):
        return UserError(f"train.compile failed, set it to false: {text.strip().splitlines()[0]}")
    if "Timed out waiting" in text or "Watchdog caught collective operation timeout" in text:
        return TrainingFailed(
            f"rank {world.rank} waited {config.ray.collective_timeout} s for the other workers "
            "(ray.collective_timeout): one of them hangs or is far slower; see its log"
        )
    if "Connection closed by peer" in text or "Connection reset by peer" in text:
        return TrainingFailed(f"rank {world.rank} {LOST_WORKER}, which has ended; see its log")
    return None


def _out_of_memory(config: Config, world: World) -> str:
    train = config.train
    share = -(-train.batch_size // world.size)
    hints = [
        f"train.micro_batch (now {min(train.micro_batch, share)} images a pass; more passes give "
        "the same step)",
        f"evaluate.batch_size (now {config.evaluate.batch_size})",
        f"model.image_size (now {config.model.image_size})",
    ]
    half = "" if train.precision != "fp32" else ", or set train.precision to bf16"
    kind = "GPU" if world.device.type == "cuda" else "CPU"
    return f"rank {world.rank} is out of {kind} memory: lower {', '.join(hints)}{half}"
