"""Training batches: read, draw, move boxes, decode, warp.

Each stage goes through the whole batch before the next begins. A decoder sweeps everything else out
of the processor's caches, so that Python which runs between two pictures takes several times longer
than Python which runs between two pieces of Python.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from torch.utils.data import Dataset, get_worker_info

from pipeline.config import Config
from pipeline.data.keyed_rng import bits
from pipeline.data.loading.batch import Batch, Parcel
from pipeline.data.loading.mosaic import Mixer, Piece
from pipeline.data.loading.sample_order import Order, share
from pipeline.data.loading.shared_memory import Ring, Slot
from pipeline.data.shards.reader import Raw, ShardSet
from pipeline.data.shards.sample import Sample, SampleError
from pipeline.data.transforms.augment import (
    Plan,
    decode_size,
    draw_plan,
    fitted,
    move_boxes,
    place,
    warp,
)
from pipeline.data.transforms.decode import ImageError, decode_image
from pipeline.data.transforms.resize import FILL

flat = itertools.chain.from_iterable
WHOLE = Plan((0.0, 0.0, 1.0, 1.0), False)


class TrainBatches(Dataset[Parcel]):
    """Item k is the rank's share of global batch k."""

    def __init__(self, shards: ShardSet, config: Config, rank: int, world_size: int) -> None:
        self.shards, self.config = shards, config
        self.classes = len(shards.manifest.classes)
        self.order = Order(
            shards.manifest.counts, config.train.seed, config.data.parts, config.data.window
        )
        self.mixer = Mixer(self.order, config.data, config.train.seed)
        self.rank, self.world_size = rank, world_size
        self.ring: Ring | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "ring": None}  # nothing is shared with a process not forked

    def __getitem__(self, step: int) -> Parcel:
        positions = share(step, self.config.train.batch_size, self.rank, self.world_size)
        size = input_size(self.config, step)
        parts = [self._read(piece) for piece in self.mixer.pieces(positions, size)]
        for part in parts:
            part.draw(self.config)
        # Before pixels sweep the samples out of the caches, though some may not be painted.
        objects = _objects(parts, len(positions))
        pixels, slot = room(self.ring, (len(positions), size, size, 3))
        painted, problems = _paint(pixels, parts)
        if problems:
            objects = _objects(painted, len(positions))
        valid, ids = _valid(parts, painted, len(positions))
        return Parcel(Batch, slot or pixels, (*objects, valid, ids, problems, len(parts)))

    def _read(self, piece: Piece) -> Part:
        raw = self.shards.read(piece.sample)
        try:
            return Part(piece, raw, parse_sample(raw, self.classes))
        except ImageError as error:
            return Part(piece, raw, None, str(error))


@dataclass
class Part:
    """A piece as it was read: without a sample, ``problem`` says why."""

    piece: Piece
    raw: Raw
    sample: Sample | None
    problem: str = ""
    plan: Plan = WHOLE

    def draw(self, config: Config) -> None:
        """Draw its augmentation."""
        if self.sample is None:
            return
        size = self.sample.width, self.sample.height
        plan = draw_plan(self.piece.rng, config.data, *size, self.sample.objects)
        self.plan = fitted(plan, *self.piece.tile[2:], config.data.fit)

    def paint(self, image: np.ndarray) -> None:
        """Decode and warp into its tile of an image (S,S,3). Raises ImageError."""
        if self.sample is None:
            raise ImageError(self.problem)
        left, top, width, height = self.piece.tile
        source, target = (self.sample.width, self.sample.height), (width, height)
        least = decode_size(self.plan, source, target)
        decoded = decode_image(self.raw.image, upright=False, min_size=least)
        tile, weight = image[top : top + height, left : left + width], self.piece.weight
        if weight == 1.0:
            warp(decoded, self.plan, source, tile)
            return
        other = np.empty_like(tile)
        warp(decoded, self.plan, source, other)
        tile[:] = cv2.addWeighted(tile, 1 - weight, other, weight, 0)


