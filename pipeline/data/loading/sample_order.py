"""The global order: one endless stream of samples, fixed by the seed and the manifest alone.

With N samples, P parts and global batches of G samples:

    order(e):   if N <= 65536:  o = permute(range(N), seed, e);  [o[p::P] for p in range(P)]
                else:  the samples of permute(shards, seed, e), end to end, are cut into P parts
                       (the first N mod P get one more), each part into windows of a few shards,
                       and each window is shuffled by (seed, e, part, window)
    sample(t):  e, i = divmod(t, N);  order(e)[i % P][i // P], e

With `data.repeat_threshold` the samples of an epoch are N draws instead, in which a sample may be
repeated or absent (`repeat_sampling.py`); a shard then has as many places as it has draws.

Global batch k is positions [kG, (k+1)G); `rank_share.py` divides them among the ranks. Neither the
number of workers nor a restart changes the samples of a step, and a reader of one part needs few
shards at a time.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.data.keyed_rng import permute
from pipeline.data.loading.repeat_sampling import Draws, EpochDraws

MAX_PERMUTED_WHOLE = 65536  # samples; larger sets are shuffled in windows
MAX_CACHED_WINDOWS = 4096


class Window(NamedTuple):
    """Samples that are shuffled together: window ``number`` of a part, in an epoch."""

    epoch: int
    part: int
    number: int


class SampleOrder:
    """Map positions in the stream to samples. ``counts``: samples per shard, in manifest order.

    ``weights`` (N,) are those of `repeat_weights`; None: every sample once per epoch.
    """

    def __init__(
        self,
        counts: Sequence[int] | np.ndarray,
        seed: int,
        parts: int = 64,
        window: int = 4,
        weights: np.ndarray | None = None,
    ) -> None:
        self.counts = np.asarray(counts, dtype=np.int64)  # (S,)
        self.starts = np.cumsum(self.counts) - self.counts  # (S,)
        self.n = int(self.counts.sum())
        self.seed, self.parts, self.window = seed, parts, window
        self.weights = weights
        self._epochs: OrderedDict[int, _Epoch] = OrderedDict()

    @property
    def is_permuted_whole(self) -> bool:
        """Return whether an epoch is one permutation of all samples, which ignores the shards."""
        return self.n <= MAX_PERMUTED_WHOLE

    def sample(self, position: int) -> tuple[int, int]:
        """Return the (sample, epoch) at a position of the stream."""
        epoch, i = divmod(position, self.n)
        return self._epoch(epoch).sample(i), epoch

    def repeat(self, position: int) -> int:
        """Return how many earlier draws of the epoch took the sample at a position."""
        if self.weights is None:
            return 0
        epoch, i = divmod(position, self.n)
        return self._epoch(epoch).repeat(i)

    def partner(self, position: int, draw: float) -> int:
        """Return a sample from the window of a position, chosen by a draw from [0, 1).

        The reader of the part already has its shard open.
        """
        epoch, i = divmod(position, self.n)
        window = self._epoch(epoch).window_samples(i)
        return int(window[int(draw * len(window))])

    def window_at(self, position: int) -> Window:
        """Return the window that contains a position."""
        epoch, i = divmod(position, self.n)
        return Window(epoch, *self._epoch(epoch).window_at(i))

    def next_window(self, window: Window) -> Window:
        """Return the window that follows in the same part, in the next epoch if it was the last.

        A set that is permuted whole is a single window per epoch.
        """
        epoch, part, number = window
        if number + 1 < self._epoch(epoch).window_count(part):
            return Window(epoch, part, number + 1)
        return Window(epoch + 1, part, 0)

    def shards_of(self, window: Window, position: int = 0) -> list[int]:
        """Return the shards of a window, in the order of the epoch.

        In a set that is permuted whole they are ordered by first use from ``position`` on.
        """
        return self._epoch(window.epoch).shards_of(window.part, window.number, position % self.n)

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            kind = _PermutedEpoch if self.is_permuted_whole else _WindowedEpoch
            self._epochs[epoch] = kind(self, epoch)
            if len(self._epochs) > 2:  # a batch is in two epochs at most, except for tiny sets
                self._epochs.popitem(last=False)
        return self._epochs[epoch]


class _PermutedEpoch:
    """An epoch of a small set: one permutation o. Part p is ``o[p::P]``, so sample i is o[i]."""

    def __init__(self, order: SampleOrder, epoch: int) -> None:
        self.order = order
        self.drawn = Draws(permute(order.n, "order", order.seed, epoch))  # (N,)
        if order.weights is not None:
            whole = np.zeros(1, np.int64), np.array([order.n]), np.zeros(1, np.int64)
            draws = EpochDraws(order.weights, *whole, order.seed, epoch)
            self.drawn = draws.between(0, order.n).take(self.drawn.samples)

    def sample(self, i: int) -> int:
        """Return the sample at index ``i`` of the epoch."""
        return int(self.drawn.samples[i])

    def repeat(self, i: int) -> int:
        """Return how many earlier draws took the sample at index ``i``."""
        return self.drawn.repeat(i)

    def window_samples(self, i: int) -> np.ndarray:
        """Return all samples (N,): the set is one window."""
        return self.drawn.samples

    def window_at(self, i: int) -> tuple[int, int]:
        """Return the only (part, window number)."""
        return 0, 0

    def window_count(self, part: int) -> int:
        """Return 1: the set is one window."""
        return 1

    def shards_of(self, part: int, number: int, i: int) -> list[int]:
        """Return all shards, ordered by first use from index ``i`` of the epoch on."""
        ends = self.order.starts + self.order.counts  # (S,)
        upcoming = np.roll(self.drawn.samples, -i)  # (N,)
        shards = np.searchsorted(ends, upcoming, side="right")  # (N,)
        return list(dict.fromkeys(shards.tolist()))


class _WindowedEpoch:
    """An epoch of a large set: permuted shards end to end, cut into parts, parts into windows.

    A *row position* counts samples, or draws, along the permuted shards before any window is
    shuffled.
    """

    def __init__(self, order: SampleOrder, epoch: int) -> None:
        self.order, self.epoch = order, epoch
        self.shards = permute(len(order.counts), "order", order.seed, epoch)  # (S,)
        self.draws = None
        if order.weights is not None:
            self.draws = EpochDraws(
                order.weights, order.starts, order.counts, self.shards, order.seed, epoch
            )
            self.ends = self.draws.ends  # (S,) row positions; equal where a shard has no draw
        else:
            self.ends = np.cumsum(order.counts[self.shards])  # (S,) row positions
        self._windows: OrderedDict[tuple[int, int], Draws] = OrderedDict()
        self._bounds: dict[int, np.ndarray] = {}

    def sample(self, i: int) -> int:
        """Return the sample at index ``i`` of the epoch: ``i // P`` of part ``i % P``."""
        window, place = self._place(i)
        return int(window.samples[place])

    def repeat(self, i: int) -> int:
        """Return how many earlier draws took the sample at index ``i``."""
        window, place = self._place(i)
        return window.repeat(place)

    def _place(self, i: int) -> tuple[Draws, int]:
        part, number = self.window_at(i)
        bounds = self._part_bounds(part)
        position = int(bounds[0]) + i // self.order.parts
        return self._window(part, number), position - int(bounds[number])

    def window_samples(self, i: int) -> np.ndarray:
        """Return all samples of the window that contains index ``i`` of the epoch."""
        return self._window(*self.window_at(i)).samples

    def window_at(self, i: int) -> tuple[int, int]:
        """Return the (part, window number) of index ``i`` of the epoch."""
        within_part, part = divmod(i, self.order.parts)
        bounds = self._part_bounds(part)
        position = int(bounds[0]) + within_part
        return part, int(np.searchsorted(bounds, position, side="right")) - 1

    def window_count(self, part: int) -> int:
        """Return the number of windows of a part."""
        return len(self._part_bounds(part)) - 1

    def shards_of(self, part: int, number: int, i: int) -> list[int]:
        """Return the shards of a window, in the order of the epoch."""
        begin, end = self._part_bounds(part)[number : number + 2].tolist()
        first, last = np.searchsorted(self.ends, [begin, end - 1], side="right").tolist()
        if end <= begin:
            return []
        drawn = np.diff(self.ends[first : last + 1], prepend=-1) > 0  # the first one is
        return list(self.shards[first : last + 1][drawn].tolist())

    def _part_bounds(self, part: int) -> np.ndarray:
        """Return the row positions (windows + 1,) where windows begin and the part ends."""
        if part not in self._bounds:
            # P parts of equal length; the first N mod P get one sample more.
            n, parts = self.order.n, self.order.parts
            first = part * (n // parts) + min(part, n % parts)
            last = first + n // parts + (part < n % parts)
            # Windows end at every window-th end of a shard within the part.
            inside = np.unique(self.ends[(self.ends > first) & (self.ends < last)])
            inner = inside[self.order.window - 1 :: self.order.window]
            self._bounds[part] = np.concatenate(([first], inner, [last]))  # (windows + 1,)
        return self._bounds[part]

    def _window(self, part: int, number: int) -> Draws:
        """Return the shuffled samples of a window."""
        key = part, number
        if key not in self._windows:
            begin, end = self._bounds[part][number : number + 2].tolist()
            shuffle = permute(end - begin, "windows", self.order.seed, self.epoch, part, number)
            self._windows[key] = self._samples(begin, end).take(shuffle)  # (end - begin,)
            if len(self._windows) > MAX_CACHED_WINDOWS:
                self._windows.popitem(last=False)
        self._windows.move_to_end(key)
        return self._windows[key]

    def _samples(self, begin: int, end: int) -> Draws:
        """Return the samples at row positions [begin, end)."""
        if self.draws is not None:
            return self.draws.between(begin, end)

        # The shard that covers each row position.
        positions = np.arange(begin, end)  # (end - begin,)
        places = np.searchsorted(self.ends, positions, side="right")  # (end - begin,)
        shards = self.shards[places]  # (end - begin,)
        # The sample's number: that of the shard's first sample, plus its distance to it.
        within = positions - (self.ends[places] - self.order.counts[shards])  # (end - begin,)
        return Draws(self.order.starts[shards] + within)  # (end - begin,)


_Epoch = _PermutedEpoch | _WindowedEpoch


def total_steps(epochs: float, n: int, batch: int) -> int:
    """Return the steps of a training: ceil(epochs N / G)."""
    # The slack keeps 0.1 + 0.2 epochs from costing a step.
    return math.ceil(epochs * n / batch - 1e-9)


def epoch_end(epoch: int, n: int, batch: int) -> int:
    """Return the step at which epoch ``epoch`` (from 0) ends: ceil((epoch + 1) N / G)."""
    return -(-(epoch + 1) * n // batch)
