"""What must be true at the end: the results of the undisturbed training, and nothing else."""

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.chaos import processes
from benchmarks.chaos.services import Objects
from benchmarks.chaos.training import (
    FAILED,
    INTERRUPTED,
    KILLED,
    REJECTED,
    STOPPED,
    TERMINATED,
    Training,
)

RESUMABLE = (0, FAILED, INTERRUPTED, KILLED, STOPPED, TERMINATED)
# Measurements of the machine, which differ between equal trainings.
MEASURED = ("system/", "train/images_per_second")
REGISTERED = "model/"  # the undisturbed training is not registered
EXIT_SECONDS = 60.0  # for processes to end after the cluster was shut down
# The marker is Ray Train's.
RUN_FILES = re.compile(
    r"(run|lease)\.json|\.validate_storage_marker|step-\d+/(meta\.json|state\.pt)"
)
Point = tuple[int, float]


class Check(dict[str, Any]):
    """A named check with its result; ``problem`` is empty if it holds."""

    def __init__(self, name: str, problem: str = "") -> None:
        super().__init__(name=name, passed=not problem, problem=problem)


def check_result(undisturbed: Training, disturbed: Training) -> list[Check]:
    """Compare the results that the commands have printed."""
    checks = [Check("the training ended with exit code 0")]
    expected, found = undisturbed.result, disturbed.result
    if expected is None or found is None:
        last = disturbed.attempts[-1].line if disturbed.attempts else "never started"
        return [Check(checks[0]["name"], f"it did not end: {last}")]
    for title, key in (
        ("weights are those of the undisturbed run", "weights_sha256"),
        ("averaged weights are those of the undisturbed run", "ema_sha256"),
        ("metrics are those of the undisturbed run", "metrics"),
        ("the selected step is that of the undisturbed run", "best_step"),
    ):
        different = expected[key] != found[key]
        checks.append(Check(title, f"{found[key]}, not {expected[key]}" if different else ""))
    codes = [attempt for attempt in disturbed.attempts if attempt.code not in RESUMABLE]
    mistakes = "; ".join(f"code {attempt.code}: {attempt.line}" for attempt in codes)
    checks.append(Check(f"no fault was reported as a mistake (exit code {REJECTED})", mistakes))
    return checks


def check_tracking(uri: str, undisturbed: Training, disturbed: Training) -> list[Check]:
    """Compare the runs in MLflow, read without the proxy."""
    from mlflow import MlflowClient

    client = MlflowClient(uri, uri)
    expected, found = _runs(client, undisturbed.name), _runs(client, disturbed.name)
    one = Check("there is one MLflow run", f"{len(found)} runs" if len(found) != 1 else "")
    if one["problem"] or not expected:
        return [one]
    (run,), (other,) = found, expected
    status = run.info.status
    versions = client.search_model_versions(f"name='{disturbed.name}'")
    registered = [version.run_id for version in versions]
    return [
        one,
        Check("its status is FINISHED", "" if status == "FINISHED" else status),
        Check("no point is lost, doubled or different", _points_problem(client, run, other)),
        Check("no artifact is missing", _artifacts_problem(client, run, other)),
        Check(
            "one model version is registered",
            "" if registered == [run.info.run_id] else f"versions of the runs {registered}",
        ),
    ]


def check_objects(objects: Objects, training: Training) -> Check:
    """Look for objects of the run that are neither its record nor complete checkpoints."""
    found = set(objects.sizes(f"runs/{training.name}/"))
    names = {name for name in found if name and not name.endswith("/")}  # without folder markers
    strange = [name for name in names if not RUN_FILES.fullmatch(name)]
    for folder in {name.split("/")[0] for name in names if name.startswith("step-")}:
        if not {f"{folder}/meta.json", f"{folder}/state.pt"} <= names:
            strange.append(f"{folder} is incomplete")
    title = "no incomplete checkpoint or other object is left"
    return Check(title, "; ".join(sorted(strange)))


def check_remains(folder: Path) -> list[Check]:
    """Look for what should be gone once all servers were stopped and the spools were sent."""
    until = time.monotonic() + EXIT_SECONDS
    while (left := processes.processes_of(folder)) and time.monotonic() < until:
        time.sleep(0.5)
    cache = folder / "cache"
    spools = _files(cache, lambda path: "spool" in path.parts)
    partial = _files(cache, lambda path: path.suffix in (".partial", ".tmp"))
    temporary = _files(folder / "tmp", lambda path: True)
    return [
        Check("no process is left", "; ".join(f"{pid}: {text}" for pid, text in left.items())),
        Check("no record is left in a spool", "; ".join(spools)),
        Check("no partial or temporary file is left", "; ".join(partial + temporary)),
    ]


def _runs(client: Any, experiment: str) -> list[Any]:
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id])) if found else []


def _histories(client: Any, run: Any) -> dict[str, list[Point]]:
    return {
        key: sorted((p.step, p.value) for p in client.get_metric_history(run.info.run_id, key))
        for key in run.data.metrics
        if not key.startswith((*MEASURED, REGISTERED))
    }


def _points_problem(client: Any, run: Any, other: Any) -> str:
    found, expected = _histories(client, run), _histories(client, other)
    problems = []
    for key in sorted(found.keys() | expected.keys()):
        here, there = found.get(key, []), expected.get(key, [])
        if here == there:
            continue
        steps, known = [step for step, _ in here], [step for step, _ in there]
        doubled = sorted({step for step in steps if steps.count(step) > known.count(step)})
        lost = sorted(set(known) - set(steps))
        problems.append(f"{key}: lost {lost}, doubled {doubled}" if lost or doubled else key)
    return "; ".join(problems)


def _artifacts_problem(client: Any, run: Any, other: Any) -> str:
    missing = _artifacts(client, other) - _artifacts(client, run)
    # The checkout may have changed between the two.
    return ", ".join(sorted(missing - {"environment/uncommitted.diff"}))


def _artifacts(client: Any, run: Any, path: str | None = None) -> set[str]:
    found: set[str] = set()
    for item in client.list_artifacts(run.info.run_id, path):
        found |= _artifacts(client, run, item.path) if item.is_dir else {item.path}
    return found


def _files(folder: Path, condition: Callable[[Path], bool]) -> list[str]:
    paths = (path for path in folder.rglob("*") if path.is_file() and condition(path))
    return [str(path.relative_to(folder)) for path in sorted(paths)]


def failed(checks: list[Check]) -> list[Mapping[str, Any]]:
    """Return the checks that do not hold."""
    return [check for check in checks if not check["passed"]]
