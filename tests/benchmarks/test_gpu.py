"""The benchmark for GPUs runs from start to end, here with small cases on the CPU."""

import json
from pathlib import Path

import pytest

from benchmarks import gpu


def test_smoke_run_measures_every_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["gpu", "--smoke", "--out", str(tmp_path / "gpu.json")])
    gpu.main()
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert results["not_run"] == {}
    assert results["synchronisation"].keys() == {*gpu.ASSIGNERS, "trainer"}
    assert len(results["steps"]) == 9
    assert all(row["images_per_second"] > 0 for row in results["steps"].values())
    assert results["evaluation"]["slim b2 fp32"]["network_ms"] > 0
    assert 0 < results["rounding_px"]["fp16"]["median"] < results["rounding_px"]["bf16"]["median"]


def test_cases_beyond_the_time_and_missing_packages_are_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing() -> None:
        raise ImportError("No module named 'pydantic'")

    monkeypatch.setattr(gpu, "SECTIONS", {"steps": lambda *_: [("one", missing)]})
    name = "steps: one"
    assert gpu.run(gpu.SMOKE, "cpu", 60.0)["not_run"] == {name: "No module named 'pydantic'"}
    assert gpu.run(gpu.SMOKE, "cpu", -1.0)["not_run"] == {name: "no time left"}
