"""Find the samples of some images in a shard set, to show them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from pipeline.data import Sample
from pipeline.data.shards.reader import ShardSet, parse_sample
from pipeline.data.transforms.decode import ImageError, decode_image


class FoundSamples:
    """The samples of some images by id, without those that are not in the set or are damaged."""

    def __init__(self, uri: str, ids: Iterable[str]) -> None:
        """Read the JSON of each sample until all are found. Raises UserError."""
        self._shards = ShardSet(uri)
        self._indices: dict[str, int] = {}
        self.samples: dict[str, Sample] = {}
        wanted = set(ids)
        for index in range(len(self._shards)):
            if not wanted:
                break
            try:
                sample = parse_sample(
                    self._shards.read_json(index), len(self._shards.manifest.classes)
                )
            except ImageError:
                continue  # the evaluation has reported it
            if sample.image_id in wanted:
                wanted.discard(sample.image_id)
                self._indices[sample.image_id], self.samples[sample.image_id] = index, sample

    def __contains__(self, image_id: str) -> bool:
        return image_id in self.samples

    def pixels(self, image_id: str) -> np.ndarray:
        """Decode an image (H,W,3) uint8. Raises ImageError."""
        return decode_image(self._shards.read(self._indices[image_id]).image, upright=False)
