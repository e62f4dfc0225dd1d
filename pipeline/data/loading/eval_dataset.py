"""Evaluation batches: whole images, decoded and fitted to the input."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.config import Config
from pipeline.data.loading.batch import BatchDataset, EvalBatch, EvalFields, PackedBatch
from pipeline.data.shards.reader import RawSample, ShardSet, parse_sample
from pipeline.data.shards.sample import Sample
from pipeline.data.transforms.decode import ImageError, decode_image
from pipeline.data.transforms.resize import fill_input, visible_size


class EvalDataset(BatchDataset[EvalBatch]):
    """Item ``indices`` is the batch of those samples; unreadable ones are left out."""

    def __init__(self, shards: ShardSet, config: Config) -> None:
        self.shards, self.size, self.fit = shards, config.model.image_size, config.data.fit

    def __getitem__(self, indices: Sequence[int]) -> PackedBatch[EvalBatch]:
        pixels, slot = self.allocate_pixels((len(indices), self.size, self.size, 3))
        samples: list[Sample] = []
        problems: list[str] = []
        for index in indices:
            raw = self.shards.read(index)
            try:
                sample = parse_sample(raw, len(self.shards.manifest.classes))
                fill_input(_decode(raw, sample), pixels[len(samples)], self.fit)
                samples.append(sample)
            except ImageError as error:
                problems.append(f"{raw.location}: {error}")
        if slot is not None:
            slot = slot._replace(shape=(len(samples), *slot.shape[1:]))
        sizes = [(s.width, s.height) for s in samples]
        visible = [visible_size(s.width, s.height, self.fit) for s in samples]
        fields = EvalFields(
            [sample.image_id for sample in samples],
            np.array(sizes, np.int64).reshape(-1, 2),
            np.array(visible, np.int64).reshape(-1, 2),
            samples,
            problems,
        )
        return PackedBatch(pixels[: len(samples)] if slot is None else slot, fields)


def _decode(raw: RawSample, sample: Sample) -> np.ndarray:
    """Return the pixels (H,W,3). Raises ImageError unless they have the size in the JSON."""
    image = decode_image(raw.image, upright=False)
    height, width = image.shape[:2]
    if (width, height) != (sample.width, sample.height):
        raise ImageError(
            f"the image is {width}x{height}, its JSON says {sample.width}x{sample.height}"
        )
    return image
