"""Files of the former formats still work: shard sets, runs, versions, spools.

``artifacts/format-1.tar.xz`` was written by the code that wrote manifests with the problem kind
"mended", checkpoints of format 2 and untyped run records. Its model has constant weights and its
training does not change them, so it compresses well.
"""

from __future__ import annotations

import json
import sqlite3
import tarfile
from collections import Counter
from pathlib import Path

import pytest
import torch

from pipeline.checkpoints.store import CheckpointStore
from pipeline.config import Config
from pipeline.data import load_manifest
from pipeline.data.shards.manifest import read_problems
from pipeline.data.shards.reader import ShardSet
from pipeline.errors import UserError
from pipeline.registry import load_detector
from pipeline.tracking import connect, sync
from pipeline.training.fit import fit

ARCHIVE = Path(__file__).parent / "artifacts" / "format-1.tar.xz"
WRITTEN_AT = "/data/guidance-v1"  # the folder that holds everything, in the archived files
# Columns of the archived MLflow database that hold paths.
PATHS = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "model_versions": "source",
    "logged_models": "artifact_location",
}


@pytest.fixture
def former(tmp_path: Path) -> Path:
    """Unpack the archived folder and rewrite its paths."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    for path in [*tmp_path.rglob("*.json*")]:
        # meta.json is protected by its own hash, and its paths are not read.
        if path.is_file() and path.name != "meta.json":
            path.write_text(path.read_text().replace(WRITTEN_AT, str(tmp_path)))
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        for table, column in PATHS.items():
            database.execute(
                f"UPDATE {table} SET {column} = replace({column}, ?, ?)",  # names of ours
                (WRITTEN_AT, str(tmp_path)),
            )
    database.close()
    return tmp_path


@pytest.fixture
def config(former: Path) -> Config:
    """Return the configuration of the archived runs."""
    record = json.loads((former / "runs" / "stopped" / "run.json").read_text())
    tree = record["config"]
    tree["tracking"]["uri"] = f"sqlite:///{former}/mlflow.db"
    tree["ray"]["storage"] = str(former / "runs")
    return Config.from_dict(tree)


def test_shard_set_of_former_format_loads(former: Path) -> None:
    kinds = {problem.file: problem.kind for problem in read_problems(former / "shards")}
    assert kinds["002.png"] == "repaired"
    assert set(kinds) == {"001.xml", "002.png", "007.png"}
    counts = load_manifest(former / "shards").problem_counts
    assert counts == Counter(problem.kind for problem in read_problems(former / "shards"))
    shards = ShardSet(former / "shards")
    assert len(shards) == 7
    assert not any(shards.read(index).fault for index in range(7))


def test_stopped_run_of_former_format_resumes_to_the_same_weights(
    former: Path, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = json.loads((former / "expected.json").read_text())["whole"]
    before = json.loads((former / "runs" / "stopped" / "run.json").read_text())
    result = fit(config, run="stopped", resume="must")
    assert result.run_id == before["run_id"]
    assert result.weights_sha256 == expected["weights_sha256"]
    assert result.ema_sha256 == expected["ema_sha256"]
    assert result.metrics == expected["metrics"]
    assert "step 6" in capsys.readouterr().err
    run = connect(result.tracking_uri).get_run(result.run_id)
    assert run.info.status == "FINISHED"


def test_finished_run_of_former_format_is_not_resumed(config: Config) -> None:
    named = config.replace({"registry.name": "old", "registry.min_ap": None})
    with pytest.raises(UserError, match="run 'finished' is finished"):
        fit(named, run="finished")


def test_checkpoint_of_former_format_verifies_and_loads(former: Path) -> None:
    store = CheckpointStore(former / "runs" / "finished")
    (saved,) = store.saved()
    assert saved.step == 14
    assert store.verify(saved.name)
    weights = store.load(saved.name)["ema"]
    assert all(torch.isfinite(w).all() for w in weights.values() if w.is_floating_point())


def test_version_of_former_format_loads_and_predicts(
    former: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    import pandas as pd

    uri = f"sqlite:///{former}/mlflow.db"
    loaded = load_detector("models:/old/1", uri)
    assert loaded.classes == ["a", "b"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    model = mlflow.pyfunc.load_model("models:/old/1")
    picture = ShardSet(former / "shards").read(0).image
    found = model.predict(pd.DataFrame({"image": [bytes(picture)]}))
    assert list(found.columns)[:5] == ["image", "x1", "y1", "x2", "y2"]


def test_spool_of_former_format_is_sent(former: Path, config: Config) -> None:
    uri = f"sqlite:///{former}/mlflow.db"
    (sent,) = sync(former / "runs", uri, lambda: uri)
    assert sent.complete
    client = connect(uri)
    run = client.get_run(sent.run_id)
    assert run.info.status == "FINISHED"
    points = client.get_metric_history(sent.run_id, "train/loss")
    assert [(p.step, p.value) for p in points] == [(1, 1.5), (2, 1.25)]
    assert run.data.tags["history.x"] == "saved"
    assert "note.txt" in {item.path for item in client.list_artifacts(sent.run_id)}
