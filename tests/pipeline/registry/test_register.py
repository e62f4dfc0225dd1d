"""Registration of versions, and loading them by name or folder."""

import json
import shutil

import pytest
import torch

from model import build_detector
from model.anchor_shapes import AnchorShapes
from pipeline.config import DetectorSpec
from pipeline.errors import UserError
from pipeline.registry import BundleContent, fetch_model, load_detector, register
from pipeline.registry.integrity import MANIFEST
from pipeline.tracking import connect, create_run


@pytest.fixture(scope="module")
def client(registered):
    return connect(registered.uri)


def register_again(registered, name, run_id, which=0):
    detector = registered.detectors[which]
    return register(
        registered.uri,
        run_id,
        BundleContent(
            name=name,
            weights=detector.state_dict(),
            spec=DetectorSpec(**detector.spec),
            classes=registered.classes[which],
            config=registered.config,
            metrics={},
        ),
    )


def test_versions_are_numbered_and_linked_to_their_runs(registered, client):
    assert [(v.version, v.model_uri) for v in registered.versions] == [
        (1, "models:/shapes/1"),
        (2, "models:/shapes/2"),
    ]
    version = client.get_model_version("shapes", "2")
    assert version.run_id == registered.run_ids[1]
    assert version.tags["test/ap"] == "0.5"
    assert version.tags["data.val.fingerprint"] == "f" * 64
    outputs = client.get_run(registered.run_ids[1]).outputs.model_outputs
    logged = client.get_logged_model(outputs[0].model_id)
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": "shapes", "version": 2}]
    assert logged.status == "READY"


def test_version_says_what_it_is(registered, client):
    version = client.get_model_version("shapes", "1")
    assert version.description.startswith("# shapes")
    for part in ("circle", "| test/ap | 0.5000 |", registered.run_ids[0]):
        assert part in version.description
    assert client.get_model_version_by_alias("shapes", "candidate").version in (1, 2)
    logged = client.get_logged_model(version.tags["logged_model"])
    assert logged.params["model.backbone"] == registered.config.model.backbone
    assert not any(key.startswith("ray.") for key in logged.params)
    assert logged.tags["mlflow.note.content"] == version.description
    assert {metric.key: metric.value for metric in logged.metrics} == {
        "model/test/ap": 0.5,
        "model/test/ap50": 0.75,
    }
    experiment = client.get_experiment(client.get_run(registered.run_ids[0]).info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_description_of_many_classes_is_cut(registered, client):
    detector = registered.detectors[0]
    version = register(
        registered.uri,
        registered.run_ids[0],
        BundleContent(
            name="many",
            weights=detector.state_dict(),
            spec=DetectorSpec(**detector.spec),
            classes=[f"class-{number:04d}" for number in range(1000)],
            config=registered.config,
            metrics={},
        ),
    )
    text = client.get_model_version("many", str(version.version)).description
    assert len(text) == 5000
    assert text.endswith("(cut; the whole card is README.md of the version)\n")


def test_run_is_registered_once_per_name(registered, client):
    assert register_again(registered, "shapes", registered.run_ids[0]) == registered.versions[0]
    assert len(client.search_model_versions("name='shapes'")) == 2
    assert register_again(registered, "other", registered.run_ids[0]).version == 1


def test_registration_and_download_print_nothing(registered, tmp_path, capfd):
    version = register_again(registered, "quiet", registered.run_ids[0])
    fetch_model(version.model_uri, tmp_path, registered.uri)
    assert capfd.readouterr() == ("", "")


def test_failed_upload_creates_no_version(registered, client, monkeypatch):
    run_id = create_run(registered.uri, registered.config, "fails")
    with monkeypatch.context() as patch:
        patch.setattr(
            "mlflow.MlflowClient.log_model_artifacts",
            lambda *_: (_ for _ in ()).throw(OSError("disk full")),
        )
        with pytest.raises(OSError, match="disk full"):
            register_again(registered, "unlucky", run_id)
    assert client.search_model_versions("name='unlucky'") == []
    assert register_again(registered, "unlucky", run_id).version == 1


def test_version_has_a_revision_only_if_its_run_has_one(registered, client):
    known = dict.fromkeys(("mlflow.source.git.commit", "git.dirty"), "x")
    experiment = client.get_run(registered.run_ids[0]).info.experiment_id
    for name, tags in (("known", known), ("unknown", {})):
        run_id = client.create_run(experiment, tags=tags).info.run_id
        version = client.get_model_version(name, register_again(registered, name, run_id).version)
        recorded = {"git.revision", "git.dirty"} & version.tags.keys()
        assert recorded == ({"git.revision", "git.dirty"} if tags else set())


@pytest.mark.parametrize("name", ["", " ", "a/b", "a:b", "a@b", "it's"])
def test_names_that_are_invalid_in_uris_are_rejected(registered, name):
    with pytest.raises(UserError, match=r"registry\.name"):
        register_again(registered, name, registered.run_ids[0])


def test_load_detector_returns_spec_classes_and_weights(registered):
    loaded = load_detector("models:/shapes/2", registered.uri)
    assert loaded.classes == ["cat", "dog", "bird"]
    detector = build_detector(**loaded.spec.model_dump())
    detector.load_state_dict(loaded.state)
    for name, tensor in registered.detectors[1].state_dict().items():
        assert torch.equal(detector.state_dict()[name], tensor), name


def test_load_detector_accepts_a_folder(registered, tmp_path):
    folder = fetch_model("models:/shapes/1", tmp_path, registered.uri)
    assert load_detector(str(folder)).classes == ["circle", "square"]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/missing/1", "'missing' does not exist .*registered: .*shapes"),
        ("models:/shapes/9", "no version 9; versions: 1, 2"),
        ("models:/shapes@winner", "no alias 'winner'; aliases:"),
        ("models:/shapes", "not a model URI; write models:/NAME@ALIAS"),
        ("/no/such/folder", "does not exist; give models:/NAME@ALIAS"),
    ],
)
def test_unknown_model_error_lists_what_exists(registered, uri, message):
    with pytest.raises(UserError, match=message) as error:
        load_detector(uri, registered.uri)
    assert "\n" not in str(error.value)


