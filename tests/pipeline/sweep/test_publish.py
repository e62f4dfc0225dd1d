"""Test that the answer of a sweep is in its folder and in its MLflow run."""

from pathlib import Path

import pytest

from pipeline.sweep import publish as module
from pipeline.sweep.publish import RECIPE, STATEMENT, TRIALS, publish
from pipeline.tracking import connect
from tests.pipeline.sweep.reports import make_report
from tests.stores import new_store


@pytest.fixture
def run(tmp_path: Path) -> tuple[str, str]:
    """Return the address of an empty store, and a run in it."""
    uri = new_store(tmp_path)
    client = connect(uri)
    return uri, client.create_run(client.create_experiment("sweeps")).info.run_id


def test_page_and_charts_are_in_the_folder_and_in_the_run(run, tmp_path) -> None:
    uri, run_id = run
    folder = tmp_path / "search"
    paths = publish(make_report(3), str(folder), uri, run_id)
    names = {RECIPE, STATEMENT, TRIALS, "report.html"}
    assert paths == {name: str(folder / name) for name in names}
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    charts = {name for name in files if name.startswith("charts/")}
    assert files == names | charts
    assert {"charts/curves.svg", "charts/parallel.svg", "charts/slice-train.lr.svg"} <= charts
    client = connect(uri)
    assert {file.path for file in client.list_artifacts(run_id)} == names | {"charts"}
    assert {file.path for file in client.list_artifacts(run_id, "charts")} == charts
    assert run_id in (folder / "report.html").read_text()


def test_recipe_is_stored_before_the_page_is_rendered(run, tmp_path, monkeypatch) -> None:
    def fail(*_):
        raise OSError("no page")

    monkeypatch.setattr(module, "render_files", fail)
    with pytest.raises(OSError, match="no page"):
        publish(make_report(3), str(tmp_path / "search"), *run)
    assert (tmp_path / "search" / RECIPE).exists()
