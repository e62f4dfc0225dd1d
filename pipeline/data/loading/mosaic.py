"""Mosaic and mixup: which samples make one training image, and where in it they lie.

Partners come from the window of the sample, so that they cost no other shard. Every draw comes from
(seed, epoch, sample); tiles are shares of the input, so that its size changes none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.config import DataConfig
from pipeline.data.keyed_rng import generators
from pipeline.data.loading.sample_order import Order

EDGE = 0.3  # the tiles of a mosaic meet within the middle 40% of each side
MIXUP = 0.5  # weight of the blended image


class Piece(NamedTuple):
    """One source of one training image. The first of an image is the sample itself."""

    row: int  # image in the batch
    sample: int
    rng: np.random.Generator  # of its augmentation
    tile: tuple[int, int, int, int]  # left, top, width, height in input pixels
    weight: float  # 1, or of a blend


class Mixer:
    """Says of which pieces training images are made."""

    def __init__(self, order: Order, config: DataConfig, seed: int) -> None:
        self.order, self.config, self.seed = order, config, seed
        self._mixes = config.mosaic > 0 or config.mixup > 0

    def pieces(self, positions: Sequence[int], size: int) -> list[Piece]:
        """What the images at these positions of the stream are made of, one after the other."""
        samples = [self.order.sample(position) for position in positions]
        keys = [(self.seed, epoch, index) for index, epoch in samples]
        whole = (0, 0, size, size)
        pieces = [
            Piece(row, index, rng, whole, 1.0)
            for row, ((index, _), rng) in enumerate(
                zip(samples, generators("augment", keys), strict=True)
            )
        ]
        if not self._mixes:
            return pieces
        draws = generators("mix", keys)
        return [
            piece
            for own, position, rng in zip(pieces, positions, draws, strict=True)
            for piece in self._mixed(own, position, rng, size)
        ]

    def _mixed(self, own: Piece, position: int, rng: np.random.Generator, size: int) -> list[Piece]:
        row, whole = own.row, own.tile
        mosaic, x, y, *draws, mixup, last = rng.random(8).tolist()
        pieces = [own]
        if mosaic < self.config.mosaic:
            x, y = (EDGE + (1 - 2 * EDGE) * share for share in (x, y))
            tiles = _tiles(round(size * x), round(size * y), size)
            others = (Piece(row, self.order.partner(position, d), rng, whole, 1.0) for d in draws)
            # Which tile the sample itself gets says its first partner's draw.
            shift = int(draws[0] * 4e6) % 4
            pieces = [
                piece._replace(tile=tiles[(shift + number) % 4])
                for number, piece in enumerate([*pieces, *others])
            ]
        if mixup < self.config.mixup:
            partner = self.order.partner(position, last)
            pieces.append(Piece(row, partner, rng, whole, MIXUP))
        return pieces


def _tiles(x: int, y: int, size: int) -> list[tuple[int, int, int, int]]:
    return [
        (left, top, width, height)
        for top, height in ((0, y), (y, size - y))
        for left, width in ((0, x), (x, size - x))
    ]
