import json

import pytest
import torch

from model import build_detector
from pipeline.errors import UserError
from pipeline.registry import fetch, load_detector, register
from pipeline.tracking import connect, create_run


@pytest.fixture(scope="module")
def client(registered):
    return connect(registered.uri)


def again(registered, name, run_id, which=0):
    detector = registered.detectors[which]
    return register(
        registered.uri,
        run_id,
        name,
        weights=detector.state_dict(),
        spec=detector.spec,
        classes=registered.classes[which],
        config=registered.config,
        metrics={},
    )


def test_versions_count_up_and_belong_to_their_runs(registered, client):
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


def test_a_run_is_registered_once_per_name(registered, client):
    assert again(registered, "shapes", registered.run_ids[0]) == registered.versions[0]
    assert len(client.search_model_versions("name='shapes'")) == 2
    assert again(registered, "other", registered.run_ids[0]).version == 1


def test_a_failed_upload_leaves_no_version(registered, client, monkeypatch):
    run_id = create_run(registered.uri, registered.config, "fails")
    with monkeypatch.context() as patch:
        patch.setattr(
            "mlflow.MlflowClient.log_model_artifacts",
            lambda *_: (_ for _ in ()).throw(OSError("disk full")),
        )
        with pytest.raises(OSError, match="disk full"):
            again(registered, "unlucky", run_id)
    assert client.search_model_versions("name='unlucky'") == []
    assert again(registered, "unlucky", run_id).version == 1


def test_a_version_claims_no_revision_that_its_run_does_not(registered, client):
    known = dict.fromkeys(("mlflow.source.git.commit", "git.dirty"), "x")
    experiment = client.get_run(registered.run_ids[0]).info.experiment_id
    for name, tags in (("known", known), ("unknown", {})):
        run_id = client.create_run(experiment, tags=tags).info.run_id
        version = client.get_model_version(name, again(registered, name, run_id).version)
        claimed = {"git.revision", "git.dirty"} & version.tags.keys()
        assert claimed == ({"git.revision", "git.dirty"} if tags else set())


@pytest.mark.parametrize("name", ["", " ", "a/b", "a:b", "a@b", "it's"])
def test_names_that_break_uris_are_refused(registered, name):
    with pytest.raises(UserError, match=r"registry\.name"):
        again(registered, name, registered.run_ids[0])


def test_spec_classes_and_weights_come_back(registered):
    loaded = load_detector("models:/shapes/2", registered.uri)
    assert loaded.classes == ["cat", "dog", "bird"]
    detector = build_detector(**loaded.spec)
    detector.load_state_dict(loaded.state)
    for name, tensor in registered.detectors[1].state_dict().items():
        assert torch.equal(detector.state_dict()[name], tensor), name


def test_a_folder_is_a_model_too(registered, tmp_path):
    folder = fetch("models:/shapes/1", tmp_path, registered.uri)
    assert load_detector(str(folder)).classes == ["circle", "square"]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/nobody/1", "'nobody' does not exist .*registered: .*shapes"),
        ("models:/shapes/9", "no version 9; versions: 1, 2"),
        ("models:/shapes@winner", "no alias 'winner'; aliases:"),
        ("models:/shapes", "write models:/NAME@ALIAS"),
        ("/no/such/folder", "no model there"),
    ],
)
def test_what_does_not_exist_is_answered_by_what_does(registered, uri, message):
    with pytest.raises(UserError, match=message) as error:
        load_detector(uri, registered.uri)
    assert "\n" not in str(error.value)
