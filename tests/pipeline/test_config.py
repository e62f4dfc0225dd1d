"""The configuration: sources, their precedence, and one clear line per error."""

import re
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo

from jobs.cli.common import make_parser
from model.assign import build_assigner
from model.loss import DetectionLoss
from model.options import LossOptions
from pipeline.config import Config, load_config
from pipeline.config.base import Section
from pipeline.config.sources import COMMON_FIELDS
from pipeline.errors import UserError


def load(*argv: str) -> Config:
    return load_config(make_parser("train", "test"), argv)[0]


def test_later_sources_override_earlier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("train: {epochs: 1, lr: 0.1, seed: 5}\n")
    monkeypatch.setenv("MG_TRAIN__EPOCHS", "2")
    monkeypatch.setenv("MG_TRAIN__LR", "0.2")
    config = load("--config", str(recipe), "--train.epochs", "3")
    assert (config.train.epochs, config.train.lr, config.train.seed) == (3.0, 0.2, 5)


@pytest.mark.parametrize("given", ['{"a cat": 2, "dog": 0.5}', "a cat=2,dog=0.5"])
def test_class_weights_are_given_by_name(given: str, tmp_path: Path) -> None:
    config = load("--loss.class_weights", given)
    assert config.loss.class_weights == {"a cat": 2.0, "dog": 0.5}
    assert Config.from_dict(config.recorded()).loss.class_weights == config.loss.class_weights
    with pytest.raises(UserError, match=r"loss\.class_weights\.dog: got 0.* greater than 0"):
        Config().replace({"loss.class_weights": {"dog": 0}})
    recipe = tmp_path / "r.yaml"
    recipe.write_text("loss: {class_weights: {cow: 2}}\n")
    over = load("--config", str(recipe), "--loss.class_weights", given)
    assert over.loss.class_weights == config.loss.class_weights  # not merged
    recipe.write_text("loss: {class_weights: {no: 2}}\n")
    with pytest.raises(UserError, match="class name False is not text; put it in quotes"):
        load("--config", str(recipe))