# As the first version of this software wrote it.
OLD_DESCRIPTION = """\
{
  "format_version": 1,
  "package": "detector_0123456789abcdef",
  "spec": {
    "backbone": "slim",
    "neck": "retinanet",
    "num_classes": 2,
    "image_size": 64,
    "neck_channels": 64
  },
  "classes": ["circle", "square"],
  "defaults": {"score_threshold": 0.05, "nms_iou": 0.5, "max_detections": 100},
  "max_candidates": 1000,
  "origin": {"run_id": "89e4f1b9a4ff4a1c9f6b1a3f4f9c8f2e"}
}
"""


@pytest.fixture
def bundle(registered, tmp_path):
    fetched = fetch_model("models:/shapes/1", tmp_path / "fetched", registered.uri)
    folder = shutil.copytree(fetched, tmp_path / "bundle")
    (folder / MANIFEST).unlink()  # as bundles of the first versions; tests change the rest
    return folder


def test_load_detector_reads_descriptions_of_the_first_versions(bundle):
    (bundle / "artifacts" / "detector.json").write_text(OLD_DESCRIPTION)
    loaded = load_detector(str(bundle))
    assert (loaded.fit, loaded.spec.norm, loaded.classes) == (
        "stretch",
        "batch",
        ["circle", "square"],
    )
    assert loaded.spec.anchor_shapes == AnchorShapes()
    detector = build_detector(**loaded.spec.model_dump())
    detector.load_state_dict(loaded.state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 4}, "has format 4, written by a newer version"),
        ({"classes": "cat"}, r"detector\.json: classes: "),
    ],
)
def test_load_detector_names_a_description_it_cannot_read(bundle, changes, message):
    path = bundle / "artifacts" / "detector.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(UserError, match=message) as error:
        load_detector(str(bundle))
    assert str(bundle) in str(error.value)


def test_load_detector_rejects_a_model_that_is_not_a_detector(bundle):
    (bundle / "artifacts" / "detector.json").unlink()
    with pytest.raises(UserError, match="is not a detector of this project"):
        load_detector(str(bundle))
