"""Look-alikes are found whatever was done to them, and different pictures are left alone."""

import cv2
import numpy as np
import pytest
import simplejpeg

from pipeline.data.conversion.convert import near_duplicates
from pipeline.data.conversion.near_duplicates import Looks, alike, look
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


def test_different_pictures_are_different(scenes):
    assert alike([look(scene) for scene in scenes]) == []


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found(scenes, change):
    copies = [look(CHANGES[change](scene)) for scene in scenes]
    assert alike([*map(look, scenes), *copies]) == [[i, i + 40] for i in range(40)]


def test_plain_pictures_are_alike_only_if_equal():
    white = np.full((60, 80, 3), 250, np.uint8)
    dot = white.copy()
    dot[30, 30] = 0
    assert alike([look(white), look(dot), look(white.copy())]) == [[0, 2]]


def test_groups_reach_over_chains_and_agree_with_all_pairs():
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (300, 16), np.uint8)
    flips = (rng.random((900, 128)) < 0.03).astype(np.uint8)
    copies = base[rng.integers(0, 300, 900)] ^ np.packbits(flips, axis=1)
    table = np.concatenate([base, copies])
    bits = np.unpackbits(table, axis=1).astype(np.int32)
    distance = bits @ (1 - bits).T + (1 - bits) @ bits.T
    label = np.arange(len(table))
    for _ in range(50):  # spread the smallest index over all that are near
        label = np.where(distance <= 7, label[None], len(table)).min(1)
    expected = [np.flatnonzero(label == first).tolist() for first in np.unique(label)]
    assert alike([row.tobytes() for row in table]) == [g for g in expected if len(g) > 1]


def test_leaks_are_told_with_the_other_split():
    own = Looks("x val", ["a", "b"], [bytes(16), b"\xff" * 16])
    train = Looks("x train", ["c", "d"], [b"\x0f" * 16, b"\xff" * 15 + b"\xfe"])
    found = near_duplicates(own, [train])
    assert [str(problem) for problem in found] == ["b: leak: looks like d of x train"]


def test_nothing_to_compare():
    assert alike([]) == [] and alike([bytes(16)]) == []


def test_the_real_sets_have_the_look_alikes_that_the_eye_sees(shared):
    pictures = sorted((shared / "data/cards/JPEGImages").glob("*.jpg"))
    looks = [look(decode_image(path.read_bytes())) for path in pictures]
    found = [[pictures[i].stem for i in group] for group in alike(looks)]
    assert found == [
        *([f"IMG_{i}", f"IMG_{i + 1}"] for i in (2464, 2466, 2468, 2471, 2473)),
        ["cam_image1", "cam_image54"],
    ]
