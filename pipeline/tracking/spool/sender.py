"""Turns spooled records into MLflow calls, so that sending one twice changes nothing."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.tracking.client import connect
from pipeline.tracking.spool.offline_runs import resolve_run
from pipeline.tracking.spool.record_queue import Record

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

_LOG = logging.getLogger(__name__)
_POINTS_PER_CALL = 1000  # MLflow's limit


class Sender:
    """Sends to one run; the client is made at the first record, so a server may come up later.

    A point that the run has already, at that step, is dropped: neither a resumed training nor a
    batch that was sent twice doubles one.
    """

    def __init__(self, uri: str, run_id: str, folder: Path) -> None:
        self._uri, self.run_id, self._folder = uri, run_id, folder
        self._client: MlflowClient | None = None
        self._started = 0
        self._last_steps: dict[str, int] = {}
        self._known_steps: dict[str, set[int]] = {}

    def send(self, records: Sequence[Record]) -> int:
        """Send the leading records that make one call; returns how many. Raises if it failed."""
        client = self._client or self._connect()
        first = records[0]
        if "metrics" in first:
            batch = list(takewhile(lambda record: "metrics" in record, records))
            self._send_points(client, batch)
            return len(batch)
        if "file" in first:
            self._send_file(client, Path(first["file"]), first["folder"])
        elif "tag" in first:
            client.set_tag(self.run_id, *first["tag"])
        elif "status" in first:
            self._set_status(client, first["status"], first["time"])
        return 1

    def _connect(self) -> MlflowClient:
        client = connect(self._uri)
        self.run_id = resolve_run(self._folder, client, self._uri, self.run_id)
        run = client.get_run(self.run_id)
        self._started = run.info.start_time
        self._last_steps = {m.key: m.step for m in run.to_proto().data.metrics}
        self._client = client
        return client

    def _send_points(self, client: MlflowClient, records: Sequence[Record]) -> None:
        points = [point for record in records for point in self._points(record)]
        new = [point for point in points if self._is_new(client, point)]
        for start in range(0, len(new), _POINTS_PER_CALL):
            self._log(client, new[start : start + _POINTS_PER_CALL])

    def _is_new(self, client: MlflowClient, point: Metric) -> bool:
        if point.step > self._last_steps.get(point.key, -1):
            return True
        # Behind the last step lies what was sent before, or a gap that a killed process left.
        if point.key not in self._known_steps:
            sent = client.get_metric_history(self.run_id, point.key)
            self._known_steps[point.key] = {item.step for item in sent}
        return point.step not in self._known_steps[point.key]

    def _points(self, record: Record) -> list[Metric]:
        from mlflow.entities import Metric

        step, time = record["step"], record["time"]
        if step is None:  # system metrics: seconds since the run began, across restarts
            step = max(0, time - self._started) // 1000
        return [Metric(key, value, time, step) for key, value in record["metrics"].items()]

    def _log(self, client: MlflowClient, points: Sequence[Metric]) -> None:
        from mlflow.exceptions import MlflowException

        try:
            client.log_batch(self.run_id, metrics=points, synchronous=True)
        except MlflowException as error:
            # One refused point must not hold up all others for ever.
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            if len(points) > 1:
                for point in points:
                    self._log(client, [point])
                return
            _LOG.warning("run %s refused metric %s: %s", self.run_id, points[0].key, error.message)
        for point in points:
            self._last_steps[point.key] = max(point.step, self._last_steps.get(point.key, -1))
            if point.key in self._known_steps:
                self._known_steps[point.key].add(point.step)

    def _set_status(self, client: MlflowClient, status: str, time: int) -> None:
        if status == "RUNNING":
            client.update_run(self.run_id, status=status)
        else:
            client.set_terminated(self.run_id, status, end_time=time)

    def _send_file(self, client: MlflowClient, path: Path, folder: str) -> None:
        if not path.is_file():
            _LOG.warning("run %s: %s is gone and was not recorded", self.run_id, path)
            return
        client.log_artifact(self.run_id, str(path), folder or None)
        shutil.rmtree(path.parent, ignore_errors=True)