def test_null_on_the_command_line_unsets_a_field(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("data: {val: shards/val}\n")
    assert load("--config", str(recipe), "--data.val", "null").data.val is None


def test_dict_and_command_line_give_the_same_config() -> None:
    tree = {"train": {"epochs": 3}, "assign": {"name": "max_iou"}}
    assert Config.from_dict(tree) == load("--train.epochs", "3", "--assign.name", "max_iou")


@pytest.mark.parametrize(("given", "expected"), [("3", (3, 3)), ("[1,4]", (1, 4))])
def test_workers_are_a_number_or_a_range(given: str, expected: tuple[int, int]) -> None:
    config = load("--ray.workers", given)
    assert (config.ray.min_workers, config.ray.max_workers) == expected
    assert Config.from_dict(config.recorded()).ray == config.ray


def test_named_choices_reach_assigner_and_loss() -> None:
    argv = ["--assign.name=task_aligned", "--assign.topk=9", "--loss.classification=quality_focal"]
    config = load(*argv)
    assigner = build_assigner(**config.assign.model_dump())
    assert assigner == build_assigner("task_aligned", topk=9)
    loss = DetectionLoss(assigner, **config.loss.options(config.assign.name))
    assert (loss.alpha, loss.gamma) == (0.75, 2.0)
    assert build_assigner(**Config().assign.model_dump()) == build_assigner("mutual_guidance")


def test_unset_options_of_the_loss_follow_the_assigner() -> None:
    config = Config()
    assert DetectionLoss(None, **config.loss.options("atss")).options == LossOptions()
    soft = config.replace({"assign.name": "mutual_guidance_soft"})
    follows = {"classification": "quality_focal", "classification_weight": 2.0, "overlap": "siou"}
    assert soft.recorded()["loss"] | follows == soft.recorded()["loss"]
    assert soft.replace({"assign.name": "atss"}).recorded()["loss"] == config.recorded()["loss"]
    polys = {name: config.loss.options(name)["poly"] for name in ("sim_ota", "task_aligned")}
    assert polys == {"sim_ota": 0, "task_aligned": 0} and config.loss.options("atss")["poly"] == 1
    given = soft.replace({"loss.overlap": "none"})
    assert given.loss.options("mutual_guidance_soft")["overlap"] == "none"
    assert Config.from_dict(soft.recorded()).recorded() == soft.recorded()


def test_unset_rates_follow_the_optimizer() -> None:
    config = Config()
    rates = [config.recorded()["train"][name] for name in ("lr", "weight_decay")]
    assert rates == [0.05, 5e-4]
    adamw = config.replace({"train.optimizer": "adamw"})
    rates = [adamw.recorded()["train"][name] for name in ("lr", "weight_decay")]
    assert rates == [1e-3, 0.05]
    given = adamw.replace({"train.weight_decay": 0.0}).recorded()["train"]
    assert (given["lr"], given["weight_decay"]) == (1e-3, 0.0)
    assert Config.from_dict(adamw.recorded()).recorded() == adamw.recorded()


def test_replace_changes_dotted_fields_and_validates() -> None:
    config = Config().replace({"assign.sigma": 3.0, "train.epochs": 2})
    assert (config.assign.sigma, config.train.epochs) == (3.0, 2.0)
    with pytest.raises(UserError, match=r"assign\.sigma"):
        Config().replace({"assign.sigma": 0.5})


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--train.epochs", "abc"], r"train\.epochs: got 'abc'.*valid number.*passes over"),
        (["--train.epochs", "-1"], r"train\.epochs: got '-1'.*greater than 0"),
        (["--train.epoch", "3"], r"unknown option --train\.epoch; did you mean --train\.epochs"),
        (["--assign.name", "magic"], r"assign\.name: 'magic' does not exist.*mutual_guidance"),
        (["--model.backbone", "x"], r"model\.backbone: backbone 'x' does not exist.*slim, vgg16"),
        (["--model.neck", "x"], r"model\.neck: 'x' does not exist.*fssd, pafpn, retinanet, rfb"),
        (["--model.init", "https://h/w.pth"], r"init is a URL: give init_sha256"),
        (["--model.init_sha256", "6c64b313"], r"model\.init_sha256: got '6c64b313'.*64 hexa"),
        (["--model.freeze_stages", "5"], r"freeze_stages is 5; slim has 4 stages"),
        (["--model.image_size", "100"], r"100 is not divisible by 64; the nearest are 64 and 128"),
        (["--model.anchor_base", "0"], r"model\.anchor_base: the base is 0; .* 1 to 1024 pixels"),
        (["--model.anchor_ratios", "[1,-2]"], r"anchor_ratios: the list contains -2; .*1/64 to 64"),
        (["--model.anchor_scales", "[2,2]"], r"anchor_scales: the list contains a number twice"),
        (["--ray.workers", "0"], r"ray\.workers: 0 is not valid"),
        (
            ["--ray.workers", "[2,1]"],
            r"ray\.workers: \[2, 1\] is not valid.*\[min, max\] in that order",
        ),
        (["--ray.workers", "1.5"], r"ray\.workers: \[1\.5\] is neither a number .* nor \[min, max"),
        (["--ray.storage", "here"], r"ray\.storage: 'here' is a relative path"),
        (["--assign.pos_threshold", "0.1"], r"ignore_threshold 0\.4 is above pos_threshold 0\.1"),
        (["--loss.classification", "x"], r"'x' does not exist; choose from: focal, quality_focal"),
        (["--loss.overlap", "x"], r"loss\.overlap: 'x' does not exist.*giou, none, siou"),
        (["--assign.topk", "0"], r"assign\.topk: got '0'.*greater than or equal to 1.*unset: 15"),
        (["--config", "absent.yaml"], r"--config absent\.yaml: No such file"),
    ],
)
def test_wrong_option_is_one_clear_line(argv: list[str], expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        load(*argv)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: {epochz: 3}", r"train\.epochz: unknown key; did you mean 'epochs'"),
        ("training: {}", r"training: unknown key; .*known|did you mean 'train'"),
        ("train: [", "not valid YAML"),
        ("just words", "expected sections"),
        ("- " + "x" * 10_000, r"expected sections.*x\.\.\.$"),
        ("train: {epochs: [" + "x," * 10_000 + "]}", r"train\.epochs: got \['x'.{190,200}\.\.\.;"),
        ("a: &a {b: [*a]}", "line 1: the value contains an alias of itself"),
    ],
)
def test_invalid_recipe_is_one_clear_line(tmp_path: Path, text: str, expected: str) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(text)
    with pytest.raises(UserError, match=expected) as caught:
        load("--config", str(recipe))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_wrong_value_names_the_source_that_gave_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("train: {epochs: -1, lr: -1, seed: -1}\n")
    monkeypatch.setenv("MG_TRAIN__LR", "-2")
    with pytest.raises(UserError) as caught:
        load("--config", str(recipe), "--train.seed", "-3")
    epochs, lr, seed = sorted(str(caught.value).splitlines())
    assert epochs.startswith("train.epochs: got -1;")
    assert epochs.endswith(f"[from {recipe}]")
    assert lr.endswith("[from MG_TRAIN__LR]")
    assert "[from" not in seed


