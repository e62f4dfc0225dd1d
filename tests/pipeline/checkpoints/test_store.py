"""The checkpoints of a run: found, chosen by score, pruned without orphans, set aside."""

import os
import time
from pathlib import Path

import pytest
import torch

from pipeline.checkpoints.store import SCORE, CheckpointStore, by_score


def store_with(folder: Path, *scores: float) -> CheckpointStore:
    store = CheckpointStore(folder)
    for step, score in enumerate(scores, start=1):
        save(store, step, score)
    return store


def save(store: CheckpointStore, step: int, score: float = 0.0) -> None:
    store.save(step, {"model": {"x": torch.full((9,), float(step))}}, {SCORE: score})


def steps(store: CheckpointStore) -> list[int]:
    return [item.step for item in store.saved()]


def damage(folder: Path, step: int) -> None:
    path = folder / f"step-{step:08d}" / "state.pt"
    path.write_bytes(path.read_bytes()[:-3])


def test_an_absent_folder_holds_no_checkpoints(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "none").survey() == ([], [])


def test_best_and_latest_are_kept(tmp_path: Path) -> None:
    store = store_with(tmp_path, 0.1, 0.5, 0.3, 0.2, 0.25)
    assert store.prune(2, SCORE) == ["step-00000001", "step-00000004"]
    assert steps(store) == [2, 3, 5]
    assert [item.step for item in by_score(store.saved(), SCORE)] == [2, 3, 5]


def test_without_a_score_the_last_ones_are_kept(tmp_path: Path) -> None:
    store = store_with(tmp_path, 0.1, 0.5, 0.3)
    store.prune(2, None)
    assert steps(store) == [2, 3]
    assert [item.step for item in by_score(store.saved(), None)] == [3, 2]


def test_among_equals_the_later_wins(tmp_path: Path) -> None:
    assert [item.step for item in by_score(store_with(tmp_path, 1, 1).saved(), SCORE)] == [2, 1]


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in (99_999_999, 100_000_000):
        save(store, step)
    assert steps(store) == [99_999_999, 100_000_000]


def test_what_a_kill_left_behind_goes_once_it_is_overtaken(tmp_path: Path) -> None:
    store = store_with(tmp_path, 0.1)
    for step in (2, 5):
        save(store, step)
        (tmp_path / f"step-{step:08d}" / "meta.json").unlink()
    (tmp_path / "pictures").mkdir()
    saved, leftovers = store.survey()
    assert [item.step for item in saved] == [1]
    assert [(item.name, item.problem) for item in leftovers] == [
        ("step-00000002", "not complete"),
        ("step-00000005", "not complete"),
    ]
    save(store, 3)
    assert store.prune(9, SCORE) == ["step-00000002"]  # 5 may be another process's work
    assert store.prune(9, SCORE, older_than=3600) == []
    an_hour_ago = time.time() - 3700
    for path in (tmp_path / "step-00000005").iterdir():
        os.utime(path, (an_hour_ago, an_hour_ago))
    assert store.prune(9, SCORE, older_than=3600) == ["step-00000005"]
    assert (tmp_path / "pictures").is_dir()


def test_damaged_ones_are_set_aside_and_the_one_before_is_taken(tmp_path: Path) -> None:
    store, lines = store_with(tmp_path, 0.1, 0.2, 0.3), []
    damage(tmp_path, 3)
    damage(tmp_path, 2)
    found = store.first_sound(reversed(store.saved()), "cpu", lines.append)
    assert found is not None
    assert (found[0].step, found[1]["model"]["x"][0]) == (1, 1.0)
    assert len(lines) == 2
    assert "step-00000003 is damaged: state.pt has" in lines[0]
    assert "falling back to the one before" in lines[0]
    assert steps(store) == [1]
    assert [item.problem for item in store.survey()[1]] == ["damaged", "damaged"]
    save(store, 3, 0.3)  # training comes by again
    assert steps(store) == [1, 3]
    assert store.prune(2, SCORE) == ["step-00000002"]


def test_where_none_is_sound_there_is_none(tmp_path: Path) -> None:
    store = store_with(tmp_path, 0.1)
    damage(tmp_path, 1)
    assert store.first_sound(store.saved(), "cpu", lambda line: None) is None


@pytest.mark.parametrize("score", [SCORE, None])
def test_nothing_is_pruned_from_nothing(tmp_path: Path, score: str | None) -> None:
    assert CheckpointStore(tmp_path).prune(1, score) == []
