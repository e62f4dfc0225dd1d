"""Train and val out of one set: stable, of the right size, without look-alikes across."""

import pytest

from pipeline.data.conversion.convert import near_duplicates
from pipeline.data.conversion.image_bytes import read_image, stored_image
from pipeline.data.conversion.near_duplicates import Looks
from pipeline.data.conversion.train_val_split import divide
from pipeline.data.sources.record import Ready, Record
from pipeline.data.sources.synthetic import shapes_source
from pipeline.data.sources.voc import voc_source
from pipeline.errors import UserError


def ids(items):
    return [item.image_id for item in items]


def test_each_image_is_on_one_side_in_the_order_of_the_source():
    items = list(shapes_source(40, "all", 64).records)
    train, val = divide(items, 0.75, 0)
    assert len(train) == 30 and sorted(ids(train) + ids(val)) == ids(items)
    assert ids(train) == sorted(ids(train)) and ids(val) == sorted(ids(val))


def test_the_seed_decides_and_few_move_when_images_come():
    items = list(shapes_source(40, "all", 64).records)
    val = set(ids(divide(items, 0.75, 0)[1]))
    assert val == set(ids(divide(list(reversed(items)), 0.75, 0)[1]))
    assert val != set(ids(divide(items, 0.75, 1)[1]))
    fewer = set(ids(divide(items[:36], 0.75, 0)[1]))
    assert len(fewer ^ val) <= 4 + 2


def test_near_duplicates_stay_together(shared):
    source = voc_source(shared / "data/cards", "test")
    items = [item for item in source.records if item.image_id.startswith(("IMG", "cam"))]
    copies = [Ready(Record(f"copy-{i}", *_rest(item))) for i, item in enumerate(items[:20])]
    for seed in range(3):
        train, val = divide([*items, *copies], 0.5, seed)
        assert abs(len(train) - len(val)) <= 4
        assert near_duplicates(_looks(train), [_looks(val)]) == _looks_alike_within(train)


def _rest(item):
    record = item.record()
    return record.file_name, record.image, record.annotation


def _looks(items):
    looks = Looks("x", ids(items))
    for item in items:
        record = item.record()
        looks.hashes.append(stored_image(read_image(record.image), "x.jpg", record.size).look)
    return looks


def _looks_alike_within(items):
    return near_duplicates(_looks(items), [])


def test_images_that_cannot_be_read_are_divided_too(voc):
    for number in range(6):
        voc.add(f"{number}", [("cat", 1, 1, 9, 9)], image=b"no image")
    voc.list("gone")
    train, val = divide(voc_source(voc.root, "train").records, 0.5, 0)
    assert {len(train), len(val)} == {3, 4}


def test_a_side_without_images_is_refused(voc):
    for number in range(6):
        voc.add(f"{number}", [("cat", 1, 1, 9, 9)])  # one and the same picture
    with pytest.raises(UserError, match=r"--split-by 0.5: leaves train or val of 6 images without"):
        divide(voc_source(voc.root, "train").records, 0.5, 0)


def test_an_image_listed_twice_is_not_on_both_sides():
    items = list(shapes_source(10, "all", 64).records)
    train, val = divide([*items, items[0]], 0.5, 0)
    real = [i for i in [*train, *val] if not (isinstance(i, Ready) and i.ready.image is None)]
    assert sorted(ids(real)) == ids(items)
