"""Test that the page says everything, loads nothing, and escapes the names in the data."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import EvaluateConfig
from pipeline.evaluation.evaluate import Evaluation
from pipeline.evaluation.findings import analyse
from pipeline.evaluation.model_evaluation import ModelEvaluation
from pipeline.evaluation.outputs import Subject, write_outputs
from pipeline.evaluation.page import pictures, render
from pipeline.evaluation.protocol import score
from pipeline.metrics import MatchTable
from pipeline.metrics.errors import KINDS
from tests.pages import Page
from tests.pipeline.evaluation.conftest import HOSTILE_CLASS, HOSTILE_FILE, HOSTILE_MODEL


def write(judged, uri: str, folder: Path, model: str = "models:/shapes/1"):
    found = judged(uri, model)
    findings = analyse(found, resamples=50, speed=(0.012, "CPU"))
    subject = Subject(uri, EvaluateConfig(), "2026-01-01T00:00:00+00:00", "abc")
    files = write_outputs(folder, found, findings, subject)
    return findings, {kind: Path(path) for kind, path in files.items()}


def test_page_has_every_section_and_loads_nothing(judged, scenes, tmp_path) -> None:
    findings, files = write(judged, scenes["test"], tmp_path / "out")
    content = files["page"].read_text("utf-8")
    page = Page(content)
    page.check_is_self_contained()
    assert all(page.values("img", "alt"))
    for text in (*KINDS, *(one.name for one in findings.classes), "12.0 ms", "temperature"):
        assert text in page.text
    assert f"{findings.metrics['ap']:.3f}" in page.text
    interval = findings.intervals["ap"]
    assert f"[{interval.low:.3f}, {interval.high:.3f}]" in page.text


def test_names_of_classes_files_and_models_are_text(judged, hostile, tmp_path) -> None:
    _, files = write(judged, hostile, tmp_path / "out", HOSTILE_MODEL)
    page = Page(files["page"].read_text("utf-8"))
    assert "script" not in {tag for tag, _ in page.elements}
    assert all(source.startswith("data:") for source in page.values("img", "src"))
    assert not any("onerror" in attributes for _, attributes in page.elements)
    for name in (HOSTILE_CLASS, HOSTILE_FILE, HOSTILE_MODEL):
        assert name in page.text
    assert any(HOSTILE_FILE in text for text in page.values("img", "alt"))


def test_suspects_are_coco_annotations(judged, scenes, tmp_path) -> None:
    findings, files = write(judged, scenes["test"], tmp_path / "out")
    coco = json.loads(files["suspects"].read_text())
    images = {image["id"]: image for image in coco["images"]}
    categories = {category["id"]: category["name"] for category in coco["categories"]}
    assert len(coco["annotations"]) == len(findings.suspects) > 0
    kinds = set()
    for annotation in coco["annotations"]:
        image = images[annotation["image_id"]]
        x, y, width, height = annotation["bbox"]
        assert 0 <= x < x + width <= image["width"]
        assert 0 <= y < y + height <= image["height"]
        assert annotation["category_id"] in categories
        kinds.add(annotation["kind"])
        assert (annotation["labelled_as"] is None) == (annotation["kind"] == "unlabelled")
    assert {"unlabelled", "wrong class"} <= kinds


def test_pictures_stay_within_their_bytes(judged, scenes, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(render, "PICTURE_BYTES", 20_000)
    _, files = write(judged, scenes["test"], tmp_path / "out")
    sources = Page(files["page"].read_text("utf-8")).values("img", "src")
    assert 0 < sum(map(len, sources)) <= 20_000
    assert files["page"].stat().st_size < 100_000


def test_many_classes_have_a_list_of_confusions_and_few_curves(judged, scenes, monkeypatch) -> None:
    monkeypatch.setattr(render, "_MAX_MATRIX", 1)
    monkeypatch.setattr(render, "PALETTE", render.PALETTE[:2])
    found = judged(scenes["test"])
    content = render.render_page(found, analyse(found, resamples=5), None, {})
    page = Page(content)
    assert "detected as" in page.text
    assert "others are in the table above" in page.text
    assert "No image can be shown" in page.text
    assert not page.values("img", "src")


def test_worst_images_have_the_most_errors(judged, scenes) -> None:
    table = judged(scenes["test"]).evaluation.table
    worst, best = pictures.rank_images(table, 0.1, 3)
    assert len(worst) == len(best) == 3
    assert max(one.f1 for one in worst) <= min(one.f1 for one in best)
    assert not {one.image for one in worst} & {one.image for one in best}
    for one in (*worst, *best):
        objects = (table.object_image == one.image) & ~table.object_ignored
        assert one.correct + one.missed == objects.sum()
        assert one.correct + one.wrong == (table.image == one.image).sum()


def test_nothing_found_and_nothing_to_find_are_pages_too(judged, scenes) -> None:
    found = judged(scenes["test"])
    table = found.evaluation.table
    for row, text in (("image", "classes"), ("object_image", "no objects that count")):
        one = {name: getattr(table, name) for name in table.__dataclass_fields__}
        for name, column in one.items():
            is_object = name.startswith("object_")
            if name != "image_ids" and is_object == (row == "object_image"):
                one[name] = column[:0]
            elif name.endswith("_object") or name in ("matched", "ignored"):
                one[name] = np.zeros_like(column) - (1 if name.endswith("_object") else 0)
            elif name.endswith("_iou"):
                one[name] = np.zeros_like(column)
        emptied = MatchTable(**one)
        result = score(emptied, found.classes, "coco")
        judgement = ModelEvaluation(
            found.model, found.data, found.classes, Evaluation(result, emptied)
        )
        findings = analyse(judgement, resamples=5)
        json.dumps(findings.as_json(), allow_nan=False)
        assert text in Page(render.render_page(judgement, findings, None, {})).text


@pytest.mark.parametrize("protocol", ["coco", "voc07", "voc"])
def test_every_ap_of_a_protocol_has_its_interval(judged, scenes, protocol) -> None:
    found = judged(scenes["test"])
    result = score(found.evaluation.table, found.classes, protocol)
    evaluation = Evaluation(result, found.evaluation.table)
    found = ModelEvaluation(found.model, found.data, found.classes, evaluation)
    findings = analyse(found, protocol, resamples=20)
    aps = {name: value for name, value in result.metrics.items() if name.startswith("ap")}
    assert {name: one.value for name, one in findings.intervals.items()} == pytest.approx(aps)
    for one in findings.classes:
        if one.ap is not None:
            assert one.ap.value == pytest.approx(result.per_class[one.name]["ap"])
    page = Page(render.render_page(found, findings, None, {})).text
    assert ("(voc)" in page, "(voc07)" in page) == (protocol == "voc", protocol == "voc07")
    interval = findings.intervals["ap50"]
    assert f"{interval.low:.3f} to {interval.high:.3f}" in page


def test_classes_without_objects_are_named(judged, scenes) -> None:
    found = judged(scenes["test"])
    more = ModelEvaluation(found.model, found.data, [*found.classes, "star"], found.evaluation)
    findings = analyse(more, resamples=5)
    counts = found.data.boxes_per_class
    absent = [name for name in found.classes if not counts[name]]
    assert findings.absent == findings.as_json()["classes_without_objects"] == [*absent, "star"]
    assert analyse(found, resamples=5).absent == absent


@pytest.mark.parametrize("protocol", ["coco", "voc07"])
def test_figures_are_json_and_count_objects(judged, scenes, protocol) -> None:
    found = judged(scenes["test"])
    figures = analyse(found, protocol, resamples=20).as_json()
    json.dumps(figures, allow_nan=False)
    table = found.evaluation.table
    counts = np.bincount(table.object_label, minlength=len(found.classes)).tolist()
    assert [one["objects"] for one in figures["per_class"].values()] == counts
    assert figures["intervals"]["ap"]["low"] <= figures["intervals"]["ap"]["high"]
    assert set(figures["errors"]) == set(KINDS)
