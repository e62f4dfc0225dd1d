"""Check within seconds, before training, that all nodes see the same storage."""

from __future__ import annotations

import platform
import sys
from collections.abc import Collection, Mapping

from pipeline.config import RayConfig
from pipeline.errors import OutageError, UserError
from pipeline.storage.document import DocumentError
from pipeline.storage.folder import Storage
from pipeline.storage.redact import error_line, mask
from pipeline.training.run_record import RECORD_FILE, RunInfo, RunRecord

CHECK_SECONDS = 30.0  # for all nodes together
MAX_LISTED_NODES = 5


def check_nodes(record: RunRecord, run_id: str, config: RayConfig, label: str = "") -> None:
    """Read the run's record and write a file on every other node that may get workers.

    A node that hangs or ends has no effect on the others: it is named in a line, after ``label``.
    Raises UserError that names the nodes that responded and reported a problem.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from pipeline.training.error_hints import last_line  # imports torch, which nodes do not need

    own = ray.get_runtime_context().get_node_id()  # which the driver has checked
    check = ray.remote(num_cpus=0, max_retries=0)(storage_problem)
    pending = {}
    for node in ray.nodes():
        if node["Alive"] and node["NodeID"] != own and fits_worker(node["Resources"], config):
            on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            response = check.options(scheduling_strategy=on_node).remote(record.uri, run_id)
            pending[response] = node["NodeManagerAddress"]
    done, silent = ray.wait(list(pending), num_returns=len(pending), timeout=CHECK_SECONDS)
    for response in silent:
        ray.cancel(response, force=True)
    unchecked, differing, broken = [pending[response] for response in silent], [], []
    for response in done:
        address = pending[response]
        try:
            if text := ray.get(response):
                differing.append(f"{address}: {text}")
        except OutageError:  # of the store: a worker on that node would wait and try again
            unchecked.append(address)
        except ray.exceptions.RayTaskError as error:
            broken.append(f"{address}: {last_line(error)}")
        except ray.exceptions.RayError:  # the node or its worker has ended
            unchecked.append(address)
    if unchecked:
        print(
            f"{label}{': ' if label else ''}no response from {_listed(unchecked, ', ')}: "
            "ray.storage was not checked there, training starts (ray list nodes)",
            file=sys.stderr,
            flush=True,
        )
    if broken:
        raise UserError(
            f"workers cannot run on all nodes ({_listed(broken, '; ')}); "
            "install the same environment on every node"
        )
    if differing:
        raise UserError(_message(record.storage, differing))


def fits_worker(resources: Mapping[str, float], config: RayConfig) -> bool:
    """Return whether a node with these resources in total could get a worker."""
    gpus = 1 if config.gpu is True else 0
    return resources.get("CPU", 0) >= config.cpus_per_worker and resources.get("GPU", 0) >= gpus


def check_this_node(uri: str, storage: str, run_id: str) -> None:
    """Check in a worker, whose node may have joined later. Raises UserError, OutageError."""
    if text := storage_problem(uri, run_id):
        raise UserError(_message(storage, [f"{platform.node()}: {text}"]))


def storage_problem(uri: str, run_id: str) -> str | None:
    """Return what is wrong with the run's folder as this node sees it, or None.

    Raises OutageError if the store does not respond.
    """
    try:
        storage = Storage(uri)
        if not storage.exists(RECORD_FILE):
            return "does not see what the driver has written"
        if RunInfo.parse(storage.read(RECORD_FILE), RECORD_FILE).run_id != run_id:
            return "sees another run of that name"
        storage.probe()
    except OutageError:
        raise
    except OSError as error:
        return f"cannot write: {error_line(error)}"
    except DocumentError as error:
        return f"cannot read {error}"
    except UserError as error:
        return str(error)
    return None


def _listed(items: Collection[str], separator: str) -> str:
    more = len(items) - MAX_LISTED_NODES
    listed = separator.join(sorted(items)[:MAX_LISTED_NODES])
    return f"{listed} and {more} more" if more > 0 else listed


def _message(storage: str, problems: Collection[str]) -> str:
    return (
        f"ray.storage {mask(storage)!r} is not the same for all nodes ({_listed(problems, '; ')}); "
        "give a folder or URI that every node reads and writes"
    )
