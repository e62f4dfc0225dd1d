"""Training batches: read, draw, move boxes, decode, warp.

Each stage runs over the whole batch before the next begins. A decoder evicts everything else from
the processor's caches, so Python code between two images takes several times longer than the same
code in one run.

Shape letters: b images of this rank, S input side; M objects and K crowd regions, the maximum over
the images of the batch; n boxes of all tiles together.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.config import Config
from pipeline.data.keyed_rng import bit_generator
from pipeline.data.loading.batch import Batch, BatchDataset, PackedBatch, TrainFields
from pipeline.data.loading.mosaic import MosaicSampler, MosaicTile
from pipeline.data.loading.rank_share import rank_positions
from pipeline.data.loading.repeat_sampling import read_repeat_weights
from pipeline.data.loading.sample_order import SampleOrder
from pipeline.data.shards.reader import RawSample, ShardSet, parse_sample
from pipeline.data.shards.sample import Sample
from pipeline.data.transforms.augment import (
    AugmentParams,
    decode_size,
    draw_params,
    fit_params,
    warp,
)
from pipeline.data.transforms.boxes import (
    affine_box_map,
    box_map,
    move_affine,
    move_boxes,
)
from pipeline.data.transforms.decode import ImageError, decode_image
from pipeline.data.transforms.published import draw_published
from pipeline.data.transforms.resize import FILL_COLOUR

FULL_IMAGE = AugmentParams((0.0, 0.0, 1.0, 1.0), False)
_flatten = itertools.chain.from_iterable


class TrainDataset(BatchDataset[Batch]):
    """Item k is this rank's share of global batch k of ``total_steps``."""

    def __init__(
        self, shards: ShardSet, config: Config, rank: int, world_size: int, total_steps: int
    ) -> None:
        self.shards, self.config = shards, config
        self.classes = len(shards.manifest.classes)
        data = config.data
        weights = read_repeat_weights(
            shards.uri, shards.manifest, data.repeat_threshold, data.retries
        )
        self.order = SampleOrder(
            shards.manifest.counts, config.train.seed, data.parts, data.window, weights
        )
        self.mosaic = MosaicSampler(self.order, config.data, config.train.seed, total_steps)
        self.rank, self.world_size = rank, world_size

    def __getitem__(self, step: int) -> PackedBatch[Batch]:
        # Which samples, and where in the images they are drawn.
        batch_size = self.config.train.batch_size
        positions = rank_positions(self.order, step, batch_size, self.rank, self.world_size)
        count, size = len(positions), input_size(self.config, step)
        tiles = [self._load(tile) for tile in self.mosaic.tiles(positions, step, size)]

        # Their augmentation.
        for tile in tiles:
            tile.draw_params(self.config)

        # Boxes before pixels evict the samples from the caches, though some images may fail.
        affine = self.config.data.affine
        objects = _objects(tiles, count, affine)

        # Pixels; where some could not be decoded, the boxes again without them.
        pixels, slot = self.allocate_pixels((count, size, size, 3))  # (b,S,S,3)
        rendered, problems = _render(pixels, tiles)
        if problems:
            objects = _objects(rendered, count, affine)
        valid, ids = _valid(tiles, rendered, count)
        return PackedBatch(
            pixels if slot is None else slot,
            TrainFields(*objects, valid, ids, problems, samples_read=len(tiles)),
        )

    def _load(self, tile: MosaicTile) -> LoadedTile:
        raw = self.shards.read(tile.sample)
        try:
            return LoadedTile(tile, raw, parse_sample(raw, self.classes))
        except ImageError as error:
            return LoadedTile(tile, raw, None, str(error))


@dataclass
class LoadedTile:
    """A tile with its stored sample; ``problem`` says why there is no ``sample``."""

    tile: MosaicTile
    raw: RawSample
    sample: Sample | None
    problem: str = ""
    params: AugmentParams = FULL_IMAGE

    def draw_params(self, config: Config) -> None:
        """Draw the augmentation."""
        if self.sample is None:
            return
        size = self.sample.width, self.sample.height
        draw = draw_published if config.data.augment_variant == "published" else draw_params
        params = draw(self.tile.rng, config.data, *size, self.sample.objects)
        self.params = fit_params(params, *self.tile.rect[2:], config.data.fit)

    def render(self, image: np.ndarray) -> None:
        """Decode and warp into the rectangle of an image (S,S,3). Raises ImageError."""
        if self.sample is None:
            raise ImageError(self.problem)
        left, top, width, height = self.tile.rect
        source, target = (self.sample.width, self.sample.height), (width, height)
        min_size = decode_size(self.params, source, target)
        decoded = decode_image(self.raw.image, upright=False, min_size=min_size)
        out, weight = image[top : top + height, left : left + width], self.tile.weight
        if weight == 1.0:
            warp(decoded, self.params, source, out)
            return
        partner = np.empty_like(out)
        warp(decoded, self.params, source, partner)
        out[:] = cv2.addWeighted(out, 1 - weight, partner, weight, 0)


