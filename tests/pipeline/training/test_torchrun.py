"""Two ranks under torchrun, without Ray: killed, resumed, and with another number of ranks."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.checkpoints.store import CheckpointStore
from pipeline.config import Config
from pipeline.tracking import connect

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[3]


def command(config: Config, name: str, ranks: int, *options: str) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    tree = config.model_dump(mode="json", exclude_defaults=True)
    fields = [
        part
        for section, fields in tree.items()
        for key, value in fields.items()
        for part in (f"--{section}.{key}", value if isinstance(value, str) else json.dumps(value))
    ]
    job = ["-m", "--", "jobs.train", "--run", name, "--json"]
    return [*launcher, "--nproc-per-node", str(ranks), *job, *fields, *options]


def start(arguments: list[str], **popen: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        arguments,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        **popen,
    )


def run(arguments: list[str]) -> dict[str, Any]:
    process = start(arguments)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    (line,) = out.splitlines()
    return dict(json.loads(line))


def kill_after(arguments: list[str], folder: Path, step: int) -> None:
    """Send SIGKILL to all processes of a training after a checkpoint of ``step`` or later."""
    process = start(arguments)
    deadline = time.monotonic() + 120
    store = CheckpointStore(folder)
    while max((item.step for item in store.saved()), default=0) < step:
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    for path in Path("/proc").glob("[0-9]*/stat"):  # ranks are in their own process sessions
        try:
            name = path.with_name("cmdline").read_bytes().decode()
        except OSError:
            continue
        if str(folder.parent) in name and "jobs.train" in name:
            os.kill(int(path.parent.name), signal.SIGKILL)
    process.communicate()


@pytest.fixture
def config(small: Config) -> Config:
    return small.replace({"train.checkpoint_steps": 2, "train.epochs": 4})


def test_killed_training_on_two_ranks_resumes_bit_identically(
    config: Config, tmp_path: Path
) -> None:
    whole = run(command(config, "whole", 2, "--registry.name", "shapes"))
    assert whole["model_uri"] == "models:/shapes/1"
    kill_after(command(config, "killed", 2), tmp_path / "runs" / "killed", step=4)
    record = json.loads((tmp_path / "runs" / "killed" / "run.json").read_text())
    assert record["status"] == "running"
    resumed = run(command(config, "killed", 2, "--resume", "must"))
    assert resumed["run_id"] == record["run_id"]
    assert connect(resumed["tracking_uri"]).get_run(record["run_id"]).info.status == "FINISHED"
    same = ("weights_sha256", "ema_sha256", "metrics")
    assert [whole[key] for key in same] == [resumed[key] for key in same]
    store = connect(resumed["tracking_uri"])
    losses = [
        [(point.step, point.value) for point in store.get_metric_history(run_id, "train/loss")]
        for run_id in (whole["run_id"], resumed["run_id"])
    ]
    assert len(losses[0]) > 1
    assert sorted(losses[0]) == sorted(losses[1])
    one, other = (CheckpointStore(tmp_path / "runs" / n).saved()[-1] for n in ("whole", "killed"))
    assert one.meta.files == other.meta.files  # including optimizer and random generators
    alone = run(command(config, "alone", 1))
    assert alone["weights_sha256"] != whole["weights_sha256"]


def test_mistake_on_rank_0_ends_all_ranks_at_once(config: Config) -> None:
    began = time.monotonic()
    process = start(command(config.replace({"train.epochs": 1}), "one", 2, "--resume", "must"))
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "error: --resume must: there is no run 'one'" in err
    assert time.monotonic() - began < 100


def test_torchrun_with_ray_enabled_is_rejected(config: Config) -> None:
    process = start([*command(config, "one", 1), "--ray.enabled", "true"])
    _, err = process.communicate(timeout=120)
    assert "torchrun starts the workers itself; add --ray.enabled false" in err


def test_other_number_of_ranks_resumes_with_the_same_batches(
    config: Config, tmp_path: Path
) -> None:
    """Batch statistics change the weights slightly; steps and metrics stay close."""
    config = config.replace({"data.val": None, "train.lr": 1e-3})
    kill_after(command(config, "two", 2), tmp_path / "runs" / "two", step=6)
    at = CheckpointStore(tmp_path / "runs" / "two").saved()[-1].step
    resumed = run(command(config, "two", 1))
    whole = run(command(config, "one", 1))
    assert at < 20
    stores = [CheckpointStore(tmp_path / "runs" / name) for name in ("one", "two")]
    one, two = (store.load(store.saved()[-1].name) for store in stores)
    assert one["step"] == two["step"] == 20
    assert len(two["rng"]) == 1
    for name, value in one["model"].items():
        if value.is_floating_point() and "running" not in name:
            torch.testing.assert_close(two["model"][name], value, rtol=0.05, atol=0.02)
    assert resumed["metrics"].keys() == whole["metrics"].keys()
