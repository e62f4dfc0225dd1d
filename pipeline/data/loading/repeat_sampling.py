"""Repeat-factor sampling: images of rare classes are drawn more often, others less.

With f(c) the fraction of images that have class c, image i has the factor

    r(i) = max over its classes of max(1, sqrt(threshold / f(c)));  1 without objects

An epoch keeps its N draws. They are divided by systematic sampling along the shards in the order of
the epoch, with the samples of each shard permuted (a set that is permuted whole is one shard here):

    w(i) = round(65536 r(i)),  W = sum of w,  u = a random integer below W for (seed, epoch)
    draw j takes the sample in whose interval of the cumulative w the integer (j W + u) // N falls

So sample i is drawn floor(N w(i) / W) times or once more, and N w(i) / W times on average over
epochs. All of it is integer arithmetic and gives the same draws on every machine.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.data.keyed_rng import bit_generator, permute
from pipeline.data.shards.image_classes import parse_image_classes, read_image_classes
from pipeline.data.shards.manifest import Manifest
from pipeline.errors import UserError

UNIT = 2**16  # the weight of factor 1


class Draws(NamedTuple):
    """Samples in an order, and for each how many earlier draws of the epoch took the same."""

    samples: np.ndarray  # (n,)
    repeats: np.ndarray | None = None  # (n,); None: no sample is repeated

    def take(self, places: np.ndarray) -> Draws:
        """Return the draws at these places (m,)."""
        return Draws(self.samples[places], None if self.repeats is None else self.repeats[places])

    def repeat(self, place: int) -> int:
        """Return how many earlier draws of the epoch took the sample at a place."""
        return 0 if self.repeats is None else int(self.repeats[place])


def check_image_classes(uri: str, manifest: Manifest) -> None:
    """Raise UserError if a set does not have the classes of its images."""
    if manifest.image_classes is None:
        raise UserError(
            f"{uri}: was made by an earlier version, without the classes of each image, which "
            f"data.repeat_threshold needs; add them with python -m jobs.shards upgrade {uri}"
        )


def read_repeat_weights(
    uri: str, manifest: Manifest, threshold: float, retries: int
) -> np.ndarray | None:
    """Return the weight of each image of a set (N,), uint32; None if all have the same.

    Raises UserError if their classes are not available, OutageError if the store does not respond.
    """
    if not threshold:
        return None
    check_image_classes(uri, manifest)
    assert manifest.image_classes is not None
    data = read_image_classes(uri, manifest.image_classes, retries)
    classes = len(manifest.classes)
    try:
        labels, starts = parse_image_classes(data, classes, manifest.samples)
    except ValueError as error:
        raise UserError(f"{uri}: {error}; run python -m jobs.shards upgrade {uri}") from None
    weights = repeat_weights(labels, starts, classes, threshold)
    return weights if weights.max() > UNIT else None


def repeat_weights(
    labels: np.ndarray, starts: np.ndarray, classes: int, threshold: float
) -> np.ndarray:
    """Return the weight of each image (N,), uint32.

    ``labels`` (K,) has those of each image's classes and then the number of ``classes``; images
    begin at ``starts`` (N,).
    """
    images = np.bincount(labels, minlength=classes + 1)[:classes]  # (C,) images with the class
    ratio = threshold * len(starts) / np.maximum(images, 1)  # (C,)
    factors = np.append(np.sqrt(np.maximum(ratio, 1.0)), 1.0)  # (C + 1,)
    weights = np.round(factors * UNIT).astype(np.uint32)
    return np.maximum.reduceat(weights[labels], starts)  # (N,)


def describe_repeats(weights: np.ndarray | None, threshold: float) -> str:
    """Return a line on how often images are drawn with these weights (N,)."""
    if weights is None:
        return (
            f"data.repeat_threshold {threshold:g} changes nothing: at least that fraction of the "
            "images has each class"
        )
    often = weights / weights.mean()  # (N,) draws per epoch
    share = float(np.mean(weights > UNIT))
    return (
        f"data.repeat_threshold {threshold:g}: images are drawn {often.min():.2f} to "
        f"{often.max():.2f} times per epoch; {100 * share:.1f} % have a class below the threshold"
    )


class EpochDraws:
    """The draws of one epoch, as many as there are samples, from one shard after the other.

    ``starts`` and ``counts`` (S,) are those of the samples of each shard, and ``shards`` (S,) is
    the order of the epoch, which `ends` has.
    """

    def __init__(
        self,
        weights: np.ndarray,
        starts: np.ndarray,
        counts: np.ndarray,
        shards: np.ndarray,
        seed: int,
        epoch: int,
    ) -> None:
        self.weights, self.starts, self.counts, self.shards = weights, starts, counts, shards
        self.seed, self.epoch, self.n = seed, epoch, len(weights)
        sums = np.add.reduceat(weights, starts, dtype=np.int64)[shards]  # (S,)
        self.weight_ends = np.cumsum(sums)  # (S,)
        self.total = int(self.weight_ends[-1])
        self.offset = int(bit_generator("repeat", seed, epoch).random_raw()) % self.total
        # The draws whose integer is below the end of a shard; products of N and W exceed 64 bits.
        ends = [-((self.offset - end * self.n) // self.total) for end in self.weight_ends.tolist()]
        self.ends = np.array(ends, np.int64)  # (S,)

    def between(self, begin: int, end: int) -> Draws:
        """Return draws [begin, end), of which there is at least one."""
        first, last = np.searchsorted(self.ends, [begin, end - 1], side="right").tolist()
        shards = [self._shard(place) for place in range(first, last + 1)]
        columns = (np.concatenate(column) for column in zip(*shards, strict=True))  # (n,) each
        skipped = begin - (int(self.ends[first - 1]) if first else 0)
        return Draws(*columns).take(np.arange(skipped, skipped + end - begin))

    def _shard(self, place: int) -> Draws:
        """Return all draws from the shard at a place of the order, in the order of its samples."""
        shard = int(self.shards[place])
        begin, weight_begin = (
            (int(self.ends[place - 1]), int(self.weight_ends[place - 1])) if place else (0, 0)
        )

        # The integer of each draw, from parts that fit into 64 bits.
        draws = np.arange(begin, self.ends[place])  # (n,)
        whole, rest = divmod(self.total, self.n)
        integers = draws * whole + (draws * rest + self.offset) // self.n  # (n,)

        # The sample in whose interval it is.
        shuffle = permute(int(self.counts[shard]), "repeat", self.seed, self.epoch, shard)
        shuffle += self.starts[shard]  # (samples of the shard,)
        weight_ends = weight_begin + np.cumsum(self.weights[shuffle], dtype=np.int64)
        samples = np.sort(shuffle[np.searchsorted(weight_ends, integers, side="right")])  # (n,)
        return Draws(samples, np.arange(len(samples)) - np.searchsorted(samples, samples))
