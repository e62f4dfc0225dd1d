"""Tasks of a conversion, run one after the other here or side by side on Ray; results in order."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

from pipeline.errors import UserError

SAY_EVERY_S = 2.0
Result = TypeVar("Result")
ResultOut = TypeVar("ResultOut", covariant=True)


class Task(Protocol[ResultOut]):
    """A piece of work on some images that can travel to another process."""

    @property
    def items(self) -> list[Any]:
        """The images."""

    def finished(self) -> ResultOut | None:
        """The result, if it is there already."""

    def run(self, tick: Callable[[], None]) -> ResultOut:
        """Do it, calling ``tick`` after each image."""


class Progress:
    """Images done, their rate and the time left, as a line on stderr every few seconds."""

    def __init__(self, verb: str, total: int) -> None:
        self.verb, self.total = verb, total
        self.done = self.kept = 0
        self.began = self.said = time.monotonic()

    def keep(self, images: int) -> None:
        """Count images that needed no work; they do not count for the rate."""
        self.kept += images

    def tick(self, images: int = 1) -> None:
        """Count images."""
        self.done += images
        now = time.monotonic()
        if now - self.said >= SAY_EVERY_S:
            self.said = now
            have = self.done + self.kept
            left = max(self.total - have, 0) * (now - self.began) / self.done
            line = f"{have}/{self.total} images, {self.rate():.0f}/s, {left:.0f} s left"
            print(f"  {self.verb}: {line}", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Say what came of it, if it took long enough to have said anything before."""
        if self.kept:
            print(f"  {self.verb}: {self.kept} images were done before", file=sys.stderr)
        if self.said > self.began:
            print(f"  {self.verb}: {self.done} images, {self.rate():.0f}/s", file=sys.stderr)

    def rate(self) -> float:
        """Images per second so far."""
        return self.done / max(time.monotonic() - self.began, 1e-6)


def run_tasks(tasks: Iterable[Task[Result]], workers: int, progress: Progress) -> Iterator[Result]:
    """Results in the order of the tasks; with more than one worker, made on Ray.

    Raises what a task raises. Tasks that others have finished before are not run.
    """
    if workers > 1:
        yield from _on_ray(tasks, workers, progress)
        return
    for task in tasks:
        if (known := task.finished()) is not None:
            progress.keep(len(task.items))
            yield known
        else:
            yield task.run(progress.tick)


def _on_ray(tasks: Iterable[Task[Result]], workers: int, progress: Progress) -> Iterator[Result]:
    # Here, so that one process alone needs no Ray.
    from pipeline.config import RayConfig
    from pipeline.training.cluster import ray_cluster

    with ray_cluster(RayConfig(workers=1)):
        import ray

        remote: Any = ray.remote(num_cpus=1)(_run)
        running: dict[Any, tuple[int, int]] = {}
        results: dict[int, Result] = {}
        ahead = 0

        def collect() -> None:
            ready, _ = ray.wait(list(running), num_returns=1)
            number, images = running.pop(ready[0])
            try:
                results[number] = ray.get(ready[0])
            except ray.exceptions.RayTaskError as error:
                cause = error.cause
                raise (cause if isinstance(cause, UserError | OSError) else error) from None
            progress.tick(images)

        progress.began = time.monotonic()  # the start of Ray is no part of the rate
        for number, task in enumerate(tasks):
            if (known := task.finished()) is not None:
                results[number] = known
                progress.keep(len(task.items))
            else:
                while len(running) >= workers:
                    collect()
                running[remote.remote(task)] = (number, len(task.items))
            while ahead in results:
                yield results.pop(ahead)
                ahead += 1
        while running or results:
            if ahead not in results:
                collect()
            while ahead in results:
                yield results.pop(ahead)
                ahead += 1


def _run(task: Task[Result]) -> Result:
    return task.run(lambda: None)
