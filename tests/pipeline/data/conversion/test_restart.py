"""Interrupted and parallel conversions give the same bytes as one uninterrupted process."""

import json
from pathlib import Path

import pytest

from pipeline.data.conversion.convert import stage_shard_set
from pipeline.data.conversion.shard_task import ShardTask
from pipeline.data.shards.manifest import load_manifest
from pipeline.data.shards.verify import verify
from pipeline.data.sources.record import Source
from pipeline.data.sources.synthetic import shapes_source
from pipeline.data.sources.voc import voc_source
from pipeline.errors import UserError

FORMAT_1 = Path(__file__).parents[3] / "artifacts/conversion_result_format_1/done.json"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def written_shards(monkeypatch):
    """Return the list of the numbers of the shards that are written."""
    numbers: list[str] = []
    run = ShardTask.run

    def spy(self, tick):
        numbers.append(self.folder[-6:])
        return run(self, tick)

    monkeypatch.setattr(ShardTask, "run", spy)
    return numbers


def interrupting(source: Source, after: int) -> Source:
    def images():
        for number, item in enumerate(source.images):
            if number == after:
                raise KeyboardInterrupt
            yield item

    options = {"total": source.total, "boxes_are": "stored"}  # iterated once, when written
    return Source(source.kind, source.name, source.classes, images(), **options)


@pytest.fixture
def interrupted(tmp_path, convert_source, written_shards):
    """Return the folder of a conversion of 7 scenes, interrupted after two shards of 2."""
    with pytest.raises(KeyboardInterrupt):
        convert_source(
            interrupting(shapes_source(7, "train", 64), 5), tmp_path / "out", shard_samples=2
        )
    assert written_shards == ["000000", "000001"] and not (tmp_path / "out/manifest.json").exists()
    written_shards.clear()
    return tmp_path / "out"


def test_finished_shards_are_reused(interrupted, tmp_path, convert_source, written_shards, capsys):
    convert_source(shapes_source(7, "train", 64), interrupted, shard_samples=2)
    assert written_shards == ["000002", "000003"]
    assert "4 images were done before" in capsys.readouterr().err
    convert_source(shapes_source(7, "train", 64), tmp_path / "whole", shard_samples=2)
    assert contents(interrupted) == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    "change", [{"shard_samples": 3}, {"seed": 1}, {"classes": ["star", "circle", "cross"]}]
)
def test_shards_of_other_options_are_rewritten(
    interrupted, tmp_path, convert_source, written_shards, change
):
    options = {"shard_samples": 2, **change}
    source = shapes_source(7, "train", 64, seed=options.pop("seed", 0))
    convert_source(source, interrupted, **options)
    assert written_shards[0] == "000000"
    again = shapes_source(7, "train", 64, seed=change.get("seed", 0))
    convert_source(again, tmp_path / "whole", **options)
    assert contents(interrupted) == contents(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["truncated", "changed", "result", "index", "no index"])
def test_damaged_shard_is_rewritten(interrupted, convert_source, written_shards, damage):
    shard = interrupted / ".partial/000001/shard-000000.tar"
    data = shard.read_bytes()
    if damage == "truncated":
        shard.write_bytes(data[:-600])
    elif damage == "changed":
        shard.write_bytes(data[:700] + b"x" + data[701:])
    elif damage == "index":
        shard.with_suffix(".index").write_bytes(bytes(64))
    elif damage == "no index":
        shard.with_suffix(".index").unlink()
    else:
        (shard.parent / "done.json").write_text("{")
    convert_source(shapes_source(7, "train", 64), interrupted, shard_samples=2)
    assert written_shards == ["000001", "000002", "000003"]
    assert not verify(str(interrupted)).faults


def test_shards_of_another_version_are_rewritten(
    interrupted, tmp_path, convert_source, written_shards
):
    former = FORMAT_1.read_text()
    assert "format_version" not in former
    (interrupted / ".partial/000001/done.json").write_text(former)
    path = interrupted / ".partial/000000/done.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))
    convert_source(shapes_source(7, "train", 64), interrupted, shard_samples=2)
    assert written_shards == ["000000", "000001", "000002", "000003"]
    # The former result is of these very images: the bytes of shards have not changed.
    shards = load_manifest(interrupted).shards
    assert shards[1].sha256 == json.loads(former)["shard"]["sha256"]


