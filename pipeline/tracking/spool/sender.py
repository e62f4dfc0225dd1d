"""Sends spooled records to MLflow, so that sending a record twice changes nothing."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.tracking.client import check_active, connect, exclusive_writes
from pipeline.tracking.spool.offline_runs import resolve_run
from pipeline.tracking.spool.records import (
    FileRecord,
    MetricPoints,
    SpoolRecord,
    StatusRecord,
    TagRecord,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric
    from mlflow.exceptions import MlflowException

_LOG = logging.getLogger(__name__)
_POINTS_PER_CALL = 1000  # MLflow's limit


class Sender:
    """Sends records to one run. It connects at the first record, so a server may start later.

    A point at a step that the run already has is dropped. Neither a resumed training nor a batch
    that is sent twice duplicates a point. Files, which old spools hold among other records, are
    passed to ``upload``.
    """

    def __init__(
        self, uri: str, run_id: str, folder: Path, upload: Callable[[FileRecord], object]
    ) -> None:
        self._uri, self.run_id, self._folder = uri, run_id, folder
        self._upload = upload
        self._client: MlflowClient | None = None
        self._lock = threading.Lock()
        self._start_time = 0  # of the run, in milliseconds since 1970
        self._last_steps: dict[str, int] = {}
        self._known_steps: dict[str, set[int]] = {}

    def send(self, records: Sequence[SpoolRecord]) -> int:
        """Send the leading records that fit one request. Return how many.

        Raises an exception if the request failed, RunDeletedError if the run was deleted.
        """
        client = self.client()
        try:
            with exclusive_writes(self._uri):
                return self._send(client, records)
        except Exception:
            check_active(self._uri, client.get_run(self.run_id))
            raise

    def _send(self, client: MlflowClient, records: Sequence[SpoolRecord]) -> int:
        match records[0]:
            case MetricPoints():
                batch = _leading_points(records)
                self._send_points(client, batch)
                return len(batch)
            case FileRecord() as file:
                self._upload(file)
            case TagRecord(key=key, value=value):
                self._set_tag(client, key, value)
            case StatusRecord(time=time, status=status):
                self._set_status(client, status, time)
        return 1

    def client(self) -> MlflowClient:
        """Return a client of the store; several threads may call this."""
        with self._lock:
            return self._client or self._connect()

    def _connect(self) -> MlflowClient:
        client = connect(self._uri)
        self.run_id = resolve_run(self._folder, client, self._uri, self.run_id)
        run = client.get_run(self.run_id)
        self._start_time = run.info.start_time
        self._last_steps = {m.key: m.step for m in run.to_proto().data.metrics}
        self._client = client
        return client

    def _send_points(self, client: MlflowClient, records: Sequence[MetricPoints]) -> None:
        points = [point for record in records for point in self._points(record)]
        new = [point for point in points if self._is_new(client, point)]
        for start in range(0, len(new), _POINTS_PER_CALL):
            self._log(client, new[start : start + _POINTS_PER_CALL])

    def _is_new(self, client: MlflowClient, point: Metric) -> bool:
        if point.step > self._last_steps.get(point.key, -1):
            return True
        # A step before the last one was sent already, or is in a gap that a killed process left.
        if point.key not in self._known_steps:
            sent = client.get_metric_history(self.run_id, point.key)
            self._known_steps[point.key] = {item.step for item in sent}
        return point.step not in self._known_steps[point.key]

    def _points(self, record: MetricPoints) -> list[Metric]:
        from mlflow.entities import Metric

        step = record.step
        if step is None:  # seconds since the run was created, across restarts
            step = max(0, record.time - self._start_time) // 1000
        return [Metric(key, value, record.time, step) for key, value in record.metrics.items()]

    def _log(self, client: MlflowClient, points: Sequence[Metric]) -> None:
        from mlflow.exceptions import MlflowException

        try:
            client.log_batch(self.run_id, metrics=points, synchronous=True)
        except MlflowException as error:
            # One rejected point must not block all others forever.
            self._check_rejection(client, error)
            if len(points) > 1:
                for point in points:
                    self._log(client, [point])
                return
            _LOG.warning("run %s rejected metric %s: %s", self.run_id, points[0].key, error.message)
        for point in points:
            self._last_steps[point.key] = max(point.step, self._last_steps.get(point.key, -1))
            if point.key in self._known_steps:
                self._known_steps[point.key].add(point.step)

    def _check_rejection(self, client: MlflowClient, error: MlflowException) -> None:
        """Raise the error again unless it is about a value, not about the run."""
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise error
        check_active(self._uri, client.get_run(self.run_id))

    def _set_tag(self, client: MlflowClient, key: str, value: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            client.set_tag(self.run_id, key, value)
        except MlflowException as error:
            self._check_rejection(client, error)
            _LOG.warning("run %s rejected tag %s: %s", self.run_id, key, error.message)

    def _set_status(self, client: MlflowClient, status: str, time: int) -> None:
        if status == "RUNNING":
            client.update_run(self.run_id, status=status)
        else:
            client.set_terminated(self.run_id, status, end_time=time)


def _leading_points(records: Sequence[SpoolRecord]) -> list[MetricPoints]:
    points = []
    for record in records:
        if not isinstance(record, MetricPoints):
            break
        points.append(record)
    return points