def input_size(config: Config, step: int) -> int:
    """Return the side of the input at a global step: the same on all ranks and after a restart."""
    sizes = config.data.sizes
    if not sizes:
        return config.model.image_size
    number = step // config.data.size_steps
    drawn = bit_generator("scale", config.train.seed, number).random_raw()
    return sizes[int(drawn) % len(sizes)]


def _render(pixels: np.ndarray, tiles: Sequence[LoadedTile]) -> tuple[list[LoadedTile], list[str]]:
    """Render tiles into pixels (b,S,S,3). Returns those rendered and the problems of the others.

    An image whose own sample is unreadable is black, without its partners. The rectangle of an
    unreadable partner has the fill colour; an unreadable mixup partner is not blended.
    """
    rendered: list[LoadedTile] = []
    problems: list[str] = []
    for row, image in itertools.groupby(tiles, key=lambda loaded: loaded.tile.row):
        for number, loaded in enumerate(image):
            try:
                loaded.render(pixels[row])
                rendered.append(loaded)
            except ImageError as error:
                problems.append(f"{loaded.raw.location}: {error}")
                if number == 0:
                    pixels[row] = 0
                    break
                if loaded.tile.weight == 1.0:
                    left, top, width, height = loaded.tile.rect
                    pixels[row, top : top + height, left : left + width] = FILL_COLOUR
    return rendered, problems


def _valid(
    tiles: Sequence[LoadedTile], rendered: Sequence[LoadedTile], count: int
) -> tuple[np.ndarray, list[str]]:
    """Return which of ``count`` images are valid (b,), and their ids or stored locations."""
    own = {loaded.tile.row: loaded for loaded in reversed(tiles)}  # the first tile of each image
    valid = np.zeros(count, bool)  # (b,)
    valid[[loaded.tile.row for loaded in rendered]] = True
    ids = [
        loaded.sample.image_id if loaded.sample and valid[row] else loaded.raw.location
        for row, loaded in sorted(own.items())
    ]
    return valid, ids


def _objects(
    tiles: Sequence[LoadedTile], count: int, affine: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return boxes (b,M,4), labels (b,M) and crowd regions (b,K,4) of ``count`` images, padded.

    ``affine`` if images may be rotated, scaled or sheared.
    """
    found = [(loaded, loaded.sample) for loaded in tiles if loaded.sample and loaded.sample.boxes]
    if not found:
        none = np.zeros((count, 0, 4), np.float32)
        return none, np.zeros((count, 0), np.int64), none

    # All boxes of all tiles in one table, with the image that each belongs to.
    lengths = [len(sample.boxes) for _, sample in found]
    rows = np.repeat([loaded.tile.row for loaded, _ in found], lengths)  # (n,)
    corners = _flatten(box for _, sample in found for box in sample.boxes)
    labels = np.fromiter(_flatten(sample.labels for _, sample in found), np.int64)  # (n,)
    crowd = np.fromiter(_flatten(sample.crowd for _, sample in found), bool)  # (n,)

    # Into the input, each by the map of its tile.
    map_of, move = (affine_box_map, move_affine) if affine else (box_map, move_boxes)
    maps = _flatten(map_of(loaded.params, *loaded.tile.rect) for loaded, _ in found)
    map_per_tile = np.fromiter(maps, np.float64).reshape(len(found), -1).T  # (9|15,tiles)
    boxes, keep = move(
        np.fromiter(corners, np.float64).reshape(-1, 4),
        np.repeat(map_per_tile, lengths, axis=1),
        ~crowd,
    )  # (n,4), (n,)

    # Objects and crowd regions apart, padded per image.
    objects, regions = keep & ~crowd, keep & crowd  # (n,) each
    padded_boxes, padded_labels = _pad(
        rows[objects], count, (boxes[objects], 0), (labels[objects], -1)
    )  # (b,M,4), (b,M)
    (ignore_boxes,) = _pad(rows[regions], count, (boxes[regions], 0))  # (b,K,4)
    return padded_boxes, padded_labels, ignore_boxes


def _pad(rows: np.ndarray, count: int, *columns: tuple[np.ndarray, int]) -> Iterator[np.ndarray]:
    """Yield each column of values (n,...), sorted by row, as (count, maximum per row, ...).

    A column comes with its padding value.
    """
    lengths = np.bincount(rows, minlength=count)  # (count,)
    places = rows, np.arange(len(rows)) - (np.cumsum(lengths) - lengths)[rows]  # (n,) each
    for values, padding in columns:
        shape = count, lengths.max(initial=0), *values.shape[1:]
        out = np.full(shape, padding, values.dtype)  # (count, maximum per row, ...)
        out[places] = values
        yield out
