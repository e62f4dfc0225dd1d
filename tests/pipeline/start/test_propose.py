"""A proposal is a recipe that `jobs.train` reads, with a reason for each choice."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from model import build_detector
from pipeline.config import Config, read_recipe
from pipeline.errors import UserError
from pipeline.pretrained import stages_to_freeze
from pipeline.reports.doctor.anchor_fit import AnchorFit
from pipeline.reports.doctor.finding import Finding
from pipeline.start import report, state
from pipeline.start.facts import Machine, set_facts, this_machine
from pipeline.start.find import Data, find_data
from pipeline.start.measure import Duration, measure
from pipeline.start.prepare import PreparedSets, prepare_sets
from pipeline.start.propose import Proposal, given_fields, places_for, propose
from pipeline.start.recipe import recipe_text, yaml_value
from pipeline.start.splits import Division, divide
from tests.pipeline.start.conftest import BOX, SIZE, make_voc

Prepared = tuple[Data, Division, PreparedSets]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("prepared")
    root = make_voc(folder / "pets", {"train": range(4), "val": (4, 5), "test": (6, 7)})
    data = find_data(root)
    division = divide(data.splits, root)
    return data, division, prepare_sets(data, division, folder / "shards")


def proposal_of(prepared: Prepared, given: dict[str, Any] | None = None) -> Proposal:
    sets = prepared[2]
    facts = set_facts(sets.uris["train"], 2, 2)
    return propose(facts, Machine(2), sets, places_for("my pets!", Path("/out")), given or {})


def test_facts_are_those_of_the_set(prepared: Prepared) -> None:
    facts = set_facts(prepared[2].uris["train"], 2, 2)
    assert (facts.images, facts.width, facts.height) == (4, SIZE, SIZE)
    side = ((BOX[2] - BOX[0]) * (BOX[3] - BOX[1])) ** 0.5 / SIZE
    assert facts.small_side == facts.small_side_padded == pytest.approx(side)
    assert facts.flat < 0.5


def test_enlarged_photographs_do_not_count_as_drawn(voc: Path, tmp_path: Path) -> None:
    for path in (voc / "JPEGImages").iterdir():
        with Image.open(path) as image:
            image.resize((SIZE * 40, SIZE * 20), Image.Resampling.BICUBIC).save(path)
    for path in (voc / "Annotations").iterdir():
        text = path.read_text().replace(f"<width>{SIZE}", f"<width>{SIZE * 40}")
        path.write_text(text.replace(f"<height>{SIZE}", f"<height>{SIZE * 20}"))
    data = find_data(voc)
    sets = prepare_sets(data, divide(data.splits, voc), tmp_path / "out")
    facts = set_facts(sets.uris["train"], 2, 2)
    assert facts.flat < 0.5
    # Twice as wide as high.
    assert facts.small_side_padded == pytest.approx(facts.small_side / 2**0.5)


def test_drawn_pictures_are_flat(voc: Path, tmp_path: Path) -> None:
    for path in (voc / "JPEGImages").iterdir():
        pixels = np.full((SIZE, SIZE, 3), 250, np.uint8)
        pixels[:, int(path.stem) * 4 :] = 20
        Image.fromarray(pixels).save(path, "PNG")
    data = find_data(voc)
    sets = prepare_sets(data, divide(data.splits, voc), tmp_path / "out")
    assert set_facts(sets.uris["train"], 2, 2).flat > 0.5


def test_recipe_is_read_as_it_was_proposed(prepared: Prepared, tmp_path: Path) -> None:
    found = proposal_of(prepared, {"registry.min_ap": None})  # unset, unlike the default
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text(found, ["A header"]))
    assert Config.from_dict(read_recipe(path)) == found.config
    assert path.read_text().startswith("# A header\n")
    for choice in found.choices:
        if choice.fields:
            assert f"  # {choice.text}: {choice.why}\n" in path.read_text()


def test_recipe_names_sets_model_and_storage(prepared: Prepared) -> None:
    config = proposal_of(prepared).config
    uris = prepared[2].uris
    assert (config.data.train, config.data.val, config.data.test) == tuple(uris.values())
    assert config.registry.name == "my-pets-detector"
    assert config.tracking.experiment == "my-pets"
    assert config.ray.storage == "/out/runs"


@pytest.mark.parametrize(
    ("name", "plain"), [("Äpfel & Büchsen (neu)", "Apfel-Buchsen-neu"), ("猫", "data")]
)
def test_names_keep_the_letters_below_accents(name: str, plain: str) -> None:
    assert places_for(name, Path("/out"))["registry.name"] == f"{plain}-detector"


def test_recipe_freezes_as_a_training_would(prepared: Prepared) -> None:
    config = proposal_of(prepared).config
    assert config.model.init == "imagenet"
    unset = config.replace({"model.freeze_stages": None})
    assert (config.model.freeze_stages or 0) == stages_to_freeze(unset, 4)
    given = {"model.freeze_stages": 0}
    assert proposal_of(prepared, given).config.model.freeze_stages == 0


def test_given_fields_are_in_the_recipe(prepared: Prepared) -> None:
    given = {"model.image_size": 128, "train.epochs": 2.0, "assign.name": "atss"}
    found = proposal_of(prepared, given)
    assert found.config.model.image_size == 128
    assert found.config.train.epochs == 2.0
    assert found.config.assign.name == "atss"
    assert found.diagnosis.statistics.image_size == 128


def test_given_class_weights_are_measured_with_and_checked(prepared: Prepared) -> None:
    small = {"model.backbone": "slim", "model.image_size": 64, "ray.workers": 1}
    config = proposal_of(prepared, {**small, "loss.class_weights": {"cat": 2.0}}).config
    assert measure(config, 4, 2, 2).step > 0
    wrong = proposal_of(prepared, {**small, "loss.class_weights": {"cow": 2.0}}).config
    with pytest.raises(UserError, match="unknown class 'cow'; known: cat, dog"):
        measure(wrong, 4, 2, 2)


def test_given_weights_choose_the_backbone_and_are_checked(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:/nowhere")  # not used for files
    own = str(tmp_path / "own.pth")
    found = proposal_of(prepared, {"model.init": "imagenet"})
    assert found.config.model.backbone == "efficientnet_lite0"
    detector = build_detector("slim", num_classes=2)
    torch.save(detector.backbone.state_dict(), own)
    with pytest.raises(UserError, match=r"own.pth does not name its backbone; give --model.backb"):
        proposal_of(prepared, {"model.init": own})
    given = {"model.init": own, "model.backbone": "slim"}
    assert proposal_of(prepared, given).config.model.init == own
    with pytest.raises(UserError, match="own.pth"):
        proposal_of(prepared, {**given, "model.backbone": "resnet18"})


def test_uris_with_passwords_are_not_in_the_recipe(prepared: Prepared) -> None:
    given = {
        "tracking.uri": "https://user:secret@host",
        "ray.storage": "s3://bucket/x?secret=secret",
    }
    assert "secret" not in recipe_text(proposal_of(prepared, given), [])


def test_given_fields_are_those_that_were_set() -> None:
    config = Config.from_dict({"train": {"epochs": 3}, "model": {"backbone": "slim"}})
    assert given_fields(config) == {"train.epochs": 3.0, "model.backbone": "slim"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("auto", "auto"),
        ("no", '"no"'),
        ("a: b", '"a: b"'),
        ([1.0, 1.3], "[1.0, 1.3]"),
        (True, "true"),
    ],
)
def test_values_are_plain_yaml(value: Any, text: str) -> None:
    assert yaml_value(value) == text


def test_report_is_short_and_names_every_choice(prepared: Prepared) -> None:
    data, division, sets = prepared
    found = proposal_of(prepared)
    lines = [
        *report.data_lines(data, division, sets.manifests, sets.notes),
        *report.doctor_lines(found.diagnosis, sets.uris, "DOCTOR"),
        *report.recipe_lines("out/recipe.yaml", found.choices, own=False),
    ]
    text = "\n".join(lines)
    assert "never trained on" in text and "2 classes: cat, dog" in text and "DOCTOR" in text
    assert all(choice.what in text for choice in found.choices)
    assert all(uri not in text for uri in sets.uris.values())
    assert len(text.splitlines()) < 30
    assert max(map(len, text.splitlines())) <= max(report.WIDTH, len(str(data.path)) + 20)


def test_doctor_shows_errors_with_remedies_and_counts_what_is_left(prepared: Prepared) -> None:
    sets, diagnosis = prepared[2], proposal_of(prepared).diagnosis
    findings = [
        Finding("error", "leak", f"images of {sets.uris['val']} in this set", "remove them"),
        *(Finding("error", str(number), f"fault {number}", "correct it") for number in range(5)),
        Finding("error", "anchor_fit", "anchors fit badly", "fit them"),
    ]
    fitted = AnchorFit(diagnosis.shapes, 0.0)
    bad = diagnosis._replace(findings=findings, fitted=fitted)
    lines = report.doctor_lines(bad, sets.uris, "DOCTOR")
    assert lines[:3] == [
        "doctor: 6 errors",
        "  error: images of val in train",
        "    -> remove them",
    ]
    assert sum(line == "    -> correct it" for line in lines) == 5
    assert "anchors" not in "\n".join(lines)
    unfitted = report.doctor_lines(bad._replace(fitted=None), sets.uris, "DOCTOR")
    assert unfitted[0] == "doctor: 7 errors"
    assert report.next_lines(bad, "AGAIN")[0].startswith("next: correct the 6 errors of the doctor")
    assert report.next_lines(bad._replace(findings=[]), "AGAIN") == ["next: AGAIN"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3, "10 s"), (61, "60 s"), (600, "10 min"), (7200, "2.0 h"), (400_000, "4.6 days")],
)
def test_times_are_rounded_as_estimates_are(seconds: float, text: str) -> None:
    assert report.rounded(seconds) == text


def test_time_says_if_other_programs_are_busy() -> None:
    busy = report.time_line(Duration(0.5, 0.1, 600, load=4.0), Machine(2))
    assert "at most 10 min on 2 CPU cores (0.50 s a step" in busy and "load 4" in busy
    idle = report.time_line(Duration(0.5, 0.1, 600, load=0.2), Machine(2))
    assert "about 10 min" in idle and "load" not in idle


def test_own_recipe_is_known_by_its_content(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    assert not state.keeps_own_recipe(tmp_path, state.StartState())
    recipe.write_text("a: 1\n")
    assert state.keeps_own_recipe(tmp_path, state.StartState())


def test_state_survives_writing(tmp_path: Path) -> None:
    before = state.StartState(recipe_sha256="x", measured={"k": [0.1, 0.2, 3.0, 1.0]})
    before = before.with_result("trained", "run", {"model_uri": "models:/a/1", "path": tmp_path})
    state.save(tmp_path, before)
    source = str(tmp_path / "data")
    assert state.load_state(tmp_path, tmp_path / "data") == before.model_copy(
        update={"source": source}
    )
    assert before.trained["run"]["path"] == str(tmp_path)


def test_state_of_other_data_is_not_used(tmp_path: Path) -> None:
    found = state.load_state(tmp_path, tmp_path / "x" / "data")
    state.save(tmp_path, found)
    assert state.load_state(tmp_path, tmp_path / "x" / "data") == found
    with pytest.raises(UserError, match=f"is of {tmp_path}/x/data; name another --out"):
        state.load_state(tmp_path, tmp_path / "y" / "data")


def test_digest_depends_on_what_is_trained_only() -> None:
    config = Config()
    other = config.replace({"tracking.uri": "sqlite:///x"})
    assert state.digest(config, "a") == state.digest(other, "a")
    assert state.digest(config, "a") != state.digest(config, "b")
    assert state.digest(config) != state.digest(config.replace({"train.epochs": 3}))


def test_training_keeps_its_name_on_another_machine() -> None:
    config = Config()
    other = config.replace({"ray.workers": 4, "ray.cpus_per_worker": 2, "data.loader_workers": 0})
    assert state.digest(config) != state.digest(other)
    assert state.digest(config, resources=False) == state.digest(other, resources=False)
    elsewhere = config.replace({"ray.storage": "/elsewhere"})
    assert state.digest(config, resources=False) != state.digest(elsewhere, resources=False)


def test_machine_has_cpus() -> None:
    assert this_machine().cpus >= 1
    assert str(Machine(1)) == "1 CPU core"
    assert str(Machine(8, 2, "H100")) == "2 x H100, 8 CPU cores"
