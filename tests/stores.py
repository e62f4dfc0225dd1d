"""Fresh sqlite run stores for tests, without paying for the migrations each time."""

import functools
import tempfile
from pathlib import Path

from pipeline.config import TrackingConfig
from pipeline.tracking import resolve_uri


@functools.cache
def _empty_store() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mlflow.db"
        resolve_uri(TrackingConfig(uri=f"sqlite:///{path}"))
        return path.read_bytes()


def new_store(folder: Path) -> str:
    """The URI of an empty store in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "mlflow.db"
    path.write_bytes(_empty_store())
    return f"sqlite:///{path}"
