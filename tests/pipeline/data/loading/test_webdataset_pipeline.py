"""Test shard sets as pipelines of webdataset: content, division, shuffling, damage."""

import pickle
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from torch.utils.data import DataLoader

from pipeline.data import as_webdataset, load_manifest
from pipeline.data.shards.cache import ShardCache
from pipeline.data.shards.reader import ShardSet
from pipeline.data.shards.sample import Sample
from pipeline.data.shards.writer import ShardWriter
from pipeline.data.transforms.decode import ImageError, decode_image
from pipeline.errors import UserError
from pipeline.storage.remote import Remote


@pytest.fixture
def copy(scenes, tmp_path) -> Path:
    return Path(shutil.copytree(scenes, tmp_path / "copy"))


def ids(images) -> list[int]:
    """Return the sum of the pixels of each image, which differs for all scenes."""
    return [int(np.asarray(image).sum()) for image, *_ in images]


def test_samples_equal_those_of_the_reader(scenes):
    dataset, shards = as_webdataset(scenes), ShardSet(scenes)
    assert isinstance(dataset, webdataset.WebDataset)
    for index, (image, boxes, labels) in enumerate(dataset):
        raw = shards.read(index)
        sample = Sample.from_json(raw.json)
        assert (image == decode_image(raw.image, upright=False)).all()
        assert (image.dtype, boxes.dtype, labels.dtype) == (np.uint8, np.float32, np.int64)
        assert boxes.tolist() == np.array(sample.boxes, np.float32).tolist()
        assert labels.tolist() == sample.labels
    assert index + 1 == len(shards) == 23


@pytest.mark.filterwarnings("ignore:This DataLoader will create 6 worker processes")
@pytest.mark.parametrize("workers", [0, 2, 6])
def test_loader_workers_deliver_every_sample_once(scenes, workers):
    dataset = as_webdataset(scenes, shuffle=8, seed=1)
    loader = DataLoader(dataset, batch_size=4, num_workers=workers, collate_fn=list)
    found = Counter(key for batch in loader for key in ids(batch))
    assert found == Counter(ids(as_webdataset(scenes))) and max(found.values()) == 1


def test_loader_converts_to_tensors(scenes):
    loader = DataLoader(as_webdataset(scenes), batch_size=None, num_workers=1)
    image, boxes, labels = next(iter(loader))
    assert image.dtype == torch.uint8 and boxes.dtype == torch.float32
    assert labels.dtype == torch.int64 and len(boxes) == len(labels)


def test_ranks_divide_the_shards(scenes, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        found.append(ids(as_webdataset(scenes)))
    monkeypatch.delenv("RANK")
    assert [len(part) for part in found] == [13, 10]
    assert sorted(found[0] + found[1]) == sorted(ids(as_webdataset(scenes)))


def test_order_follows_from_seed_and_epoch(scenes):
    def order(**options):
        return ids(as_webdataset(scenes, **options))

    first = order(shuffle=10, seed=3)
    assert order(shuffle=10, seed=3) == first != order()
    assert sorted(first) == sorted(order())
    assert len({tuple(order(shuffle=10, seed=3, epoch=e)) for e in range(4)}) == 4
    assert order(shuffle=10, seed=4) != first


def test_pipeline_can_be_extended_and_sent_to_other_processes(scenes):
    dataset = as_webdataset(scenes).slice(5).batched(2, collation_fn=list)
    assert [len(batch) for batch in pickle.loads(pickle.dumps(dataset))] == [2, 2, 1]  # noqa: S301
    assert len(list(as_webdataset(scenes).repeat().with_epoch(40))) == 40


def test_crowd_regions_are_left_out(copy):
    from jobs.shards import main

    shutil.rmtree(copy)
    copy.mkdir()
    sample = Sample.make(
        image_id="1",
        file_name="1.png",
        width=8,
        height=6,
        boxes=[[0, 0, 8, 6], [1, 1, 3, 4], [2, 2, 4, 4]],
        labels=[0, 1, 0],
        difficult=[False, False, True],
        crowd=[True, False, False],
        area=[48, 6, 4],
    )
    png = webdataset.writer.imageencoder(np.zeros((6, 8, 3), np.uint8))
    writer = ShardWriter(copy, 10, 10**6)
    writer.add("png", png, sample.to_json())
    writer.close()
    main(["adopt", str(copy), "--classes", "a,b"])
    [(image, boxes, labels)] = as_webdataset(str(copy))
    assert image.shape == (6, 8, 3) and labels.tolist() == [1, 0]
    assert boxes.tolist() == [[1, 1, 3, 4], [2, 2, 4, 4]]


@pytest.mark.parametrize("kept", [0, 1, 4])
def test_damaged_shard_is_an_error(copy, kept):
    path = copy / "shard-000002.tar"
    data = path.read_bytes()
    end = int(np.fromfile(path.with_suffix(".index"), "<i8")[4 * kept]) - 512
    path.write_bytes(data[:end] + bytes(len(data) - end))
    message = rf"shard-000002\.tar: {kept} samples, the manifest says 5; the shard is damaged"
    with pytest.raises(UserError, match=message):
        list(as_webdataset(str(copy)))
    path.unlink()
    with pytest.raises(UserError, match="No such file"):
        list(as_webdataset(str(copy)))


def test_sample_that_does_not_decode_is_handled(copy):
    path = copy / "shard-000000.tar"
    row = np.fromfile(copy / "shard-000000.index", "<i8")[:2]
    with path.open("r+b") as file:
        file.seek(row[0])
        file.write(b"x" * int(row[1]))
    with pytest.raises(ImageError, match=r"shard-000000.tar 000000000: not an image"):
        list(as_webdataset(str(copy)))
    seen: list[Exception] = []
    assert len(list(as_webdataset(str(copy), handler=lambda e: not seen.append(e)))) == 22
    assert len(seen) == 1


def test_remote_shards_are_read_through_the_cache(scenes, tmp_path, monkeypatch):
    def copy_file(self, name, to, max_bytes):
        shutil.copy(Path(scenes) / name, to)
        shards = {shard.name: shard.sha256 for shard in load_manifest(scenes).shards}
        return shards.get(name, "")

    monkeypatch.setattr(Remote, "_download", copy_file)
    cache = ShardCache(tmp_path / "cache")
    dataset = as_webdataset("s3://bucket/scenes", cache=cache)
    assert ids(dataset) == ids(as_webdataset(scenes))
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 5
