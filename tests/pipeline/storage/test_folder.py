"""The folder of runs, on disk and in an object store (a local S3 server)."""

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from jobs import checkpoints
from pipeline.checkpoints.store import CheckpointStore
from pipeline.config import Config
from pipeline.errors import OutageError, UserError
from pipeline.pretrained.read import read_weights
from pipeline.storage import folder
from pipeline.storage.folder import Storage, StoreOutage, join, split
from pipeline.training.fit import fit
from pipeline.training.ray_backend.preflight import check_this_node
from pipeline.training.run_record import RunRecord
from tests.pipeline.checkpoints.examples import example_meta
from tests.ports import free_port
from tests.s3_server import s3_server


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Start an S3 server; return the URI of a folder in an empty bucket."""
    with s3_server() as uri:
        yield uri


def test_join_keeps_the_options_of_a_uri_last() -> None:
    assert (
        join("s3://b/runs/?region=x&scheme=http", "one") == "s3://b/runs/one?region=x&scheme=http"
    )
    assert join("/a/what?/", "one") == "/a/what?/one"


@pytest.mark.parametrize("uri", ["relative/folder", "nosuch://a/b", "s3:/bucket"])
def test_relative_path_or_unknown_uri_is_rejected(uri: str) -> None:
    with pytest.raises(UserError, match="is not an absolute path or URI"):
        Storage(uri)


@pytest.mark.parametrize("path", ["/proc/none", "/dev/null/runs", "/sys/kernel"])
def test_unwritable_storage_is_reported_at_once(small: Config, path: str) -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match=f"ray.storage '{path}' cannot be written: .*give a folder"):
        fit(small.replace({"ray.storage": path}), run="one")
    assert time.monotonic() - began < 5


def test_write_replaces_a_file_or_leaves_no_trace(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write("one", b"first")
    (tmp_path / "two.x.part").mkdir()
    storage.write("one", b"second" * 1000)
    assert storage.read("one") == b"second" * 1000
    with pytest.raises(OSError, match="[Ii]s a directory"):
        storage.write("two.x.part", b"")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two.x.part"]


def write_in_two_pieces(storage: Storage, piece: bytes, error: Exception | None = None) -> None:
    with storage.open("one") as stream:
        stream.write(piece)
        if error:
            raise error
        stream.write(piece)


@pytest.mark.parametrize("uri", ["mock:///runs", ""])  # in memory, as an object store; local
def test_file_whose_writing_is_interrupted_is_deleted(tmp_path: Path, uri: str) -> None:
    storage = Storage(uri or str(tmp_path))
    storage.create()
    with pytest.raises(RuntimeError, match="interrupted"):
        write_in_two_pieces(storage, b"half", RuntimeError("interrupted"))
    assert not storage.exists("one")
    write_in_two_pieces(storage, b"half")
    assert storage.read("one") == b"halfhalf"


@pytest.mark.parametrize(
    ("text", "outage"),
    [
        ("AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 7", True),
        ("AWS Error SLOW_DOWN (HTTP status 503) during PutObject operation", True),
        ("AWS Error UNKNOWN (HTTP status 429) during PutObject operation", True),
        ("google::cloud::Status(UNAVAILABLE: Retry policy exhausted)", True),
        ("AWS Error ACCESS_DENIED during HeadBucket operation: No response body", False),
        ("AWS Error UNKNOWN (HTTP status 403) during HeadObject operation", False),
        ("AWS Error NO_SUCH_BUCKET during ListObjectsV2 operation", False),
        ("Bucket 'runs' not found. To create buckets, enable the option", False),
    ],
)
def test_response_of_an_object_store_is_an_outage_or_a_rejection(text: str, outage: bool) -> None:
    assert folder._is_outage(OSError(text), local=False) is outage


@pytest.mark.parametrize(("code", "outage"), [("ESTALE", True), ("EIO", True), ("ENOSPC", False)])
def test_error_of_a_network_file_system_is_an_outage(code: str, outage: bool) -> None:
    error = OSError(getattr(errno, code), os.strerror(getattr(errno, code)))
    assert folder._is_outage(error, local=True) is outage


@pytest.mark.integration
def test_storage_that_does_not_respond_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "user")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "key")
    address = f"scheme=http&endpoint_override=127.0.0.1:{free_port()}&region=us-east-1"
    uri = f"s3://runs/all?{address}"
    record = RunRecord(uri, "one")
    calls = [
        record.check_storage,
        record.read,
        CheckpointStore(record.uri).saved,
        lambda: check_this_node(record.uri, uri, "id"),
        lambda: read_weights(uri),
        lambda: checkpoints.main(["list", uri]),
    ]
    for call in calls:
        with pytest.raises(OutageError, match="Could not connect to server"):
            call()
    with pytest.raises(StoreOutage):  # also an OSError, which callers handle
        Storage(uri).read("x")


@pytest.mark.integration
def test_interrupted_upload_leaves_no_object(s3: str) -> None:
    storage = Storage(join(s3, "interrupted"))
    with pytest.raises(RuntimeError, match="interrupted"):
        write_in_two_pieces(storage, bytes(20_000_000), RuntimeError("interrupted"))
    assert storage.files() == []


@pytest.mark.integration
def test_bucket_stores_checkpoints_like_a_folder(s3: str) -> None:
    storage = Storage(join(s3, "store"))
    storage.create()
    storage.probe()
    assert storage.files() == []
    store = CheckpointStore(storage.uri)
    for step, score in ((1, 0.3), (2, 0.1), (3, 0.2)):
        state = {"model": {"x": torch.full((2_000_000,), float(step))}, "ema": {}}
        store.save(state, example_meta(step, ap=score))
    assert store.load("step-00000002")["model"]["x"][5] == 2.0
    storage.delete("step-00000003/meta.json")
    storage.write("step-00000002/state.pt", storage.read("step-00000002/state.pt")[:-1])
    lines: list[str] = []
    found = store.first_intact(reversed(store.saved()), "cpu", lines.append)
    assert found is not None
    assert found[0].step == 1
    assert "state.pt has" in lines[0]
    store.save({"model": {}, "ema": {}}, example_meta(4, ap=0.0))
    assert store.prune(1) == ["step-00000002", "step-00000003"]
    assert storage.folders() == ["step-00000001", "step-00000004"]


@pytest.mark.integration
def test_run_in_a_bucket_is_listed_verified_and_started_from(
    s3: str, small: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small.replace({"ray.storage": s3, "train.epochs": 1, "data.val": None})
    result = fit(config.replace({"registry.name": "shapes"}), run="one")
    assert result.model_uri == "models:/shapes/1"
    uri = join(s3, "one")
    assert RunRecord(s3, "one").read() is not None
    listed = checkpoints.main(["list", uri])["checkpoints"]
    assert [row["name"] for row in listed] == ["step-00000005"]
    assert listed[0]["weights_sha256"] == result.weights_sha256
    checkpoints.main(["verify", uri])
    assert read_weights(result.checkpoint).backbone is not None
    with pytest.raises(UserError, match="run 'one' is finished"):
        fit(config, run="one")
    capsys.readouterr()


@pytest.mark.integration
def test_missing_bucket_is_reported(s3: str, small: Config) -> None:
    absent = s3.replace("s3://runs/", "s3://absent/")
    with pytest.raises(UserError, match="ray.storage 's3://absent/.*cannot be written"):
        fit(small.replace({"ray.storage": absent}), run="one")


@pytest.mark.parametrize(
    ("parent", "uri"),
    [
        ("/runs", "/runs/a"),
        ("s3://bucket/runs", "s3://bucket/runs/a"),
        ("s3://bucket?region=x&scheme=http", "s3://bucket/a?region=x&scheme=http"),
    ],
)
def test_split_is_the_inverse_of_join(parent: str, uri: str) -> None:
    assert join(parent, "a") == uri and split(uri) == (parent, "a")
    assert split(f"{parent.partition('?')[0]}/a/")[1] == "a"
