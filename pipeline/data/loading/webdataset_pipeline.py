"""A shard set as a pipeline of the library webdataset, for training loops other than this one.

The library divides whole shards among ranks and DataLoader workers, groups members and shuffles.
Shards are opened here: remote ones through the cache of the node, and each must bring the samples
that the manifest lists, as the library ends silently where a tar is damaged.

Shape letters: H, W image height and width, M objects.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from pipeline.data.shards.cache import ShardCache
from pipeline.data.shards.manifest import Shard, load_manifest, local_folder
from pipeline.data.shards.prefetcher import CachedShards
from pipeline.data.shards.reader import RawSample, parse_sample
from pipeline.data.transforms.decode import ImageError, decode_image
from pipeline.errors import UserError
from pipeline.storage.remote import RETRIES, Remote, is_remote

if TYPE_CHECKING:
    from webdataset import WebDataset

Labelled = tuple[np.ndarray, np.ndarray, np.ndarray]
Handler = Callable[[Exception], bool]


def as_webdataset(
    uri: str,
    *,
    shuffle: int = 0,
    seed: int = 0,
    epoch: int = 0,
    cache: ShardCache | None = None,
    retries: int = RETRIES,
    handler: Handler | None = None,
) -> WebDataset:
    """Return a ``webdataset.WebDataset`` of (image, boxes, labels) from a folder or a URL.

    Images are uint8 RGB (H,W,3), boxes float32 xyxy (M,4) in pixels of the image, labels int64
    (M,), which index the classes of the manifest. Difficult objects are included, crowd regions are
    not. With ``shuffle``, the shards are in an order that follows from ``seed`` and ``epoch``, and
    a buffer of so many encoded samples mixes them. Ranks and DataLoader workers get whole shards,
    by `webdataset.split_by_node` and `webdataset.split_by_worker`. ``handler`` is called with the
    error of a sample that cannot be decoded, as webdataset does, instead of raising it.

    Raises UserError. Iterating raises UserError if a shard has not all its samples, OutageError if
    its store does not respond, and ImageError for a sample that cannot be decoded.
    """
    import webdataset

    manifest = load_manifest(uri, retries)
    shards = {f"{str(uri).rstrip('/')}/{shard.name}": shard for shard in manifest.shards}
    urls = list(shards)
    if shuffle:
        random.Random(f"{seed} {epoch}").shuffle(urls)
    dataset = webdataset.WebDataset(
        urls,
        shardshuffle=False,
        nodesplitter=webdataset.split_by_node,
        workersplitter=webdataset.split_by_worker,
        empty_check=False,  # a worker without a shard is not an error
        seed=seed,
    )
    is_opener = [isinstance(stage, webdataset.cache.StreamingOpen) for stage in dataset.pipeline]
    # The library's opener runs curl for http and has none for s3; its expander and grouper are
    # called for one shard at a time instead.
    dataset.pipeline[is_opener.index(True) :] = [_ReadShards(str(uri), shards, cache, retries)]
    if shuffle:
        dataset = dataset.shuffle(shuffle, seed=f"{seed} {epoch} samples")
    decode = _Decode(len(manifest.classes))
    return dataset.map(decode, handler=handler) if handler else dataset.map(decode)


class _ReadShards:
    """The stage that yields the members of each sample of the shards that it receives."""

    def __init__(
        self, uri: str, shards: dict[str, Shard], cache: ShardCache | None, retries: int
    ) -> None:
        self.shards = shards
        self._cached = None
        if is_remote(uri):
            self._cached = CachedShards(Remote(uri, retries), cache or ShardCache())
        else:
            self._folder = local_folder(uri).absolute()

    def __call__(self, sources: Iterable[dict[str, str]]) -> Iterator[dict[str, Any]]:
        from webdataset.tariterators import group_by_keys, tar_file_expander

        urls = [source["url"] for source in sources]
        for number, url in enumerate(urls):
            shard, count = self.shards[url], 0
            if self._cached:
                self._cached.prefetch([self.shards[each] for each in urls[number + 1 : number + 2]])
            with self._open(shard) as stream:
                files = tar_file_expander([{"url": url, "stream": stream}], eof_value=None)
                for sample in group_by_keys(files):
                    count += 1
                    yield sample
            if count != shard.samples:
                raise UserError(
                    f"{url}: {count} samples, the manifest says {shard.samples}; the shard is "
                    "damaged (python -m jobs.shards verify)"
                )

    def _open(self, shard: Shard) -> BinaryIO:
        if self._cached:
            return os.fdopen(self._cached.open(shard)[0], "rb")
        path = self._folder / shard.name
        try:
            return path.open("rb")
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None


class _Decode:
    """The stage that makes (image, boxes, labels) of the members of a sample."""

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def __call__(self, sample: dict[str, Any]) -> Labelled:
        image = sample.get("jpg", sample.get("png", b""))
        location = f"{sample['__url__']} {sample['__key__']}"
        try:
            parsed = parse_sample(RawSample(image, sample.get("json", b""), location), self.classes)
            pixels = decode_image(image, upright=False)  # (H,W,3)
        except ImageError as error:
            raise ImageError(f"{location}: {error}") from None
        objects = ~np.array(parsed.crowd, bool)
        boxes = np.array(parsed.boxes, np.float32).reshape(-1, 4)[objects]  # (M,4)
        return pixels, boxes, np.array(parsed.labels, np.int64)[objects]
