"""Tasks of a conversion, run one after the other here or side by side on Ray; results in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

from pipeline.errors import UserError
from pipeline.progress import Progress

STOP_S = 30.0
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


def run_tasks(tasks: Iterable[Task[Result]], workers: int, progress: Progress) -> Iterator[Result]:
    """Results in the order of the tasks; with more than one worker, made on Ray.

    Raises what a task raises. Tasks that others have finished before are not run.
    """
    if workers > 1:
        yield from _on_ray(tasks, workers, progress)
        return
    for task in tasks:
        if (known := task.finished()) is not None:
            progress.skip(len(task.items))
            yield known
        else:
            yield task.run(progress.advance)


def _on_ray(tasks: Iterable[Task[Result]], workers: int, progress: Progress) -> Iterator[Result]:
    # Here, so that one process alone needs no Ray.
    from pipeline.config import RayConfig
    from pipeline.distributed.ray_cluster import ray_cluster

    with ray_cluster(RayConfig(workers=1)):
        pool = _Pool(workers, progress)
        progress.restart()  # the start of Ray is not a part of the rate
        try:
            for number, task in enumerate(tasks):
                pool.give(number, task)
                yield from pool.next_results()
            while pool.running:
                pool.collect()
                yield from pool.next_results()
        finally:
            pool.stop()


class _Pool:
    """Up to so many tasks at a time on Ray, and their results in order."""

    def __init__(self, workers: int, progress: Progress) -> None:
        import ray

        self.ray: Any = ray
        self.remote: Any = ray.remote(num_cpus=1)(_run)
        self.workers, self.progress = workers, progress
        self.running: dict[Any, tuple[int, int]] = {}  # number and images of a task
        self.results: dict[int, Any] = {}
        self.told = 0

    def give(self, number: int, task: Task[Any]) -> None:
        """Start a task, unless it was finished before; waits for a free worker."""
        if (known := task.finished()) is not None:
            self.results[number] = known
            self.progress.skip(len(task.items))
            return
        while len(self.running) >= self.workers:
            self.collect()
        self.running[self.remote.remote(task)] = (number, len(task.items))

    def collect(self) -> None:
        """Wait for a result. Raises what the task raised."""
        ready, _ = self.ray.wait(list(self.running), num_returns=1)
        number, images = self.running.pop(ready[0])
        try:
            self.results[number] = self.ray.get(ready[0])
        except self.ray.exceptions.RayTaskError as error:
            cause = error.cause
            raise (cause if isinstance(cause, UserError | OSError) else error) from None
        self.progress.advance(images)

    def next_results(self) -> Iterator[Any]:
        """Those that are next in order."""
        while self.told in self.results:
            yield self.results.pop(self.told)
            self.told += 1

    def stop(self) -> None:
        """End what still runs, so that nothing writes any more."""
        for reference in self.running:
            self.ray.cancel(reference)
        if self.running:
            self.ray.wait(list(self.running), num_returns=len(self.running), timeout=STOP_S)


def _run(task: Task[Result]) -> Result:
    return task.run(lambda: None)
