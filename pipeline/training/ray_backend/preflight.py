"""Check within seconds, before training, that all nodes see the same storage."""

from __future__ import annotations

import platform
from typing import Any

from pipeline.errors import UserError
from pipeline.storage.document import DocumentError
from pipeline.storage.folder import Storage
from pipeline.storage.redact import error_line, mask
from pipeline.training.run_record import RECORD_FILE, RunInfo, RunRecord

CHECK_SECONDS = 60.0


def check_nodes(record: RunRecord, run_id: str) -> None:
    """Read the run's record and write a file on every other node that may get workers.

    Raises UserError that names the nodes where that fails.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Only nodes with CPUs can get workers, and the driver has checked its own node.
    own = ray.get_runtime_context().get_node_id()
    nodes = {
        node["NodeID"]: node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU", 0) > 0 and node["NodeID"] != own
    }
    check = ray.remote(num_cpus=0, max_retries=0)(storage_problem)
    pending = {}
    for node, address in nodes.items():
        on_node = NodeAffinitySchedulingStrategy(node, soft=False)
        pending[check.options(scheduling_strategy=on_node).remote(record.uri, run_id)] = address
    done, silent = ray.wait(list(pending), num_returns=len(pending), timeout=CHECK_SECONDS)
    problems = [f"{pending[ref]}: no response within {CHECK_SECONDS:g} s" for ref in silent]
    problems += [f"{pending[ref]}: {text}" for ref in done if (text := _result(ref))]
    if problems:
        raise UserError(_message(record.storage, problems))


def check_this_node(uri: str, storage: str, run_id: str) -> None:
    """Check in a worker, whose node may have joined later. Raises UserError."""
    if text := storage_problem(uri, run_id):
        raise UserError(_message(storage, [f"{platform.node()}: {text}"]))


def storage_problem(uri: str, run_id: str) -> str | None:
    """Return what is wrong with the run's folder as this node sees it, or None."""
    storage = Storage(uri)
    try:
        if not storage.exists(RECORD_FILE):
            return "does not see what the driver has written"
        if RunInfo.parse(storage.read(RECORD_FILE), RECORD_FILE).run_id != run_id:
            return "sees another run of that name"
        storage.probe()
    except OSError as error:
        return f"cannot write: {error_line(error)}"
    except DocumentError as error:
        return f"cannot read {error}"
    return None


def _result(ref: Any) -> str | None:
    import ray

    try:
        text: str | None = ray.get(ref)
    except ray.exceptions.RayError as error:
        return f"the check failed: {str(error).strip().splitlines()[-1]}"
    return text


def _message(storage: str, problems: list[str]) -> str:
    return (
        f"ray.storage {mask(storage)!r} is not the same for all nodes ({'; '.join(problems)}); "
        "give a folder or URI that every node reads and writes"
    )
