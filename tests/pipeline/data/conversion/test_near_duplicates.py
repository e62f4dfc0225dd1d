"""Near duplicates are found after common changes; different images are not grouped."""

import cv2
import numpy as np
import pytest
import simplejpeg

from pipeline.data.conversion import image_hashes, near_duplicates
from pipeline.data.conversion.image_hashes import ImageHashes
from pipeline.data.conversion.near_duplicates import (
    find_near_duplicates,
    group_near_duplicates,
    image_hash,
)
from pipeline.data.sources.synthetic import draw_scene
from pipeline.data.transforms.decode import decode_image

CHANGES = {
    "recompressed": lambda p: simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(p, quality=60)),
    "halved": lambda p: cv2.resize(p, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "doubled": lambda p: cv2.resize(p, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR),
    "brighter": lambda p: (p * 0.8 + 30).astype(np.uint8),
    "grey": lambda p: cv2.cvtColor(cv2.cvtColor(p, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB),
}


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(0, "looks", i, 128)[0] for i in range(40)]


def test_different_images_are_not_grouped(scenes):
    assert group_near_duplicates([image_hash(scene) for scene in scenes]) == []


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found(scenes, change):
    copies = [image_hash(CHANGES[change](scene)) for scene in scenes]
    hashes = [*map(image_hash, scenes), *copies]
    assert group_near_duplicates(hashes) == [[i, i + 40] for i in range(40)]


def test_uniform_images_match_only_if_equal():
    white = np.full((60, 80, 3), 250, np.uint8)
    dot = white.copy()
    dot[30, 30] = 0
    hashes = [image_hash(white), image_hash(dot), image_hash(white.copy())]
    assert group_near_duplicates(hashes) == [[0, 2]]


def test_groups_follow_chains_and_agree_with_all_pairs():
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (300, 16), np.uint8)
    flips = (rng.random((900, 128)) < 0.03).astype(np.uint8)
    copies = base[rng.integers(0, 300, 900)] ^ np.packbits(flips, axis=1)
    table = np.concatenate([base, copies])
    bits = np.unpackbits(table, axis=1).astype(np.int32)
    distance = bits @ (1 - bits).T + (1 - bits) @ bits.T
    label = np.arange(len(table))
    for _ in range(50):  # spread the smallest index to all near hashes
        label = np.where(distance <= 7, label[None], len(table)).min(1)
    expected = [np.flatnonzero(label == first).tolist() for first in np.unique(label)]
    found = group_near_duplicates([row.tobytes() for row in table])
    assert found == [g for g in expected if len(g) > 1]


def test_leaks_name_the_other_split():
    own, train = ImageHashes("x val"), ImageHashes("x train")
    own.extend(["a", "b"], [bytes(16), b"\xff" * 16])
    train.extend(["c", "d"], [b"\x0f" * 16, b"\xff" * 15 + b"\xfe"])
    found = find_near_duplicates(own, [train])
    assert [str(problem) for problem in found] == ["b: leak: looks like d of x train"]


def test_hashes_read_in_pieces_give_the_same_groups(monkeypatch):
    rng = np.random.default_rng(1)
    table = rng.integers(0, 256, (3000, 16), np.uint8)
    table[rng.integers(0, 3000, 400)] = table[rng.integers(0, 3000, 400)]  # equal hashes
    flips = (rng.random((400, 128)) < 0.02).astype(np.uint8)
    table[rng.integers(0, 3000, 400)] ^= np.packbits(flips, axis=1)
    hashes = [row.tobytes() for row in table]
    expected = group_near_duplicates(hashes)
    assert len(expected) > 300
    stored = ImageHashes("x")
    for start in range(0, 3000, 700):
        chosen = slice(start, start + 700)
        stored.extend([f"{i}é.jpg" for i in range(3000)][chosen], hashes[chosen])
    monkeypatch.setattr(near_duplicates, "MAX_ROWS", 64)
    monkeypatch.setattr(image_hashes, "BLOCK_ROWS", 1000)
    groups = {}
    for problem in find_near_duplicates(stored, []):
        groups.setdefault(problem.reason.split()[-1], []).append(problem.file)
    names = [[f"{i}é.jpg" for i in group] for group in expected]
    assert [[first, *others] for first, others in groups.items()] == names


def test_no_hashes_or_one_give_no_groups():
    assert group_near_duplicates([]) == [] and group_near_duplicates([bytes(16)]) == []


def test_real_photographs_group_as_seen_by_eye(shared):
    paths = sorted((shared / "data/cards/JPEGImages").glob("*.jpg"))
    hashes = [image_hash(decode_image(path.read_bytes())) for path in paths]
    found = [[paths[i].stem for i in group] for group in group_near_duplicates(hashes)]
    assert found == [
        *([f"IMG_{i}", f"IMG_{i + 1}"] for i in (2464, 2466, 2468, 2471, 2473)),
        ["cam_image1", "cam_image54"],
    ]