def test_changed_annotation_rewrites_its_shard(voc, tmp_path, convert_source, written_shards):
    for number in range(4):
        voc.add(f"{number}", [("cat", 1, 1, 9, 9)])
    with pytest.raises(KeyboardInterrupt):
        convert_source(
            interrupting(voc_source(voc.root, "train"), 3), tmp_path / "out", shard_samples=1
        )
    assert written_shards == ["000000", "000001"]
    written_shards.clear()
    xml = voc.root / "Annotations/1.xml"
    xml.write_text(xml.read_text().replace("<xmax>9", "<xmax>19"))
    convert_source(voc_source(voc.root, "train"), tmp_path / "out", shard_samples=1)
    assert written_shards == ["000001", "000002", "000003"]


def test_problems_of_reused_shards_are_reported(voc, tmp_path, convert_source):
    for number in range(3):
        voc.add(f"{number}", [("", 9, 9, 19, 12), ("cat", 1, 1, 9, 9)])
    with pytest.raises(KeyboardInterrupt):
        convert_source(
            interrupting(voc_source(voc.root, "train"), 2), tmp_path / "out", shard_samples=1
        )
    manifest = convert_source(voc_source(voc.root, "train"), tmp_path / "out", shard_samples=1)
    assert manifest.problem_counts == {"box dropped": 3, "near duplicate": 2}
    assert manifest.boxes == 3


def test_skipped_images_leave_no_gap_in_shard_numbers(voc, tmp_path, convert_source):
    for number in range(4):
        bad = {"image": b"no image"} if number in (0, 1) else {}
        voc.add(f"{number}", [("cat", 1, 1, 9, 9)], **bad)
    manifest = convert_source(voc_source(voc.root, "train"), tmp_path / "out", shard_samples=1)
    assert [shard.name for shard in manifest.shards] == ["shard-000000.tar", "shard-000001.tar"]
    assert manifest.samples == 2 and manifest.problem_counts["image skipped"] == 2


def test_second_conversion_into_one_folder_raises(tmp_path, convert_source, monkeypatch):
    run = ShardTask.run

    def run_with_another(self, tick):
        def another():
            tick()  # a shard is half-written now
            with pytest.raises(UserError, match="another conversion is writing there"):
                convert_source(shapes_source(1, "train", 64), tmp_path / "out")

        return run(self, another)

    monkeypatch.setattr(ShardTask, "run", run_with_another)
    assert (
        convert_source(shapes_source(3, "train", 64), tmp_path / "out", shard_samples=2).samples
        == 3
    )
    assert not verify(str(tmp_path / "out")).faults


def test_staged_set_is_not_visible_until_published(tmp_path):
    source = shapes_source(2, "train", 64)
    out = tmp_path / "out"
    staged = stage_shard_set(source.images, [], out, "x", "train", source.classes, source="shapes")
    assert [path.name for path in out.iterdir()] == [".partial"]
    staged.discard()
    assert not out.exists()


def test_progress_reports_rate_and_time_left(tmp_path, convert_source, monkeypatch, capsys):
    monkeypatch.setattr("pipeline.progress.REPORT_SECONDS", 0.0)
    convert_source(shapes_source(3, "train", 64), tmp_path / "out", total=3)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("  converting train: 1/3 images, ") and "/s, " in lines[0]
    assert lines[2].endswith(" 0 s left") and lines[3].startswith("  converting train: 3 images")


@pytest.mark.integration
def test_ray_gives_the_same_bytes_and_errors(tmp_path, convert_source, voc, written_shards):
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False)
    try:
        for workers in (1, 2, 3):
            out = tmp_path / f"{workers}"
            convert_source(shapes_source(23, "train", 64), out, shard_samples=4, workers=workers)
            assert contents(out) == contents(tmp_path / "1")
        stopped = interrupting(shapes_source(23, "train", 64), 13)
        with pytest.raises(KeyboardInterrupt):
            convert_source(stopped, tmp_path / "out", shard_samples=4, workers=2)
        finished = {
            result.parent.name for result in (tmp_path / "out").glob(".partial/*/done.json")
        }
        assert finished
        written_shards.clear()
        convert_source(shapes_source(23, "train", 64), tmp_path / "out", shard_samples=4)
        assert sorted([*written_shards, *finished]) == [f"{i:06d}" for i in range(6)]
        assert contents(tmp_path / "out") == contents(tmp_path / "1")

        voc.add("a", [("cat", 1, 1, 9, 9)])
        source = voc_source(voc.root, "train")
        source.images = list(source.images)
        (voc.root / "JPEGImages/a.jpg").unlink()
        with pytest.raises(
            UserError, match=r"a\.jpg: deleted during the conversion, or not visible to all nodes"
        ):
            convert_source(source, tmp_path / "gone", workers=2)
    finally:
        ray.shutdown()