@pytest.mark.parametrize("name", ["MG_TRAIN__EPOCHZ", "MG_TRAINING__EPOCHS"])
def test_unknown_environment_variable_is_an_error(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "3")
    with pytest.raises(UserError, match="(?i)epochz|training"):
        load()


def dotted_fields(section: type[Section], prefix: str = "") -> dict[str, FieldInfo]:
    """Return the fields of a section by name, those of the sections in it with dots."""
    found = {}
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            found |= dotted_fields(kind, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = field
    return found


def test_every_field_has_a_description() -> None:
    for name, field in dotted_fields(Config).items():
        assert field.description, name


def test_section_in_a_section_is_set_by_every_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MG_SWEEP__CONFIRM__SEEDS", "5")
    config = load("--sweep.confirm.points", "1")
    assert (config.sweep.confirm.points, config.sweep.confirm.seeds) == (1, 5)
    with pytest.raises(UserError, match=r"sweep\.confirm\.points: got '-1'"):
        load("--sweep.confirm.points", "-1")


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    folder = tmp_path / "recipes"
    (folder / "sweeps").mkdir(parents=True)
    (folder / "bccd.yaml").write_text("train: {epochs: 25}\n")
    (folder / "sweeps" / "smoke.yaml").write_text("train: {epochs: 3}\n")
    return folder


@pytest.mark.parametrize(("name", "epochs"), [("bccd", 25.0), ("sweeps/smoke", 3.0)])
def test_included_recipe_is_found_by_name(recipes: Path, name: str, epochs: float) -> None:
    config, options = load_config(make_parser("train", ""), ["--config", name], recipes)
    assert config.train.epochs == epochs
    assert options.config == recipes / f"{name}.yaml"


def test_file_comes_before_included_recipe_of_the_same_name(
    recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bccd").write_text("train: {epochs: 7}\n")
    config, _ = load_config(make_parser("train", ""), ["--config", "bccd"], recipes)
    assert config.train.epochs == 7.0


def test_directory_does_not_hide_included_recipe_of_the_same_name(
    recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bccd").mkdir()
    config, options = load_config(make_parser("train", ""), ["--config", "bccd"], recipes)
    assert (config.train.epochs, options.config) == (25.0, recipes / "bccd.yaml")
    with pytest.raises(UserError, match=f"--config {tmp_path}: Is a directory"):
        load_config(make_parser("train", ""), ["--config", str(tmp_path)], recipes)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bcdd", "did you mean bccd"),
        ("elsewhere/bccd.yaml", "did you mean bccd"),
        ("mine.yaml", r"included: bccd, sweeps/\.\.\."),
    ],
)
def test_unknown_recipe_lists_the_included_ones(recipes: Path, name: str, expected: str) -> None:
    with pytest.raises(UserError, match=rf"--config {name}: No such file .*; {expected}") as caught:
        load_config(make_parser("train", ""), ["--config", name], recipes)
    assert "\n" not in str(caught.value)


def test_help_shows_common_fields_first_and_every_field_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        load("--help")
    shown = re.findall(r"^  --([\w.]+\.\w+)", capsys.readouterr().out, flags=re.M)
    fields = dotted_fields(Config)
    assert tuple(shown[: len(COMMON_FIELDS)]) == COMMON_FIELDS
    assert sorted(shown) == sorted(fields)


def test_help_explains_fields(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load("--help")
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert "--assign.sigma" in text
    assert "passes over the training set" in text
