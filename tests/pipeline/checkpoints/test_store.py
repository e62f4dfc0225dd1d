"""The checkpoints of a run: listed, ranked by score, pruned without leftovers, quarantined."""

import os
import time
from pathlib import Path

import torch

from pipeline.checkpoints.store import CheckpointStore, by_score
from tests.pipeline.checkpoints.examples import example_meta


def store_with(folder: Path, *scores: float | None) -> CheckpointStore:
    store = CheckpointStore(folder)
    for step, score in enumerate(scores, start=1):
        save(store, step, score)
    return store


def save(store: CheckpointStore, step: int, score: float | None = 0.0) -> None:
    state = {"model": {"x": torch.full((9,), float(step))}}
    store.save(state, example_meta(step, ap=score))


def steps(store: CheckpointStore) -> list[int]:
    return [item.step for item in store.saved()]


def damage(folder: Path, step: int) -> None:
    path = folder / f"step-{step:08d}" / "state.pt"
    path.write_bytes(path.read_bytes()[:-3])


def test_absent_folder_has_no_checkpoints(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "none").survey() == ([], [])


def test_prune_keeps_best_and_latest(tmp_path: Path) -> None:
    store = store_with(tmp_path, 0.1, 0.5, 0.3, 0.2, 0.25)
    assert store.prune(2) == ["step-00000001", "step-00000004"]
    assert steps(store) == [2, 3, 5]
    assert [item.step for item in by_score(store.saved())] == [2, 3, 5]


def test_prune_without_scores_keeps_the_latest(tmp_path: Path) -> None:
    store = store_with(tmp_path, None, None, None)
    store.prune(2)
    assert steps(store) == [2, 3]
    assert [item.step for item in by_score(store.saved())] == [3, 2]


def test_later_checkpoint_ranks_first_among_equals(tmp_path: Path) -> None:
    assert [item.step for item in by_score(store_with(tmp_path, 1, 1).saved())] == [2, 1]


def test_steps_are_sorted_as_numbers(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in (99_999_999, 100_000_000):
        save(store, step)
    assert steps(store) == [99_999_999, 100_000_000]


def test_prune_deletes_incomplete_checkpoints_before_the_latest(tmp_path: Path) -> None:
    store = store_with(tmp_path, 0.1)
    for step in (2, 5):
        save(store, step)
        (tmp_path / f"step-{step:08d}" / "meta.json").unlink()
    (tmp_path / "pictures").mkdir()
    saved, incomplete = store.survey()
    assert [item.step for item in saved] == [1]
    assert [(item.name, item.problem) for item in incomplete] == [
        ("step-00000002", "not complete"),
        ("step-00000005", "not complete"),
    ]
    save(store, 3)
    assert store.prune(9) == ["step-00000002"]  # 5 may be in progress in another process
    assert store.prune(9, older_than=3600) == []
    an_hour_ago = time.time() - 3700
    for path in (tmp_path / "step-00000005").iterdir():
        os.utime(path, (an_hour_ago, an_hour_ago))
    assert store.prune(9, older_than=3600) == ["step-00000005"]
    assert (tmp_path / "pictures").is_dir()


def test_damaged_checkpoints_are_quarantined_and_the_previous_one_loads(tmp_path: Path) -> None:
    store, lines = store_with(tmp_path, 0.1, 0.2, 0.3), []
    damage(tmp_path, 3)
    damage(tmp_path, 2)
    found = store.first_intact(reversed(store.saved()), "cpu", lines.append)
    assert found is not None
    assert (found[0].step, found[1]["model"]["x"][0]) == (1, 1.0)
    assert len(lines) == 2
    assert "step-00000003 is damaged: state.pt has" in lines[0]
    assert "falling back to the one before" in lines[0]
    assert steps(store) == [1]
    assert [item.problem for item in store.survey()[1]] == ["damaged", "damaged"]
    save(store, 3, 0.3)  # training reaches the step again
    assert steps(store) == [1, 3]
    assert store.prune(2) == ["step-00000002"]


def test_first_intact_is_none_if_all_are_damaged(tmp_path: Path) -> None:
    store = store_with(tmp_path, 0.1)
    damage(tmp_path, 1)
    assert store.first_intact(store.saved(), "cpu", lambda line: None) is None


def test_prune_of_an_empty_folder_deletes_nothing(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path).prune(1) == []
