"""A conversion to an S3 server gives the files of one to a folder, all at once or not at all."""

import pytest

from jobs.prepare import main
from pipeline.data import load_manifest
from pipeline.data.conversion.convert import stage_shard_set
from pipeline.data.conversion.shard_task import ShardTask
from pipeline.data.shards.manifest import MANIFEST, read_problems
from pipeline.data.shards.shard_table import IMAGE_CLASSES
from pipeline.data.shards.verify import verify
from pipeline.data.sources.synthetic import shapes_source
from pipeline.data.sources.voc import voc_source
from pipeline.errors import UserError
from pipeline.storage import remote
from pipeline.storage.folder import Storage

pytestmark = pytest.mark.integration


@pytest.fixture
def prefix(s3_bucket):
    """Return the URI of an empty prefix, and a function that returns the files below it."""
    client, bucket = s3_bucket

    def files():
        found = client.list_objects_v2(Bucket=bucket, Prefix="set/").get("Contents", [])
        keys = [item["Key"] for item in found if not item["Key"].endswith("/")]
        return {
            key.removeprefix("set/"): client.get_object(Bucket=bucket, Key=key)["Body"].read()
            for key in keys
        }

    return f"s3://{bucket}/set", files


@pytest.fixture
def written_shards(monkeypatch):
    """Return the list of the numbers of the shards that are written."""
    numbers: list[str] = []
    run = ShardTask.run
    monkeypatch.setattr(
        ShardTask, "run", lambda self, tick: numbers.append(self.folder[-6:]) or run(self, tick)
    )
    return numbers


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stage(uri, count=7, **options):
    source = shapes_source(count, "train", 64)
    arguments = {"source": "shapes", "shard_samples": 2, **options}
    return stage_shard_set(source.images, [], uri, "x", "train", source.classes, **arguments)


def test_files_equal_those_of_a_folder(prefix, voc, tmp_path, convert_source):
    uri, files = prefix
    for number in range(5):
        bad = {"image": b"no image"} if number == 1 else {}
        voc.add(f"{number}", [("cat", 1, 1, 9, 9), ("cat", 9, 9, 3, 3)], **bad)
    for out in (tmp_path / "out", uri):
        manifest = convert_source(voc_source(voc.root, "train"), out, shard_samples=1)
        assert manifest.samples == 4
    assert files() == contents(tmp_path / "out") and "problems.jsonl" in files()
    assert list(read_problems(uri)) == list(read_problems(tmp_path / "out"))
    assert not verify(uri).faults


def test_job_writes_and_replaces_sets(prefix, tmp_path, capsys):
    uri, files = prefix
    options = ["--source", "shapes", "--size", "64", "--shard-samples", "4", "--split", "train"]
    result = main([*options, "--count", "9", "--out", f"{uri}/"])
    assert result["manifest"] == f"{uri}/manifest.json" and result["shards"] == 3
    assert f"--data.train {uri}\n" in capsys.readouterr().out
    with pytest.raises(UserError, match="already contains a shard set; .* --overwrite"):
        main([*options, "--count", "3", "--out", uri])
    main([*options, "--count", "3", "--out", uri, "--overwrite"])
    assert set(files()) == {MANIFEST, IMAGE_CLASSES, "shard-000000.tar", "shard-000000.index"}
    assert load_manifest(uri).samples == 3
    with pytest.raises(UserError, match=r"contains other files \(set\)"):
        main([*options, "--count", "3", "--out", uri.removesuffix("/set")])


def test_interrupted_conversion_resumes(prefix, tmp_path, convert_source, written_shards):
    uri, files = prefix
    source = shapes_source(7, "train", 64)
    images = list(source.images)

    def interrupted():
        yield from images[:5]
        raise KeyboardInterrupt

    source.images = interrupted()
    with pytest.raises(KeyboardInterrupt):
        convert_source(source, uri, shard_samples=2)
    assert MANIFEST not in files() and written_shards == ["000000", "000001"]
    # One shard is cut, as no upload leaves it: it is written again.
    Storage(uri).write(".partial/000001/shard-000000.tar", b"cut")
    written_shards.clear()
    for out in (uri, tmp_path / "whole"):
        convert_source(shapes_source(7, "train", 64), out, shard_samples=2)
    assert written_shards[:3] == ["000001", "000002", "000003"]
    assert files() == contents(tmp_path / "whole")


def test_interrupted_publishing_resumes(prefix, written_shards, monkeypatch):
    uri, files = prefix
    upload = Storage.upload

    def denied(self, path, name):
        if name == MANIFEST:
            raise PermissionError("access denied")
        upload(self, path, name)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "upload", denied)
        with pytest.raises(UserError, match=r"set/manifest\.json: access denied"):
            stage(uri).publish()
    assert MANIFEST not in files() and len(written_shards) == 4
    stage(uri).publish()
    assert len(written_shards) == 4 and not verify(uri).faults
    assert not any(name.startswith(".partial") for name in files())


def test_shards_of_another_conversion_are_not_published(prefix):
    uri, files = prefix
    staged = stage(uri)
    stage(uri, 3, shard_samples=1)  # writes to the same names
    with pytest.raises(UserError, match="changed or deleted by another conversion"):
        staged.publish()
    assert MANIFEST not in files()


def test_second_conversion_at_the_same_time_is_refused(prefix):
    uri, files = prefix

    def refused():
        with pytest.raises(UserError, match=r"another conversion is writing there, process \d+ on"):
            stage(uri)
        yield from shapes_source(3, "train", 64).images

    source = shapes_source(3, "train", 64)
    staged = stage_shard_set(refused(), [], uri, "x", "train", source.classes, source="shapes")
    assert not any(name.endswith("lease.json") for name in files())
    staged.publish()
    assert not verify(uri).faults


def test_discarded_set_leaves_no_files(prefix):
    uri, files = prefix
    stage(uri).discard()
    assert files() == {}


def test_missing_bucket_is_reported_before_the_conversion(prefix, written_shards, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_DELAY_SECONDS", 0.01)
    with pytest.raises(UserError, match=r"--out s3://no-such-bucket/x: cannot be written: .*exist"):
        stage("s3://no-such-bucket/x")
    assert written_shards == []


def test_workers_upload_the_same_files(prefix, tmp_path):
    uri, files = prefix
    options = ["--source", "shapes", "--count", "9", "--size", "64", "--shard-samples", "3"]
    main([*options, "--out", uri, "--workers", "2"])
    main([*options, "--out", str(tmp_path / "out")])
    assert files() == contents(tmp_path / "out")
