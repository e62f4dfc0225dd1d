"""Trainings of a comparison: which are the same, so that they are trained once."""

from typing import Any

import pytest

from pipeline.comparison.arms import Arm
from pipeline.comparison.cells import Split, identity, make_cells
from pipeline.config import Config
from pipeline.errors import UserError

CONTENT = ("a" * 64, "b" * 64)
SPLITS = [Split(CONTENT)]
ATSS, SOFT = Arm("atss", {"assign.name": "atss"}), Arm("soft", {"assign.name": "sim_ota"})


def digest(params: dict[str, Any] | None = None, **config: Any) -> str:
    return identity(Config.from_dict(config), params or {}, CONTENT)


def test_identity_is_stable_over_versions() -> None:
    # A folder of an earlier version would otherwise be trained again.
    trained = {"data": {"train": "/t", "val": "/v"}, "train": {"lr": 0.1, "epochs": 12}}
    assert digest({"assign.name": "mutual_guidance_soft"}, **trained) == "c7d6a1ca77b7"
    # Rivals had the poly term.
    for name, former in (("task_aligned", "309f19c3120c"), ("sim_ota", "d00737301f30")):
        own = digest({"assign.name": name}, **trained)
        assert digest({"assign.name": name, "loss.poly": 1.0}, **trained) == former != own
        assert digest({"assign.name": name, "loss.poly": 0.0}, **trained) == own


def test_what_changes_no_result_does_not_count() -> None:
    plain = digest(data={"train": "/t", "val": "/v"})
    assert plain == digest(
        data={"train": "/elsewhere", "val": "/v", "loader_workers": 0, "test": "/x"},
        train={"checkpoint_every": 3, "log_every": 1},
        evaluate={"every": 7, "pictures": 0},
        tracking={"experiment": "x"},
        ray={"cpus_per_worker": 0.5, "storage": "/s"},
        sweep={"retries": 9},
    )
    # An option of another assigner, and defaults that are written out.
    assert plain == digest({"assign.topk": 5, "assign.sigma": 2.0, "loss.classification": "focal"})
    assert plain == digest({"model.freeze_stages": 0})
    assert plain == digest(train={"lr": 0.05, "weight_decay": 5e-4})
    adamw = digest(train={"optimizer": "adamw"})
    assert adamw == digest(train={"optimizer": "adamw", "lr": 1e-3, "momentum": 0.5}) != plain


@pytest.mark.parametrize(
    "other",
    [
        {"train": {"seed": 1}},
        {"train": {"micro_batch": 4}},
        {"ray": {"workers": 2}},
        {"data": {"flip": 0.0}},
        {"assign": {"sigma": 3.0}},
        {"loss": {"overlap": "giou"}},
        {"evaluate": {"protocol": "voc"}},
        {"model": {"freeze_stages": 1}},
    ],
)
def test_what_changes_a_result_counts(other: dict[str, Any]) -> None:
    assert digest(**other) != digest()
    assert identity(Config(), {}, ("c" * 64, CONTENT[1])) != digest()


def test_cells_are_named_by_arm_and_seed_and_kept_by_hash() -> None:
    cells = make_cells(Config(), [ATSS, SOFT], [0, 1], SPLITS)
    assert [(cell.arm, cell.seed) for cell in cells] == [
        *(("atss", 0), ("soft", 0), ("atss", 1), ("soft", 1))
    ]
    assert cells[2].name.startswith("atss-s1-") and cells[2].params["train.seed"] == 1
    assert len({cell.name for cell in cells}) == 4
    # The same training under another name of its arm, and beside others.
    known = [cell.name for cell in cells]
    renamed = Arm("ATSS!", ATSS.params)
    again = make_cells(Config(), [SOFT, renamed], [1, 2], SPLITS, known)
    assert [cell.name in known for cell in again] == [True, True, False, False]
    assert again[3].name.startswith("ATSS-s2-")


def test_folds_are_trained_on_their_own_sets() -> None:
    splits = [
        Split((f"{k}t", f"{k}v"), k, {"data.train": f"/{k}/t", "data.val": f"/{k}/v"})
        for k in (1, 2)
    ]
    cells = make_cells(Config(), [ATSS, SOFT], [5], splits)
    assert [(cell.arm, cell.fold) for cell in cells] == [
        *(("atss", 1), ("soft", 1), ("atss", 2), ("soft", 2))
    ]
    assert cells[2].params["data.val"] == "/2/v" and "-s5-f2-" in cells[2].name


def test_arms_that_are_the_same_training_are_refused() -> None:
    same = Arm("written out", {"assign.name": "atss", "assign.candidates": 9})
    with pytest.raises(UserError, match="arms 'atss' and 'written out' are the same training"):
        make_cells(Config(), [ATSS, same], [0], SPLITS)
