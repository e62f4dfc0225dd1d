"""Is the storage one and the same for all nodes? Found out in seconds, before training."""

from __future__ import annotations

import json
import platform
from typing import Any

from pipeline.errors import UserError
from pipeline.storage.folder import Storage
from pipeline.storage.redact import mask
from pipeline.training.run_record import RunRecord

SECONDS = 60.0


def check_nodes(record: RunRecord, run_id: str) -> None:
    """Every node that may hold workers, besides this one, reads the run's record and writes a file.

    Raises UserError that names the nodes where that fails.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    # Only a node with CPUs can be given workers, and the driver has tested its own.
    here = ray.get_runtime_context().get_node_id()
    nodes = {
        node["NodeID"]: node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU", 0) > 0 and node["NodeID"] != here
    }
    look = ray.remote(num_cpus=0, max_retries=0)(complaint)
    asked = {
        look.options(scheduling_strategy=On(node, soft=False)).remote(record.uri, run_id): address
        for node, address in nodes.items()
    }
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=SECONDS)
    problems = [f"{asked[ref]}: no answer within {SECONDS:g} s" for ref in silent]
    problems += [f"{asked[ref]}: {text}" for ref in answered if (text := _answer(ref))]
    if problems:
        raise UserError(_advice(record.storage, problems))


def check_here(uri: str, storage: str, run_id: str) -> None:
    """The same check in a worker, whose node may have joined later. Raises UserError."""
    if text := complaint(uri, run_id):
        raise UserError(_advice(storage, [f"{platform.node()}: {text}"]))


def complaint(uri: str, run_id: str) -> str | None:
    """What is wrong with the run's folder as this node sees it."""
    storage = Storage(uri)
    try:
        if not storage.exists("run.json"):
            return "does not see what the driver has written"
        if json.loads(storage.read("run.json"))["run_id"] != run_id:
            return "sees another run of that name"
        storage.probe()
    except OSError as error:
        return f"cannot write: {' '.join(str(error).split())}"
    return None


def _answer(ref: Any) -> str | None:
    import ray

    try:
        text: str | None = ray.get(ref)
    except ray.exceptions.RayError as error:
        return f"the check failed: {str(error).strip().splitlines()[-1]}"
    return text


def _advice(storage: str, problems: list[str]) -> str:
    return (
        f"ray.storage {mask(storage)!r} is not the same for all nodes ({'; '.join(problems)}); "
        "give a folder or URI that every node reads and writes"
    )
