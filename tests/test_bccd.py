"""The blood-cell recipe reaches its accuracy on the real data, run from the command line.

The recipe reaches AP 0.542 and AP50 0.895. Another processor rounds differently, which changes AP50
by about 0.015; other random numbers change it more. The bounds allow for both.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import prepare

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_bccd_recipe_reaches_its_accuracy(shared: Path, tmp_path: Path) -> None:
    for split in ("trainval", "test"):
        source = ("--source", "voc", "--root", str(shared / "data" / "bccd"), "--split", split)
        prepare.main([*source, "--out", str(tmp_path / "shards" / f"bccd-{split}")])
    done = subprocess.run(
        [
            *(sys.executable, "-m", "jobs.train", "--json", "--run", "bccd"),
            *("--config", str(ROOT / "configs" / "bccd.yaml")),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    figures = json.loads(done.stdout)
    print(figures["metrics"], figures["seconds"])
    assert figures["metrics"]["test/ap"] >= 0.52
    assert figures["metrics"]["test/ap50"] >= 0.85
    assert figures["model_uri"] == "models:/bccd-detector/1"
