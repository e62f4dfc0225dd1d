"""Change the number of workers of a running training only after a checkpoint.

This module is imported only where Ray Train is used, because importing Ray Train takes seconds.
"""

from __future__ import annotations

from typing import Any

from pipeline.distributed import ray_private_api
from pipeline.training.ray_backend.resize import request_save, save_result, withdraw_request

_Base: Any = ray_private_api.elastic_scaling_policy()
_Resize, _Noop = ray_private_api.scaling_decisions()


class ElasticPolicy(_Base):
    """The scaling policy of Ray Train's controller for a range of workers.

    Once Ray's own policy decides to change the number of running workers, a checkpoint is
    requested, and the change follows when it is written. If it cannot be written, training
    continues, and the next check, after ``ray.resize_seconds``, decides again.
    """

    def __init__(self, scaling_config: Any, driver: str) -> None:
        super().__init__(scaling_config)
        self.driver = driver
        self._pending: Any = None

    def make_decision_for_non_running_worker_group(self) -> Any:
        """Return the number of workers to start, or that there are no resources yet."""
        self._pending = None
        withdraw_request(self.driver)
        return super().make_decision_for_non_running_worker_group()

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> Any:
        """Return a change of the number of workers if it is due and their work is saved."""
        decision = super().make_decision_for_running_worker_group(
            worker_group_state, worker_group_status
        )
        if self._pending is not None:
            return self._after_request()
        if isinstance(decision, _Resize):
            self._pending = decision
            request_save(self.driver, decision.num_workers)
            return _Noop()
        return decision

    def _after_request(self) -> Any:
        saved = save_result(self.driver)
        if saved is None:
            return _Noop()
        decision, self._pending = self._pending, None
        return decision if saved else _Noop()
