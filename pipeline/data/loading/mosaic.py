"""Mosaic and mixup: which samples make up a training image, and where in it they are drawn.

Partners come from the window of the sample, so they need no other shard. Every draw is keyed by
(seed, epoch, sample), and by the number of the repeat of a sample that is drawn again
(`repeat_sampling.py`); rectangles are fractions of the input, so its size changes no draw.
`data.close_mosaic` ends both at a global step, so a resumed training ends them there too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.config import DataConfig
from pipeline.data.keyed_rng import generator
from pipeline.data.loading.sample_order import SampleOrder

CENTRE_MARGIN = 0.3  # the tiles of a mosaic meet within the middle 40% of each side
MIXUP_WEIGHT = 0.5  # of the partner

Rect = tuple[int, int, int, int]  # left, top, width, height in input pixels


class MosaicTile(NamedTuple):
    """One sample in a rectangle of a training image; the first of an image is its own sample.

    Without mosaic an image is one tile that covers it. A mixup partner is one more such tile.
    """

    row: int  # image in the batch
    sample: int
    rng: np.random.Generator  # of its augmentation
    rect: Rect
    weight: float  # below 1: blended over the tiles before it


class MosaicSampler:
    """Draw the tiles of the images of a training of ``total_steps``."""

    def __init__(self, order: SampleOrder, config: DataConfig, seed: int, total_steps: int) -> None:
        self.order, self.config, self.seed = order, config, seed
        mixes = config.mosaic > 0 or config.mixup > 0
        self.end_step = closing_step(config.close_mosaic, total_steps) if mixes else 0

    def tiles(self, positions: Sequence[int], step: int, size: int) -> list[MosaicTile]:
        """Return the tiles of the images at these positions of the stream, image by image.

        From ``end_step`` on each image is one tile.
        """
        full, mixes = (0, 0, size, size), step < self.end_step
        tiles = []
        for row, position in enumerate(positions):
            sample, epoch = self.order.sample(position)
            repeat = self.order.repeat(position)
            key = (self.seed, epoch, sample, *([repeat] if repeat else []))
            own = MosaicTile(row, sample, generator("augment", *key), full, 1.0)
            tiles += self._mix(own, position, generator("mix", *key)) if mixes else [own]
        return tiles

    def _mix(self, own: MosaicTile, position: int, rng: np.random.Generator) -> list[MosaicTile]:
        """Draw the partners of an image and their rectangles; ``rng`` then augments them."""
        # Always eight draws: the augmentation of partners does not depend on the probabilities.
        mosaic, x, y, *partners, mixup, mixup_partner = rng.random(8).tolist()
        full = own.rect
        tiles = [own]
        if mosaic < self.config.mosaic:
            size = full[2]
            x, y = (CENTRE_MARGIN + (1 - 2 * CENTRE_MARGIN) * fraction for fraction in (x, y))
            rects = _quarters(round(size * x), round(size * y), size)
            tiles += [
                MosaicTile(own.row, self.order.partner(position, draw), rng, full, 1.0)
                for draw in partners
            ]
            # The first partner's draw also decides which quarter is the image's own.
            shift = int(partners[0] * 4e6) % 4
            tiles = [
                tile._replace(rect=rects[(shift + number) % 4]) for number, tile in enumerate(tiles)
            ]
        if mixup < self.config.mixup:
            partner = self.order.partner(position, mixup_partner)
            tiles.append(MosaicTile(own.row, partner, rng, full, MIXUP_WEIGHT))
        return tiles


def closing_step(fraction: float, total_steps: int) -> int:
    """Return the step, from 0, with which the last ``fraction`` of all steps begins."""
    # The slack keeps 1 - 0.9 from costing a step.
    return math.ceil((1 - fraction) * total_steps - 1e-9)


def _quarters(x: int, y: int, size: int) -> list[Rect]:
    """Return the four rectangles that meet at (x, y), row by row."""
    return [
        (left, top, width, height)
        for top, height in ((0, y), (y, size - y))
        for left, width in ((0, x), (x, size - x))
    ]
