"""Translate errors of torch that users can act on into messages that say what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from pipeline.config import Config
from pipeline.distributed.world import World
from pipeline.errors import OutageError, TrainingFailed, TrainingStopped, UserError

LOST_WORKER = "lost another worker"
LOST_PROCESS = "has died: killed, as the kernel does when memory runs out, or crashed"


class UnrecoverableFailure(TrainingFailed):
    """A failure on every rank that a restart would only repeat."""


@contextlib.contextmanager
def translate_errors(config: Config, world: World) -> Iterator[None]:
    """Translate errors raised inside the block.

    Raises UserError if memory or the compiler is missing, TrainingFailed if another rank is lost,
    which a restart may repair, and UnrecoverableFailure if a gradient is not finite.
    """
    try:
        yield
    except FloatingPointError as error:
        raise UnrecoverableFailure(str(error)) from error
    except (OutageError, TrainingFailed, TrainingStopped):
        raise
    except RuntimeError as error:
        translated = _translate(error, config, world)
        if translated is None:
            raise
        raise translated from error


def last_line(error: BaseException) -> str:
    """Return the last line of an error's cause: Ray wraps tracebacks into messages."""
    lines = str(error.__cause__ or error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


def _translate(error: RuntimeError, config: Config, world: World) -> Exception | None:
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
        f"train.micro_batch (now {min(train.micro_batch, share)} images per pass; more passes "
        "compute the same step)",
        f"evaluate.batch_size (now {config.evaluate.batch_size})",
        f"model.image_size (now {config.model.image_size})",
    ]
    half = "" if train.precision != "fp32" else ", or set train.precision to bf16"
    device = "GPU" if world.device.type == "cuda" else "CPU"
    return f"rank {world.rank} is out of {device} memory: lower {', '.join(hints)}{half}"
