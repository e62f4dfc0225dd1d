"""The driver of a conversion holds a few bytes per image, and no process holds the problems."""

import json
import random
import tracemalloc

import pytest

from pipeline.data.conversion import image_ids
from pipeline.data.conversion.checks.counts import ObjectCounts
from pipeline.data.conversion.convert import stage_shard_set
from pipeline.data.conversion.image_ids import ImageIds
from pipeline.data.conversion.shard_task import RESULT_FILE, ShardResult, ShardTask, plan_shards
from pipeline.data.shards.image_classes import encode_image
from pipeline.data.shards.manifest import load_manifest, read_problems
from pipeline.data.shards.problems import Problem, ProblemWriter
from pipeline.data.sources.files import open_files
from pipeline.data.sources.synthetic import shapes_source

BYTES_PER_IMAGE = 20  # 2 GB for a hundred million images


@pytest.fixture
def few_recent_ids(monkeypatch):
    """Let the constant part of the ids' memory be small against the part that grows."""
    monkeypatch.setattr(image_ids, "MAX_RECENT_IDS", 16)


def test_ids_that_occurred_before_are_found(few_recent_ids):
    draw = random.Random(0)
    ids, seen = ImageIds(), set()
    for _ in range(30_000):
        image_id = f"image {draw.randrange(20_000)}"
        assert ids.add(image_id) == (image_id not in seen)
        seen.add(image_id)


def test_planning_keeps_few_bytes_per_image(few_recent_ids):
    count = 60_000
    tasks = plan_shards(shapes_source(count, "train").images, ["a"], str, 500, 2**40)
    next(tasks)
    tracemalloc.start()
    try:
        planned = sum(len(task.images) for task in tasks)
        held = tracemalloc.get_traced_memory()[0]  # by the generator, which is not deleted yet
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert planned == count - 500
    # One task of 500 images, and the ids.
    assert held < peak < BYTES_PER_IMAGE * count + 500_000


def test_results_keep_few_bytes_per_image(tmp_path, few_recent_ids):
    """Resume a conversion whose shards are finished, so that the driver has only their results."""
    count, per_shard = 16_000, 500
    source = shapes_source(count, "train", 1)
    draw = random.Random(0)
    for number, task in enumerate(
        plan_shards(source.images, source.classes, str, per_shard, 2**40)
    ):
        folder = tmp_path / "out/.partial" / f"{number:06d}"
        folder.mkdir(parents=True)
        names = [image.file_name for image in task.images]
        result = ShardResult(
            input_hash=ShardTask("", task.first_key, task.classes, task.images).input_hash(),
            shard=None,  # so that no tar is needed
            boxes_per_label={0: 1},
            samples_without_objects=0,
            counts=ObjectCounts(),
            problems=[Problem(file=name, kind="repaired", reason="tilted") for name in names],
            file_names=names,
            image_hashes=[draw.randbytes(16).hex() for _ in names],
            content_hashes=[draw.randbytes(64).hex() for _ in names],
            image_classes=b"".join(encode_image([0, 3], 5) for _ in names).hex(),
        )
        (folder / RESULT_FILE).write_bytes(result.encode(indent=None))
    held = []

    def images():
        for index, image in enumerate(shapes_source(count, "train", 1).images):
            if index == 2 * per_shard:
                tracemalloc.start()
            elif index == count - 1:
                held.append(tracemalloc.get_traced_memory()[0])
                tracemalloc.stop()
            yield image

    with pytest.raises(ValueError, match="samples is not the sum"):  # as there are no shards
        stage_shard_set(
            images(),
            [],
            tmp_path / "out",
            "x",
            "train",
            source.classes,
            source="shapes",
            shard_samples=per_shard,
            shard_bytes=2**40,
        )
    assert 0 < held[0] < BYTES_PER_IMAGE * count + 300 * per_shard  # and the images of a task


def test_listing_a_folder_keeps_little_more_than_the_names(tmp_path):
    count = 2000
    for number in range(count):
        (tmp_path / f"{number:012d}.jpg").touch()
    open_files(tmp_path, "--root")
    tracemalloc.start()
    try:
        files = open_files(tmp_path, "--root")
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(list(files)) == count and held < 200 * count


@pytest.mark.parametrize("version", [2, 3])
def test_opening_a_set_does_not_hold_its_problems(tmp_path, convert_source, version):
    out, count = tmp_path / "out", 20_000
    convert_source(shapes_source(2, "train", 64), out)
    problems = [Problem(file=f"{i}.xml", kind="box dropped", reason="empty") for i in range(count)]
    tree = json.loads((out / "manifest.json").read_text())
    if version == 2:
        del tree["problem_counts"]
        tree |= {
            "format_version": 2,
            "problems": [problem.model_dump(exclude_defaults=True) for problem in problems],
        }
    else:
        tree["problem_counts"] = {"box dropped": count}
        writer = ProblemWriter(out / "problems.jsonl")
        writer.add(problems)
        writer.close()
    (out / "manifest.json").write_text(json.dumps(tree))
    assert list(read_problems(out)) == problems
    del problems, tree
    load_manifest(out)
    tracemalloc.start()
    try:
        manifest = load_manifest(out)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert manifest.problem_counts == {"box dropped": count}
    assert held < 100_000
    # An older manifest is read as text first.
    text = (out / "manifest.json").stat().st_size
    assert peak < 100_000 + 4 * text
