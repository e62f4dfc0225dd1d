"""The split into train and val: stable, of the right size, without near duplicates across."""

import pytest

from pipeline.data.conversion.image_bytes import prepare_image, read_image
from pipeline.data.conversion.image_hashes import ImageHashes
from pipeline.data.conversion.near_duplicates import find_near_duplicates
from pipeline.data.conversion.train_val_split import split_train_val
from pipeline.data.sources.record import ParsedImage, Record
from pipeline.data.sources.synthetic import shapes_source
from pipeline.data.sources.voc import voc_source
from pipeline.errors import UserError


def ids(images):
    return [item.image_id for item in images]


def test_each_image_is_on_one_side_in_source_order():
    images = list(shapes_source(40, "all", 64).images)
    train, val = split_train_val(images, 0.75, 0)
    assert len(train) == 30 and sorted(ids(train) + ids(val)) == ids(images)
    assert ids(train) == sorted(ids(train)) and ids(val) == sorted(ids(val))


def test_split_depends_on_seed_and_is_stable_when_images_are_added():
    images = list(shapes_source(40, "all", 64).images)
    val = set(ids(split_train_val(images, 0.75, 0)[1]))
    assert val == set(ids(split_train_val(list(reversed(images)), 0.75, 0)[1]))
    assert val != set(ids(split_train_val(images, 0.75, 1)[1]))
    fewer = set(ids(split_train_val(images[:36], 0.75, 0)[1]))
    assert len(fewer ^ val) <= 4 + 2


def test_near_duplicates_stay_on_one_side(shared):
    source = voc_source(shared / "data/cards", "test")
    images = [item for item in source.images if item.image_id.startswith(("IMG", "cam"))]
    copies = [ParsedImage(Record(f"copy-{i}", *_rest(item))) for i, item in enumerate(images[:20])]
    for seed in range(3):
        train, val = split_train_val([*images, *copies], 0.5, seed)
        assert abs(len(train) - len(val)) <= 4
        found = find_near_duplicates(_hash_images(train), [_hash_images(val)])
        assert list(found) == _near_duplicates_within(train)


def _rest(item):
    record = item.read_record()
    return record.file_name, record.image, record.annotation_file


def _hash_images(images):
    hashes = ImageHashes("x")
    for item in images:
        record = item.read_record()
        image = prepare_image(read_image(record.image), "x.jpg")
        hashes.extend([item.image_id], [image.image_hash])
    return hashes


def _near_duplicates_within(images):
    return list(find_near_duplicates(_hash_images(images), []))


def test_unreadable_images_are_split_too(voc):
    for number in range(6):
        voc.add(f"{number}", [("cat", 1, 1, 9, 9)], image=b"no image")
    voc.list("gone")
    train, val = split_train_val(voc_source(voc.root, "train").images, 0.5, 0)
    assert {len(train), len(val)} == {3, 4}


def test_empty_side_raises(voc):
    for number in range(6):
        voc.add(f"{number}", [("cat", 1, 1, 9, 9)])  # all the same image
    with pytest.raises(UserError, match=r"--split-by 0.5: train or val of 6 images would be empty"):
        split_train_val(voc_source(voc.root, "train").images, 0.5, 0)


def test_image_listed_twice_is_on_one_side():
    images = list(shapes_source(10, "all", 64).images)
    train, val = split_train_val([*images, images[0]], 0.5, 0)
    real = [
        i for i in [*train, *val] if not (isinstance(i, ParsedImage) and i.record.image is None)
    ]
    assert sorted(ids(real)) == ids(images)
