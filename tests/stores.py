"""New sqlite tracking stores for tests; the schema migrations run only once."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import TrackingConfig
from pipeline.tracking import resolve_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient


@functools.cache
def _empty_store() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mlflow.db"
        resolve_uri(TrackingConfig(uri=f"sqlite:///{path}"))
        return path.read_bytes()


def new_store(folder: Path) -> str:
    """Create an empty store in ``folder``. Return its URI."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "mlflow.db"
    path.write_bytes(_empty_store())
    return f"sqlite:///{path}"


def points(client: MlflowClient, run_id: str, key: str) -> list[tuple[int, float]]:
    """Return (step, value) of every point of a metric, in the order of arrival."""
    return [(p.step, p.value) for p in client.get_metric_history(run_id, key)]
