"""The trace covers the configured steps, and is stored in the run."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import Config
from pipeline.tracking import connect
from pipeline.training.fit import fit
from pipeline.training.trainer.profiler import WARM_UP_STEPS, profiled


@pytest.mark.parametrize(("batches", "expected"), [(WARM_UP_STEPS + 4, 2), (WARM_UP_STEPS + 1, 1)])
def test_steps_after_warm_up_are_profiled(batches: int, expected: int) -> None:
    saved: list[Any] = []
    for number, batch in enumerate(profiled(range(batches), 2, saved.append)):
        assert number == batch
        with torch.profiler.record_function(f"my-step-{batch}"):
            torch.ones(3).sum()
    (profiler,) = saved
    seen = {event.key for event in profiler.key_averages() if event.key.startswith("my-step")}
    assert seen == {f"my-step-{WARM_UP_STEPS + i}" for i in range(expected)}


def test_nothing_is_profiled_by_default() -> None:
    saved: list[Any] = []
    assert list(profiled(range(3), 0, saved.append)) == [0, 1, 2]
    assert saved == []


def test_trace_is_an_artifact_of_the_run(small: Config, tmp_path: Path) -> None:
    config = small.replace({"data.val": None, "data.test": None, "train.profile_steps": 2})
    result = fit(config, run="one")
    client = connect(result.tracking_uri)
    path = client.download_artifacts(result.run_id, "profile/trace.json.gz", str(tmp_path))
    trace = json.loads(gzip.decompress(Path(path).read_bytes()))
    assert any("convolution" in event.get("name", "") for event in trace["traceEvents"])
    table = client.download_artifacts(result.run_id, "profile/operators.txt", str(tmp_path))
    assert "convolution" in Path(table).read_text()


def test_trace_on_a_full_disk_causes_a_warning(
    small: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.profiler.profile, "export_chrome_trace", full)
    config = small.replace({"data.val": None, "data.test": None, "train.profile_steps": 2})
    assert fit(config, run="one").metrics == {}
    assert "no profile: [Errno 28] No space left" in caplog.text
