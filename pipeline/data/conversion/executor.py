"""Run the tasks of a conversion, in this process or in parallel on Ray; results come in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

from pipeline.data.sources.record import SourceImage
from pipeline.errors import UserError
from pipeline.progress import Progress

CANCEL_TIMEOUT_SECONDS = 30.0
Result = TypeVar("Result")
ResultOut = TypeVar("ResultOut", covariant=True)


class Task(Protocol[ResultOut]):
    """Work on some images that can be sent to another process."""

    @property
    def images(self) -> list[SourceImage]:
        """Return the images to work on."""

    def load_result(self) -> ResultOut | None:
        """Return the result of an earlier run, if it is still valid."""

    def run(self, tick: Callable[[], None]) -> ResultOut:
        """Do the work; ``tick`` is called after each image."""


def run_tasks(tasks: Iterable[Task[Result]], workers: int, progress: Progress) -> Iterator[Result]:
    """Yield results in the order of the tasks; more than one worker means Ray.

    Tasks with a valid earlier result are not run. Raises what a task raises.
    """
    if workers > 1:
        yield from _run_on_ray(tasks, workers, progress)
        return
    for task in tasks:
        if (result := task.load_result()) is not None:
            progress.skip(len(task.images))
            yield result
        else:
            yield task.run(progress.advance)


def _run_on_ray(
    tasks: Iterable[Task[Result]], workers: int, progress: Progress
) -> Iterator[Result]:
    # Imported here, because a single process needs no Ray.
    from pipeline.config import RayConfig
    from pipeline.distributed.ray_cluster import ray_cluster

    with ray_cluster(RayConfig(workers=1)):
        pool = _RayPool(workers, progress)
        progress.restart()  # the start of Ray is not a part of the rate
        try:
            for number, task in enumerate(tasks):
                pool.submit(number, task)
                yield from pool.next_results()
            while pool.running:
                pool.collect()
                yield from pool.next_results()
        finally:
            pool.cancel()


class _RayPool:
    """Runs a limited number of tasks at a time on Ray and returns their results in order."""

    def __init__(self, workers: int, progress: Progress) -> None:
        import ray

        self.ray: Any = ray
        self.remote: Any = ray.remote(num_cpus=1)(_run)
        self.workers, self.progress = workers, progress
        self.running: dict[Any, tuple[int, int]] = {}  # number and images of each task
        self.results: dict[int, Any] = {}
        self.next_number = 0

    def submit(self, number: int, task: Task[Any]) -> None:
        """Start a task without a valid earlier result, once a worker is free."""
        if (result := task.load_result()) is not None:
            self.results[number] = result
            self.progress.skip(len(task.images))
            return
        while len(self.running) >= self.workers:
            self.collect()
        self.running[self.remote.remote(task)] = (number, len(task.images))

    def collect(self) -> None:
        """Wait for one result. Raises what the task raised."""
        ready, _ = self.ray.wait(list(self.running), num_returns=1)
        number, images = self.running.pop(ready[0])
        try:
            self.results[number] = self.ray.get(ready[0])
        except self.ray.exceptions.RayTaskError as error:
            cause = error.cause
            raise (cause if isinstance(cause, UserError | OSError) else error) from None
        self.progress.advance(images)

    def next_results(self) -> Iterator[Any]:
        """Yield the results that are next in order."""
        while self.next_number in self.results:
            yield self.results.pop(self.next_number)
            self.next_number += 1

    def cancel(self) -> None:
        """Cancel the running tasks and wait until they no longer write."""
        for reference in self.running:
            self.ray.cancel(reference)
        if self.running:
            running = list(self.running)
            self.ray.wait(running, num_returns=len(running), timeout=CANCEL_TIMEOUT_SECONDS)


def _run(task: Task[Result]) -> Result:
    return task.run(lambda: None)