def input_size(config: Config, step: int) -> int:
    """Side of the input at a global step: the same on every rank and after every restart."""
    sizes = config.data.sizes
    if not sizes:
        return config.model.image_size
    drawn = bits("scale", config.train.seed, step // config.data.size_steps).random_raw()
    return sizes[int(drawn) % len(sizes)]


def room(ring: Ring | None, shape: tuple[int, ...]) -> tuple[np.ndarray, Slot | None]:
    """Where this process may write pixels: in a slot if it has one."""
    worker = get_worker_info()
    if ring is None or worker is None:
        return np.empty(shape, np.uint8), None
    return ring.claim(worker.id, shape)


def parse_sample(raw: Raw, classes: int) -> Sample:
    """The sample's JSON. Raises ImageError if it is damaged or does not fit the class list."""
    if raw.fault:
        raise ImageError(raw.fault)
    try:
        sample = Sample.from_json(raw.json)
    except SampleError as error:
        raise ImageError(str(error)) from None
    if sample.labels and not 0 <= min(sample.labels) <= max(sample.labels) < classes:
        wrong = next(label for label in sample.labels if not 0 <= label < classes)
        raise ImageError(
            f"image {sample.image_id!r}: label {wrong} is not one of the {classes} classes"
        )
    return sample


def _paint(pixels: np.ndarray, parts: Sequence[Part]) -> tuple[list[Part], list[str]]:
    """Paint parts into pixels (b,S,S,3): those that could be, and the problems of the others.

    An image whose own sample cannot be read is black, with nothing of its partners. Where a
    partner cannot be read, its tile has the fill colour, or the blend does not take place.
    """
    painted: list[Part] = []
    problems: list[str] = []
    for row, image in itertools.groupby(parts, key=lambda part: part.piece.row):
        for number, part in enumerate(image):
            try:
                part.paint(pixels[row])
                painted.append(part)
            except ImageError as error:
                problems.append(f"{part.raw.where}: {error}")
                if number == 0:
                    pixels[row] = 0
                    break
                if part.piece.weight == 1.0:
                    left, top, width, height = part.piece.tile
                    pixels[row, top : top + height, left : left + width] = FILL
    return painted, problems


def _valid(
    parts: Sequence[Part], painted: Sequence[Part], count: int
) -> tuple[np.ndarray, list[str]]:
    """Which of ``count`` images are valid (b,), and their names or where they were to be found."""
    own = {part.piece.row: part for part in reversed(parts)}  # the first of each image
    valid = np.zeros(count, bool)
    valid[[part.piece.row for part in painted]] = True
    ids = [
        part.sample.image_id if part.sample and valid[row] else part.raw.where
        for row, part in sorted(own.items())
    ]
    return valid, ids


def _objects(parts: Sequence[Part], count: int) -> tuple[np.ndarray, ...]:
    """Boxes (b,M,4), labels (b,M) and crowd regions (b,K,4) of ``count`` images, padded."""
    found = [(part, part.sample) for part in parts if part.sample and part.sample.boxes]
    if not found:
        none = np.zeros((count, 0, 4), np.float32)
        return none, np.zeros((count, 0), np.int64), none
    lengths = [len(sample.boxes) for _, sample in found]
    rows = np.repeat([part.piece.row for part, _ in found], lengths)
    corners = flat(box for _, sample in found for box in sample.boxes)
    labels = np.fromiter(flat(sample.labels for _, sample in found), np.int64)
    crowd = np.fromiter(flat(sample.crowd for _, sample in found), bool)
    places = np.fromiter(flat(place(part.plan, *part.piece.tile) for part, _ in found), np.float64)
    boxes, keep = move_boxes(
        np.fromiter(corners, np.float64).reshape(-1, 4),
        np.repeat(places.reshape(-1, 8).T, lengths, axis=1),
        ~crowd,
    )
    objects, regions = keep & ~crowd, keep & crowd
    return (
        *_padded(rows[objects], count, (boxes[objects], 0), (labels[objects], -1)),
        *_padded(rows[regions], count, (boxes[regions], 0)),
    )


def _padded(rows: np.ndarray, count: int, *columns: tuple[np.ndarray, int]) -> Iterator[np.ndarray]:
    """Columns of values (K,...), ordered by their rows, as (count, most in any row, ...)."""
    lengths = np.bincount(rows, minlength=count)
    places = rows, np.arange(len(rows)) - (np.cumsum(lengths) - lengths)[rows]
    for values, filler in columns:
        shape = count, lengths.max(initial=0), *values.shape[1:]
        out = np.full(shape, filler, values.dtype)
        out[places] = values
        yield out
