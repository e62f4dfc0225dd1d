"""Checkpoints in a folder without Ray: atomic, found again, kept by score."""

from pathlib import Path

import pytest

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.training.checkpoint import load_meta, load_state, save_checkpoint
from pipeline.training.session import LocalSession, best_of


def session(folder: Path, keep: int = 2, val: str | None = "v") -> LocalSession:
    tree = {"train": {"keep_checkpoints": keep}, "data": {"val": val}}
    return LocalSession(Config.from_dict(tree), folder)


def report(to: LocalSession, step: int, **metrics: float) -> None:
    to.report(
        metrics, f"step-{step:08d}", lambda folder: save_checkpoint(folder, {}, {"step": step})
    )


def steps_of(kept: LocalSession) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in sorted(kept.folder.glob("step-*"))]


def test_latest_and_best_are_kept(tmp_path: Path) -> None:
    local = session(tmp_path)
    for step, ap in enumerate((0.1, 0.5, 0.3, 0.2, 0.25), start=1):
        report(local, step, score=ap)
    assert steps_of(local) == [2, 3, 5]
    best = best_of(local.kept(), "score")
    assert best is not None
    with best.open() as folder:
        assert load_meta(folder)["step"] == 2
    latest = local.latest()
    assert latest is not None
    assert latest.metrics == {"score": 0.25}


def test_without_a_score_the_last_ones_are_kept(tmp_path: Path) -> None:
    local = session(tmp_path, val=None)
    for step in (1, 2, 3):
        report(local, step)
    assert steps_of(local) == [2, 3]
    chosen = best_of(local.kept(), None)
    assert chosen is not None
    with chosen.open() as folder:
        assert load_meta(folder)["step"] == 3


def test_a_checkpoint_cut_short_is_not_found(tmp_path: Path) -> None:
    local = session(tmp_path)
    report(local, 1, score=0.1)

    def fails(folder: Path) -> None:
        folder.mkdir()
        (folder / "state.pt").write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        local.report({}, "step-00000002", fails)
    assert steps_of(session(tmp_path)) == [1]


def test_a_folder_that_is_no_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a complete checkpoint"):
        load_meta(tmp_path)


def test_a_newer_format_says_so(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {}, {"step": 1})
    meta = (
        (tmp_path / "meta.json").read_text().replace('"format_version": 1', '"format_version": 9')
    )
    (tmp_path / "meta.json").write_text(meta)
    with pytest.raises(UserError, match=r"format 9, newer"):
        load_meta(tmp_path)


def test_states_with_code_inside_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"path": Path("x")}, {"step": 1})
    with pytest.raises(Exception, match="[Ww]eights.only"):
        load_state(tmp_path)
