"""`best.yaml`: the values of the winner, its reasons, and no secrets."""

import yaml

from pipeline.config import Config
from pipeline.metrics.bootstrap import Interval
from pipeline.sweep.answer.recipe import Reproduced, best_recipe
from pipeline.sweep.documents import Statement
from pipeline.training.fit import fit
from pipeline.trials.trial import trial_config
from tests.pipeline.sweep.answer.outcomes import best_settings

STATEMENT = Statement(
    metric="val/ap",
    mode="max",
    winner="t0001",
    confirmed=True,
    sentences=["best.yaml is t0001: val/ap 0.5000, better than the default beyond noise.", "Why."],
)


def test_recipe_has_the_values_and_the_reasons_of_the_winner() -> None:
    config = Config.from_dict({"train": {"lr": 0.03}, "sweep": {"trials": 3}})
    params = {"assign.sigma": 2.5, "train.seed": 1}
    text = best_recipe(config, "search", STATEMENT, Reproduced("t0001-seed1", params, 0.49876))
    assert text.startswith(
        "# From the sweep search.\n"
        "# best.yaml is t0001: val/ap 0.5000, better than the default beyond noise.\n"
        "# Why.\n"
        "# On CPU, a training with this recipe and train.seed 1 gives val/ap 0.4988, exactly that "
        "of\n"
        "#   t0001-seed1.\n"
        "# Train with: python -m jobs.train --config FILE\n"
    )
    tree = yaml.safe_load(text)
    assert tree == {"train": {"lr": 0.03, "seed": 1}, "assign": {"sigma": 2.5}}


def test_post_processing_is_written_only_beyond_noise() -> None:
    noise = best_settings(Interval(0.01, -0.01, 0.03))
    text = best_recipe(Config(), "search", STATEMENT, Reproduced("t1", {}, 0.5, noise))
    assert "evaluate" not in text
    better = best_settings(Interval(0.02, 0.01, 0.03))
    text = best_recipe(Config(), "search", STATEMENT, Reproduced("t1", {}, 0.5, better))
    # Only what differs from the recipe.
    assert yaml.safe_load(text)["evaluate"] == {"nms_iou": 0.4, "class_agnostic": True}
    assert (
        "# Without the settings of post-processing below: they raise ap on data.val by 0.02" in text
    )


def test_recipe_of_an_unfinished_training_promises_no_score() -> None:
    text = best_recipe(Config(), "search", STATEMENT, Reproduced("t0001", {}, None))
    assert "exactly" not in text


def test_recipe_has_no_secrets() -> None:
    config = Config.from_dict(
        {
            "model": {"init": "https://host/w.pth?token=S3cret", "init_sha256": "0" * 64},
            "tracking": {"uri": "http://me:S3cret@host:5000", "experiment": "x"},
        }
    )
    text = best_recipe(config, "search", STATEMENT, Reproduced("t0001", {}, 0.5))
    tree = yaml.safe_load(text)
    assert tree["tracking"] == {"experiment": "x"}
    assert tree["model"]["init"] == "https://host/w.pth?token=***"
    assert "S3cret" not in text


def test_recipe_repeats_the_training_to_the_last_bit(small: Config) -> None:
    config = small.replace({"sweep.space": {"train.lr": {"uniform": [0.01, 0.1]}}})
    params = {"train.lr": 0.03, "train.seed": 5}
    trained = fit(trial_config(config, params), run="t0001-seed5")
    score = trained.metrics["val/ap"]
    text = best_recipe(config, "search", STATEMENT, Reproduced("t0001-seed5", params, score))
    again = fit(Config.from_dict(yaml.safe_load(text)), run="best")
    assert (again.ema_sha256, again.metrics["val/ap"]) == (trained.ema_sha256, score)
    other = fit(trial_config(config, {**params, "train.seed": 6}), run="t0001-seed6")
    assert other.ema_sha256 != trained.ema_sha256
