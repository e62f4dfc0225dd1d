"""What `ray job submit --working-dir .` uploads, by Ray's own packaging."""

import shutil
from zipfile import ZipFile

from ray._private.runtime_env.packaging import create_package

from tests.conftest import ROOT

LIMIT = 5 * 2**20


def packed(folder, target):
    create_package(str(folder), target, include_gitignore=True, excludes=[])
    with ZipFile(target) as archive:
        return set(archive.namelist())


def test_upload_of_this_checkout_is_small_and_complete(tmp_path):
    target = tmp_path / "upload.zip"
    names = packed(ROOT, target)
    assert target.stat().st_size < LIMIT
    assert {"pipeline/config/tree.py", "jobs/train.py", "model/__init__.py"} <= names
    assert any(name.startswith("configs/") for name in names)
    assert any(name.startswith("pipeline/data/") for name in names)


def test_what_jobs_and_tools_leave_behind_is_not_uploaded(tmp_path):
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in (".gitignore", ".rayignore"):
        shutil.copy(ROOT / name, checkout)
    litter = [
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
    wanted = ["model/boxes.py", "pipeline/data/order.py", "configs/demo.yaml"]
    for name in litter + wanted:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_bytes(b"x")
    assert packed(checkout, tmp_path / "upload.zip") >= set(wanted)
    assert not packed(checkout, tmp_path / "upload.zip") & set(litter)
