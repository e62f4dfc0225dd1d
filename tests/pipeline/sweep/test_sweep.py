"""Documents of a sweep, and the state of Tune that it is resumed from."""

import contextlib
import sys
import threading

import pytest
import yaml

from pipeline.config import Config
from pipeline.errors import LeaseLostError
from pipeline.sweep.results import Trial, TrialTable, best_recipe
from pipeline.sweep.sweep import sweep
from pipeline.sweep.trial import TrialSettings
from tests.pipeline.training.test_fit import status
from tests.pipeline.training.test_lease_of_run import take_over


def test_table_survives_a_file() -> None:
    trials = [
        Trial("a1", {"assign.sigma": 2.5, "assign.name": "atss"}, 0.5, 2.0, "finished", "run"),
        Trial("b2", {"assign.sigma": 3.0, "assign.name": "atss"}, None, 0.0, "failed", None),
    ]
    data = TrialTable(trials=trials).encode()
    assert TrialTable.parse(data, "trials.json").trials == trials


def test_best_recipe_has_the_best_values_and_no_secrets() -> None:
    config = Config.from_dict(
        {
            "model": {"init": "https://host/w.pth?token=S3cret", "init_sha256": "0" * 64},
            "tracking": {"uri": "http://me:S3cret@host:5000", "experiment": "x"},
        }
    )
    best = Trial("a1", {"assign.sigma": 2.5}, 0.5, 2.0, "finished", "run")
    text = best_recipe(config, best, 3, "search")
    assert text.startswith("# Best of 3 trials of the sweep search: val/ap 0.5000 (trial a1).")
    tree = yaml.safe_load(text)
    assert tree["assign"] == {"sigma": 2.5}
    assert tree["tracking"] == {"experiment": "x"}
    assert tree["model"]["init"] == "https://host/w.pth?token=***"
    assert "S3cret" not in text


def test_settings_of_a_trial_survive_their_way() -> None:
    config = Config.from_dict({"ray": {"workers": [1, 2]}, "data": {"val": "/val"}})
    settings = TrialSettings(
        config=config, sweep="s", storage="/runs/s", tracking_uri="sqlite://", parent_run_id="abc"
    )
    content = settings.model_dump(mode="json")
    assert TrialSettings.from_content(content, "settings") == settings


def test_sweep_that_was_taken_over_is_interrupted_and_changes_nothing(
    small: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = {"train.lr": {"uniform": [0.01, 0.1]}}
    config = small.replace({"ray.lease_seconds": 1.0, "sweep.space": space})
    uri = f"{config.ray.storage}/one"

    def tune(*_: object) -> None:
        take_over(uri)
        threading.Event().wait(60)  # as in Tune, which only Ctrl-C ends

    module = sys.modules[sweep.__module__]  # the package has a function of that name
    monkeypatch.setattr(module, "run_trials", tune)
    monkeypatch.setattr(module, "ray_cluster", lambda *_, **__: contextlib.nullcontext())
    with pytest.raises(LeaseLostError, match="run 'one' was taken over by process 1 on elsewhere"):
        sweep(config, run="one")
    assert status(config, "one") == ("running", "RUNNING")
