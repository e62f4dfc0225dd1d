"""Test tiles of large pictures: coverage, the rule for cut objects, keys, splits, resumes."""

import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jobs import prepare
from pipeline.data.conversion import tiles
from pipeline.data.conversion.image_bytes import prepare_image
from pipeline.data.conversion.tiles import cut_tiles, tile_starts
from pipeline.data.shards.manifest import Tiling, load_manifest, read_problems
from pipeline.data.shards.reader import ShardSet
from pipeline.data.shards.sample import Sample, Tile
from pipeline.data.shards.verify import verify
from pipeline.data.transforms.decode import decode_image
from pipeline.errors import UserError


def noise(width: int, height: int, seed: int = 0) -> bytes:
    """Return a PNG of random colours."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def sample_of(width, height, boxes, **other):
    values = {
        "image_id": "p",
        "file_name": "d/p.png",
        "width": width,
        "height": height,
        "boxes": boxes,
        "labels": list(range(len(boxes))),
        "difficult": [False] * len(boxes),
        "crowd": [False] * len(boxes),
        "area": [(b[2] - b[0]) * (b[3] - b[1]) for b in boxes],
        **other,
    }
    return Sample.make(**values)


def cut(width, height, boxes, size=64, overlap=0.25, empty="all", **other):
    problems = []
    image = prepare_image(noise(width, height), "p.png")
    tiling = Tiling(size=size, overlap=overlap, empty=empty)
    found = list(cut_tiles(image, sample_of(width, height, boxes, **other), tiling, problems))
    return found, problems


@given(st.integers(1, 500), st.integers(32, 200), st.floats(0, 0.9))
def test_tiles_cover_a_side_and_stay_inside(length, size, overlap):
    starts = tile_starts(length, size, overlap)
    covered = np.zeros(length, bool)
    for start in starts:
        assert start >= 0 and (start + size <= length or len(starts) == 1)
        covered[start : start + size] = True
    assert covered.all() and starts == sorted(set(starts))
    least = round(size * (1 - overlap))
    assert all(b - a <= max(1, least) for a, b in itertools.pairwise(starts))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_small_objects_are_whole_in_some_tile(data):
    width, height = data.draw(st.integers(40, 150)), data.draw(st.integers(40, 150))
    x, y = data.draw(st.integers(0, width - 13)), data.draw(st.integers(0, height - 13))
    box = (x, y, x + data.draw(st.integers(1, 13)), y + data.draw(st.integers(1, 13)))
    found, problems = cut(width, height, [box], size=64, overlap=0.25)
    back = [
        tuple(np.add(b, [p.sample.tile.x, p.sample.tile.y] * 2))
        for p in found
        for b, crowd in zip(p.sample.boxes, p.sample.crowd, strict=True)
        if not crowd
    ]
    assert box in back and not problems


def test_pixels_and_origin_of_tiles():
    found, _ = cut(100, 70, [(50, 10, 70, 30)])
    whole = decode_image(noise(100, 70), upright=False)
    assert [(p.sample.tile.x, p.sample.tile.y) for p in found] == [(0, 0), (36, 0), (0, 6), (36, 6)]
    for extension, data, sample in found:
        x, y = sample.tile.x, sample.tile.y
        assert (decode_image(data) == whole[y : y + 64, x : x + 64]).all() and extension == "png"
        assert sample.tile == Tile("p", x, y, 100, 70)
        assert sample.image_id == (f"p@{x},{y}") and sample.file_name == f"d/p@{x},{y}.png"
        assert Sample.from_json(sample.to_json()) == sample
    assert found[1].sample.boxes == [(14, 10, 34, 30)]


def test_less_than_half_of_an_object_is_a_crowd_region():
    found, problems = cut(128, 64, [(50, 0, 70, 10), (55, 20, 75, 30)], overlap=0)
    left, right = (piece.sample for piece in found)
    assert left.boxes == [(50, 0, 64, 10), (55, 20, 64, 30)]
    assert left.crowd == [False, True] and left.area == pytest.approx([140, 90])
    assert right.boxes == [(0, 0, 6, 10), (0, 20, 11, 30)] and right.crowd == [True, False]
    assert not problems


def test_object_that_no_tile_shows_half_is_reported():
    found, [problem] = cut(128, 128, [(0, 0, 128, 128), (5, 5, 9, 9)], overlap=0)
    assert all(piece.sample.crowd[0] for piece in found)
    assert (problem.kind, problem.objects) == ("box dropped", 1)
    assert "object 1: [0.0, 0.0, 128.0, 128.0]: less than half" in problem.reason


def test_crowd_and_difficult_objects_stay_so():
    found, problems = cut(
        128, 64, [(0, 0, 120, 60), (1, 1, 9, 9)], crowd=[True, False], difficult=[False, True]
    )
    assert found[0].sample.crowd == [True, False] and found[0].sample.difficult == [False, True]
    assert all(piece.sample.crowd[0] for piece in found) and not problems


def test_picture_that_is_not_larger_is_one_tile():
    [piece], _ = cut(64, 40, [(1, 2, 3, 4)])
    assert piece.image == noise(64, 40)
    assert piece.sample == sample_of(64, 40, [(1, 2, 3, 4)], tile=Tile("p", 0, 0, 64, 40))


def test_tiles_without_objects_are_kept_or_not():
    assert len(cut(300, 64, [(1, 1, 9, 9)], overlap=0)[0]) == 5
    found, _ = cut(300, 64, [(1, 1, 9, 9)], overlap=0, empty="none")
    assert [piece.sample.tile.x for piece in found] == [0]
    assert cut(300, 64, [], empty="none")[0] == []


def test_too_many_tiles_skip_the_picture(monkeypatch):
    monkeypatch.setattr(tiles, "MAX_TILES", 4)
    found, [problem] = cut(300, 64, [(1, 1, 9, 9)])
    assert not found and (problem.kind, problem.objects) == ("image skipped", 1)


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    """Return the options of a COCO source of five pictures of 100x70, with two small objects."""
    (tmp_path / "in").mkdir()
    rows = []
    for number in range(5):
        (tmp_path / "in" / f"{number}.png").write_bytes(noise(100, 70, number))
        box = {"image_id": number, "category_id": 1}
        rows += [{**box, "bbox": [5, 5, 10, 10]}, {**box, "bbox": [80, 50, 12, 12]}]
    tree = {
        "images": [
            {"id": n, "file_name": f"{n}.png", "width": 100, "height": 70} for n in range(5)
        ],
        "annotations": [{"id": n, **row} for n, row in enumerate(rows)],
        "categories": [{"id": 1, "name": "a"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(tree))
    files = ["--images", str(tmp_path / "in"), "--annotations", str(tmp_path / "a.json")]
    return ["--source", "coco", *files]


def test_job_writes_a_valid_set_of_tiles(pictures, tmp_path):
    out = str(tmp_path / "out")
    options = [*pictures, "--tile", "64", "--overlap", "0.25", "--shard-samples", "2"]
    result = prepare.main([*options, "--out", out])
    assert (result["samples"], result["shards"], result["problems"]) == (20, 3, {})
    assert verify(out).faults == []
    manifest = load_manifest(out)
    assert manifest.tiling == Tiling(size=64, overlap=0.25)
    shards = ShardSet(out)
    samples = [Sample.from_json(shards.read(index).json) for index in range(20)]
    assert len({sample.image_id for sample in samples}) == 20
    assert manifest.crowd_boxes == sum(sum(sample.crowd) for sample in samples)
    with pytest.raises(UserError, match="its samples are tiles"):
        prepare.main([*pictures, "--compare-with", out, "--out", str(tmp_path / "other")])


def test_objects_that_no_tile_shows_are_lost(pictures, tmp_path, capsys):
    file = Path(pictures[-1])
    tree = json.loads(file.read_text())
    tree["annotations"][0]["bbox"] = [0, 0, 100, 70]
    tree["annotations"] = tree["annotations"][:5]
    file.write_text(json.dumps(tree))
    options = [*pictures, "--tile", "48", "--out", str(tmp_path / "out")]
    assert prepare.main(options)["lost_objects"] == 1
    crowds = load_manifest(tmp_path / "out").crowd_boxes
    printed = capsys.readouterr().out
    assert "warning: lost 1 of 5 objects (20 %); the commonest reason, 1 x: object 1" in printed
    assert f"; crowd regions among them: {crowds}\n" in printed and crowds >= 4
    tree["annotations"] = tree["annotations"][:1]
    file.write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"only object is unusable; .* use a larger --tile"):
        prepare.main([*options, "--overwrite"])
    tree["annotations"][0]["iscrowd"] = 1
    file.write_text(json.dumps(tree))
    prepare.main([*options, "--overwrite"])
    assert "all 1 kept boxes are crowd regions" in capsys.readouterr().out


def test_sides_of_a_split_share_no_picture(pictures, tmp_path):
    out = tmp_path / "split"
    prepare.main([*pictures, "--tile", "64", "--split-by", "0.6", "--out", str(out)])
    ids = []
    for side in ("train", "val"):
        shards = ShardSet(out / side)
        samples = [Sample.from_json(shards.read(n).json) for n in range(len(shards))]
        ids.append({sample.tile.image_id for sample in samples if sample.tile})
        assert not list(read_problems(out / side)) and len(samples) == 4 * len(ids[-1])
    assert len(ids[0]) == 3 and len(ids[1]) == 2 and not ids[0] & ids[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--overlap", "0.5"], "--overlap has no effect without --tile"),
        (["--empty-tiles", "none"], "--empty-tiles has no effect without --tile"),
        (["--tile", "31"], "'31' is not a whole number from 32"),
        (["--tile", "64", "--overlap", "0.95"], "'0.95' is not a number from 0 to 0.9"),
    ],
)
def test_wrong_options_are_one_line(pictures, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        prepare.main([*pictures, *options, "--out", str(tmp_path / "out")])
