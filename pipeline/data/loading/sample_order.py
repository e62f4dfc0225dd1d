"""The global order: one endless stream of samples, fixed by the seed and the manifest alone.

Global batch k is positions [kG, (k+1)G) of the stream, and rank ``t mod W`` reads position t; so
neither the number of workers nor a restart changes what is learned from. Small sets are permuted
whole. Large ones are cut into parts, and shuffled within windows of a few shards, so that a reader
of a part touches few shards at a time.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.data.keyed_rng import permute

WHOLE = 65536
CACHED_WINDOWS = 4096


class Window(NamedTuple):
    """Samples that are shuffled together: window ``number`` of a part, in an epoch."""

    epoch: int
    part: int
    number: int


class Order:
    """Maps stream positions to samples. ``counts``: samples of each shard, in manifest order."""

    def __init__(
        self, counts: Sequence[int] | np.ndarray, seed: int, parts: int = 64, window: int = 4
    ) -> None:
        self.counts = np.asarray(counts, dtype=np.int64)
        self.starts = np.cumsum(self.counts) - self.counts
        self.n = int(self.counts.sum())
        self.seed, self.parts, self.window = seed, parts, window
        self._epochs: OrderedDict[int, _Epoch] = OrderedDict()

    def sample(self, position: int) -> tuple[int, int]:
        """(sample, epoch) at a position of the stream."""
        epoch, i = divmod(position, self.n)
        return self._epoch(epoch).sample(i), epoch

    def partner(self, position: int, draw: float) -> int:
        """A sample of the same window as a position's, chosen by a draw from [0, 1).

        Its shard is one that the reader of this part has at hand anyway.
        """
        epoch, i = divmod(position, self.n)
        window = self._epoch(epoch).neighbours(i)
        return int(window[int(draw * len(window))])

    def window_at(self, position: int) -> Window:
        """The window that holds a position: what is shuffled together."""
        epoch, i = divmod(position, self.n)
        return Window(epoch, *self._epoch(epoch).window_at(i))

    def next_window(self, window: Window) -> Window:
        """What the readers of a window need after it: the next of its part, in the next epoch too.

        In a set that is permuted whole it is the set itself.
        """
        epoch, part, number = window
        if number + 1 < self._epoch(epoch).windows(part):
            return Window(epoch, part, number + 1)
        return Window(epoch + 1, part, 0)

    def shards_of(self, window: Window, position: int = 0) -> list[int]:
        """The shards of a window: as they lie, or, permuted whole, as they are needed.

        ``position``, in a set permuted whole, is the first that will be read.
        """
        return self._epoch(window.epoch).shards_of(window.part, window.number, position % self.n)

    def working_set(self, world_size: int, ranks: int) -> int:
        """At most this many shards are read at a time by ``ranks`` of the ``world_size`` ranks."""
        if self.n <= WHOLE:
            return len(self.counts)
        # Position t is of part t mod P and of rank t mod W, so a rank meets P / gcd(P, W) parts.
        parts = self.parts // math.gcd(self.parts, world_size)
        return min(len(self.counts), min(self.parts, parts * ranks) * self.window)

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            self._epochs[epoch] = (
                _WholeEpoch(self, epoch) if self.n <= WHOLE else _Epoch(self, epoch)
            )
            if len(self._epochs) > 2:  # batches straddle two epochs at most for long
                self._epochs.popitem(last=False)
        return self._epochs[epoch]


class _Epoch:
    """A large set: shards permuted, laid end to end, cut into parts, parts into windows."""

    def __init__(self, order: Order, epoch: int) -> None:
        self.order, self.epoch = order, epoch
        self.shards = permute(len(order.counts), "order", order.seed, epoch)
        self.ends = np.cumsum(order.counts[self.shards])
        self._windows: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._bounds: dict[int, np.ndarray] = {}

    def sample(self, i: int) -> int:
        """Sample at place ``i`` of the epoch: parts take turns."""
        part, number = self.window_at(i)
        bounds = self._part_bounds(part)
        position = int(bounds[0]) + i // self.order.parts
        return int(self._window(part, number)[position - int(bounds[number])])

    def neighbours(self, i: int) -> np.ndarray:
        """All samples of the window that place ``i`` lies in."""
        return self._window(*self.window_at(i))

    def window_at(self, i: int) -> tuple[int, int]:
        """(part, window) of place ``i`` of the epoch."""
        place, part = divmod(i, self.order.parts)
        bounds = self._part_bounds(part)
        return part, int(np.searchsorted(bounds, int(bounds[0]) + place, side="right")) - 1

    def windows(self, part: int) -> int:
        """Number of windows of a part."""
        return len(self._part_bounds(part)) - 1

    def shards_of(self, part: int, number: int, _: int) -> list[int]:
        """The shards of a window, as they lie."""
        begin, end = self._part_bounds(part)[number : number + 2].tolist()
        first, last = np.searchsorted(self.ends, [begin, end - 1], side="right").tolist()
        return list(self.shards[first : last + 1].tolist()) if end > begin else []

    def _part_bounds(self, part: int) -> np.ndarray:
        """Where the windows of a part begin, and the part ends, in the epoch's row of shards."""
        if part not in self._bounds:
            n, parts = self.order.n, self.order.parts
            first = part * (n // parts) + min(part, n % parts)
            last = first + n // parts + (part < n % parts)
            inside = self.ends[(self.ends > first) & (self.ends < last)]
            inner = inside[self.order.window - 1 :: self.order.window]
            self._bounds[part] = np.concatenate(([first], inner, [last]))
        return self._bounds[part]

    def _window(self, part: int, number: int) -> np.ndarray:
        key = part, number
        if key not in self._windows:
            begin, end = self._bounds[part][number : number + 2].tolist()
            shuffle = permute(end - begin, "windows", self.order.seed, self.epoch, part, number)
            self._windows[key] = self._samples(begin, end)[shuffle]
            if len(self._windows) > CACHED_WINDOWS:
                self._windows.popitem(last=False)
        self._windows.move_to_end(key)
        return self._windows[key]

    def _samples(self, begin: int, end: int) -> np.ndarray:
        """Samples at [begin, end) of the epoch's row of shards."""
        positions = np.arange(begin, end)
        places = np.searchsorted(self.ends, positions, side="right")
        shards = self.shards[places]
        within = positions - (self.ends[places] - self.order.counts[shards])
        return self.order.starts[shards] + within


class _WholeEpoch(_Epoch):
    """A small set: one permutation. Part p is ``o[p::P]``, so taking turns gives o itself."""

    def __init__(self, order: Order, epoch: int) -> None:
        self.order = order
        self.samples = permute(order.n, "order", order.seed, epoch)

    def sample(self, i: int) -> int:
        """Sample at place ``i`` of the epoch."""
        return int(self.samples[i])

    def neighbours(self, i: int) -> np.ndarray:
        """All samples: the whole set is one window."""
        return self.samples

    def window_at(self, i: int) -> tuple[int, int]:
        """The whole set is one window."""
        return 0, 0

    def windows(self, part: int) -> int:
        """The whole set is one window."""
        return 1

    def shards_of(self, part: int, number: int, i: int) -> list[int]:
        """All shards, those first that are needed first from place ``i`` on."""
        ends = self.order.starts + self.order.counts
        shards = np.searchsorted(ends, np.roll(self.samples, -i), side="right")
        return list(dict.fromkeys(shards.tolist()))


def total_steps(epochs: float, n: int, batch: int) -> int:
    """Steps of a training: ceil(epochs n / batch)."""
    # The slack keeps 0.1 + 0.2 epochs from costing a step.
    return math.ceil(epochs * n / batch - 1e-9)


def epoch_end(epoch: int, n: int, batch: int) -> int:
    """Number of steps after which epoch ``epoch`` (from 0) is over."""
    return -(-(epoch + 1) * n // batch)


def share(step: int, batch: int, rank: int, world_size: int) -> range:
    """Positions of global batch ``step`` that a rank reads: those with ``t mod W = rank``."""
    begin = step * batch
    return range(begin + (rank - begin) % world_size, begin + batch, world_size)
