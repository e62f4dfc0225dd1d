"""`ray job submit --working-dir .` uploads the code and nothing else, as packaged by Ray."""

import shutil
from zipfile import ZipFile

from pipeline.distributed.ray_private_api import package_working_directory
from tests.conftest import ROOT

LIMIT = 5 * 2**20


def packed_names(folder, target):
    """Return the names of the files that Ray packs from a folder."""
    package_working_directory(folder, target)
    with ZipFile(target) as archive:
        return set(archive.namelist())


def test_upload_of_this_checkout_is_small_and_complete(tmp_path):
    target = tmp_path / "upload.zip"
    names = packed_names(ROOT, target)
    assert target.stat().st_size < LIMIT
    assert {"pipeline/config/tree.py", "jobs/train.py", "model/__init__.py"} <= names
    assert any(name.startswith("configs/") for name in names)
    assert any(name.startswith("pipeline/data/") for name in names)


def test_outputs_of_jobs_and_tools_are_not_uploaded(tmp_path):
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in (".gitignore", ".rayignore"):
        shutil.copy(ROOT / name, checkout)
    outputs = [
        ".git/objects/pack/x.pack",
        ".venv/lib/torch.so",
        ".mypy_cache/a.json",
        ".hypothesis/b",
        "demo/shards/shard-000000.tar",
        "mlflow/mlflow.db",
        "runs/checkpoint/weights.pt",
        "shards/train/shard-000000.tar",
        "data/image.jpg",
        "tests/test_x.py",
        "model/__pycache__/boxes.pyc",
    ]
    sources = ["model/boxes.py", "pipeline/data/manifest.py", "configs/demo.yaml"]
    for name in outputs + sources:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_bytes(b"x")
    names = packed_names(checkout, tmp_path / "upload.zip")
    assert names >= set(sources)
    assert not names & set(outputs)
