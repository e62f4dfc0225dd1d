"""The revision of the code that a run records."""

import subprocess

import pytest

from pipeline.config import Config
from pipeline.tracking.provenance import git_state
from pipeline.tracking.run_spec import build_run_spec


@pytest.fixture
def checkout(tmp_path):
    def git(*arguments):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)

    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "__init__.py").write_text("")
    git("init", "-b", "trunk")
    git("config", "user.email", "a@b.c")
    git("config", "user.name", "a")
    git("add", ".")
    git("commit", "-m", "first")
    return tmp_path


def test_clean_checkout_has_a_revision_and_no_diff(checkout):
    state = git_state(checkout)
    assert len(state.revision) == 40
    assert (state.branch, state.diff, state.dirty) == ("trunk", "", False)


def test_diff_of_a_dirty_checkout_is_cut_at_the_limit(checkout, monkeypatch):
    (checkout / "pipeline" / "__init__.py").write_text("changed = True\n")
    state = git_state(checkout)
    assert "+changed = True" in state.diff
    assert state.dirty
    monkeypatch.setattr("pipeline.tracking.provenance.MAX_DIFF_BYTES", 20)
    assert "# cut" in git_state(checkout).diff


@pytest.fixture
def no_revision_variables(monkeypatch):
    for name in ("GIT_REVISION", "IMAGE_REVISION"):
        monkeypatch.delenv(name, raising=False)


def test_unknown_revision_is_not_recorded(tmp_path, checkout, monkeypatch, no_revision_variables):
    assert git_state(tmp_path / "elsewhere") == (None, None, "", None)
    monkeypatch.setenv("PATH", "")
    assert git_state(checkout) == (None, None, "", None)
    monkeypatch.setattr("pipeline.tracking.run_spec.git_state", lambda: git_state(checkout))
    assert not {"git.dirty", "mlflow.source.git.commit"} & build_run_spec(Config()).tags.keys()


@pytest.mark.parametrize(
    ("described", "revision", "dirty"),
    [("1eec9d2", "1eec9d2", "false"), ("v1.0-3-g1eec9d2-dirty", "v1.0-3-g1eec9d2", "true")],
)
@pytest.mark.parametrize("name", ["GIT_REVISION", "IMAGE_REVISION"])
def test_revision_is_read_from_the_environment_without_a_repository(
    tmp_path, monkeypatch, no_revision_variables, name, described, revision, dirty
):
    monkeypatch.setenv(name, described)
    monkeypatch.setattr("pipeline.tracking.run_spec.git_state", lambda: git_state(tmp_path))
    tags = build_run_spec(Config()).tags
    assert (tags["mlflow.source.git.commit"], tags["git.dirty"]) == (revision, dirty)


def test_checkout_takes_precedence_over_the_environment(checkout, monkeypatch):
    monkeypatch.setenv("GIT_REVISION", "another-dirty")
    state = git_state(checkout)
    assert (len(state.revision), state.dirty) == (40, False)


def test_revision_of_an_image_does_not_apply_to_uploaded_code(
    tmp_path, monkeypatch, no_revision_variables
):
    upload = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    monkeypatch.setenv("IMAGE_REVISION", "of-the-image")
    assert git_state(upload) == (None, None, "", None)
    monkeypatch.setenv("GIT_REVISION", "of-the-upload")
    assert git_state(upload) == ("of-the-upload", None, "", False)
    assert git_state(tmp_path).revision == "of-the-upload"
