"""Other loaders of the same images, with the decoder, draws and warp of this loader.

Each yields batches of (images (b,S,S,3) uint8, list of boxes, list of labels). They differ in how
they find bytes, order samples, and send batches between processes.
"""

import itertools
import json
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.config import Config
from pipeline.data.shards.reader import ShardSet
from pipeline.data.shards.sample import Sample
from pipeline.data.transforms.augment import (
    AugmentParams,
    decode_size,
    draw_params,
    warp,
)
from pipeline.data.transforms.boxes import box_map, move_boxes
from pipeline.data.transforms.decode import decode_image

CHUNK_BYTES = 32 * 2**20


def start_worker(_: int = 0) -> None:
    """Use one thread, as in this loader's processes."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def render(image: bytes, params: AugmentParams, source: tuple[int, int], size: int) -> np.ndarray:
    """Decode and warp an image to (S,S,3)."""
    out = np.empty((size, size, 3), np.uint8)
    min_size = decode_size(params, source, (size, size))
    warp(decode_image(image, upright=False, min_size=min_size), params, source, out)
    return out


def augment(image: bytes, text: bytes, config: Config) -> tuple[np.ndarray, Any, Any]:
    """Return one training item, drawn from NumPy's generator of the process."""
    tree = json.loads(text)
    source, size = (tree["width"], tree["height"]), config.model.image_size
    boxes = np.array(tree["boxes"], np.float64).reshape(-1, 4)
    rng = np.random.default_rng(int(torch.randint(2**31, ())))
    params = draw_params(rng, config.data, *source, lambda: boxes[~np.array(tree["crowd"], bool)])
    moved, keep = move_boxes(boxes, np.array([box_map(params, 0, 0, size, size)]).T)
    labels = np.array(tree["labels"], np.int64)
    return render(image, params, source, size), moved[keep], labels[keep]


def collate(items: list[Any]) -> Any:
    """Stack images; boxes and labels stay lists, as is usual in detection code."""
    images, boxes, labels = zip(*items, strict=True)
    return (
        torch.from_numpy(np.stack(images)),
        [torch.from_numpy(b) for b in boxes],
        [torch.from_numpy(v) for v in labels],
    )


class Limit:
    """Decode and warp in a plain loop over bytes in memory; augmentation is drawn before."""

    def __init__(self, uri: str, config: Config, samples: int) -> None:
        shards, self.size = ShardSet(uri), config.model.image_size
        rng = np.random.default_rng(0)
        self.items = []
        for index in rng.permutation(len(shards))[:samples]:
            raw = shards.read(int(index))
            sample = Sample.from_json(raw.json)
            source = sample.width, sample.height
            params = draw_params(rng, config.data, *source, sample.objects)
            self.items.append((bytes(raw.image), params, source))

    def run(self, counter: int, count: np.ndarray) -> None:
        """Render the items in a loop for ever; count in one of the counters."""
        for item in itertools.cycle(self.items):
            render(*item, self.size)
            count[counter] += 1

    def start(self, processes: int, count: np.ndarray) -> list[Any]:
        """Run in several processes; return them."""
        fork = multiprocessing.get_context("fork")
        started = [fork.Process(target=self.run, args=(i, count)) for i in range(processes)]
        for process in started:
            process.start()
        return started


class LooseFiles(Dataset[Any]):
    """A file per image; annotations in memory."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.files = sorted(folder.glob("*.jpg"))
        self.texts = [path.with_suffix(".json").read_bytes() for path in self.files]
        self.config = config

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        return augment(self.files[index].read_bytes(), self.texts[index], self.config)


def loose_files(folder: Path, config: Config, workers: int) -> Iterator[Any]:
    """Yield from torch's DataLoader, shuffled."""
    loader = DataLoader(
        LooseFiles(folder, config),
        batch_size=config.train.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        collate_fn=collate,
        prefetch_factor=config.data.prefetch if workers else None,
        persistent_workers=workers > 0,
        worker_init_fn=start_worker,
    )
    return _forever(loader)


def webdataset(uri: str, config: Config, workers: int) -> Iterator[Any]:
    """Yield from webdataset's pipeline: shards shuffled, then a buffer of 1,000 samples."""
    import webdataset as wds

    urls = [str(path) for path in sorted(Path(uri).glob("*.tar"))]
    dataset = (
        wds.WebDataset(
            urls, shardshuffle=len(urls), nodesplitter=wds.split_by_node, empty_check=False
        )
        .shuffle(1000)
        .to_tuple("jpg", "json")
        .map(lambda pair: augment(*pair, config))
        .batched(config.train.batch_size, collation_fn=collate, partial=False)
    )
    loader = wds.WebLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=config.data.prefetch if workers else None,
        persistent_workers=workers > 0,
        worker_init_fn=start_worker,
    )
    return _forever(loader)


def write_litdata(uri: str, folder: Path) -> None:
    """Write the same bytes as litdata's chunks."""
    from litdata import optimize

    shards = ShardSet(uri)
    optimize(
        fn=_LitItem(uri),
        inputs=list(range(len(shards))),
        output_dir=str(folder),
        chunk_bytes=CHUNK_BYTES,
        num_workers=1,
    )


class _LitItem:
    def __init__(self, uri: str) -> None:
        self.shards = ShardSet(uri)

    def __call__(self, index: int) -> dict[str, bytes]:
        raw = self.shards.read(index)
        return {"image": bytes(raw.image), "json": raw.json}


def litdata(folder: Path, config: Config, workers: int) -> Iterator[Any]:
    """Yield from litdata's dataset and loader, shuffled."""
    from litdata import StreamingDataLoader, StreamingDataset

    class Augmented(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Any:
            item = super().__getitem__(index)
            return augment(item["image"], item["json"], config)

    loader = StreamingDataLoader(
        Augmented(str(folder), shuffle=True, drop_last=True),
        batch_size=config.train.batch_size,
        num_workers=workers,
        collate_fn=collate,
        prefetch_factor=config.data.prefetch if workers else None,
        persistent_workers=workers > 0,
        worker_init_fn=start_worker,
    )
    return _forever(loader)


def _forever(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader
