"""Test that a changed bundle is rejected, and that none of its code runs."""

import shutil
import sys
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.registry import fetch_model, load_detector
from pipeline.registry.integrity import HASH_TAG, MANIFEST, seal, verify
from pipeline.registry.own_code import own_detector
from pipeline.registry.predict import predict_folder
from pipeline.tracking import connect
from tests.pipeline.registry.test_bundle import picture


@pytest.fixture
def files(registered) -> Path:
    """Return the folder in which the store keeps version 1; restore it afterwards."""
    source = connect(registered.uri).get_model_version_download_uri("shapes", "1")
    folder = Path(source.removeprefix("file://"))
    kept = folder.with_name("kept")
    shutil.copytree(folder, kept)
    yield folder
    shutil.rmtree(folder)
    kept.rename(folder)


def attack(folder: Path, marker: Path) -> Path:
    """Replace the code of a bundle by code that writes a file; return a source file of it."""
    (source,) = folder.glob("code/detector_*/decode.py")
    source.write_text(source.read_text() + f"\nopen({str(marker)!r}, 'w').close()\n")
    return source


def change_weights(folder: Path) -> None:
    (file,) = folder.rglob("weights.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def reseal(folder: Path) -> None:
    attack(folder, folder / "marker")
    seal(folder)


CHANGES = {
    r"weights\.safetensors has other content": change_weights,
    r"decode\.py has other content": lambda folder: attack(folder, folder / "marker"),
    r"code/torch\.py was added": lambda f: (f / "code" / "torch.py").write_text("x = 1"),
    r"detector\.json is missing": lambda f: next(f.rglob("detector.json")).unlink(),
    r"sha256\.json is missing": lambda folder: (folder / MANIFEST).unlink(),
    r"sha256\.json is not the one that was registered": reseal,
}


@pytest.mark.parametrize("expected", CHANGES)
def test_changed_bundle_is_rejected(registered, files: Path, tmp_path: Path, expected: str) -> None:
    CHANGES[expected](files)
    for read in (load_detector, lambda uri, store: fetch_model(uri, tmp_path, store)):
        with pytest.raises(UserError, match=rf"models:/shapes/1 was changed .*: .*{expected}"):
            read("models:/shapes/1", registered.uri)
    assert not (files / "marker").exists()


@pytest.mark.parametrize("bundle_code", [False, True])
def test_code_of_a_changed_bundle_does_not_run(
    registered, files: Path, tmp_path: Path, bundle_code: bool
) -> None:
    attack(files, tmp_path / "marker")
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.jpg").write_bytes(picture(60, 40))
    with pytest.raises(UserError, match="none of its code was run"):
        predict_folder(
            "models:/shapes/1", images, tmp_path / "out", registered.uri, bundle_code=bundle_code
        )
    assert not (tmp_path / "marker").exists()


def test_code_of_a_version_without_a_hash_runs_only_when_asked(
    registered, files: Path, tmp_path: Path
) -> None:
    """Versions of earlier releases have neither manifest nor tag."""
    client = connect(registered.uri)
    digest = client.get_model_version("shapes", "1").tags[HASH_TAG]
    client.delete_model_version_tag("shapes", "1", HASH_TAG)
    (files / MANIFEST).unlink()
    attack(files, tmp_path / "marker")
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.jpg").write_bytes(picture(60, 40))
    for module in [name for name in sys.modules if name.startswith("detector_")]:
        del sys.modules[module]  # loaded by other tests
    try:
        for bundle_code in (False, True):
            predict_folder(
                "models:/shapes/1",
                images,
                tmp_path / "out",
                registered.uri,
                bundle_code=bundle_code,
            )
            assert (tmp_path / "marker").exists() == bundle_code
    finally:
        client.set_model_version_tag("shapes", "1", HASH_TAG, digest)


def test_own_code_predicts_what_the_bundle_predicts(registered, tmp_path: Path) -> None:
    import pandas as pd
    from mlflow import pyfunc

    images = pd.DataFrame({"image": [picture(90, 60), picture(40, 80, seed=1)]})
    for version in (1, 2):
        uri = f"models:/shapes/{version}"
        own = own_detector(load_detector(uri, registered.uri)).predict(None, images)
        folder = fetch_model(uri, tmp_path / str(version), registered.uri)
        pd.testing.assert_frame_equal(own, pyfunc.load_model(str(folder)).predict(images))
        assert len(own) > 0


def test_every_file_is_in_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("x = 1")
    digest = seal(tmp_path)
    verify(tmp_path, digest, "m")
    verify(tmp_path, None, "m")
    (tmp_path / "code" / "link.py").symlink_to("/etc/passwd")
    with pytest.raises(UserError, match=r"code/link\.py was added"):
        verify(tmp_path, None, "m")


def test_version_that_mlflow_has_loaded_stays_valid(registered, files: Path, tmp_path) -> None:
    """MLflow imports from local artifacts in place, and leaves compiled code there."""
    planted = files / "code" / "__pycache__"
    planted.mkdir()
    (planted / "decode.cpython-311.pyc").write_bytes(b"compiled")
    assert load_detector("models:/shapes/1", registered.uri).classes == ["circle", "square"]
    fetched = fetch_model("models:/shapes/1", tmp_path, registered.uri)
    assert list(fetched.rglob("__pycache__")) == []
    assert planted.exists() or fetched == files
