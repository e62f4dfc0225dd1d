"""Which rank reads which position of a global batch, for any number of ranks.

With N samples, P parts, global batches of G samples and W ranks, where position t of the stream
belongs to part (t mod N) mod P:

    own       the first P - P mod W parts, equally many for each rank. Their positions are dealt to
              the ranks in turn, along the whole stream. A row (one position of each part) has a
              multiple of W of them, so a part keeps its rank for a whole epoch.
    shared    the last P mod W parts. In each batch their positions, part by part, fill the shares
              of rank 0, of rank 1, ... up to G/W: rounded up for the G mod W ranks with the most
              own positions, lower ranks first, and rounded down for the others.

In a batch, positions dealt in turn give a rank at most one more than another. They therefore never
exceed its share, and shares differ by at most one. Neighbouring ranks, usually of one node, read a
shared part together, and the node fetches its shards once. If W divides P, nothing is shared, and
rank t mod W reads position t. The same holds for sets that are permuted whole, where every rank
reads all shards.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.data.loading.sample_order import SampleOrder


def rank_positions(
    order: SampleOrder, step: int, batch: int, rank: int, world_size: int
) -> Sequence[int]:
    """Return the positions of global batch ``step`` that a rank reads, in ascending order."""
    begin = step * batch
    if order.is_permuted_whole or order.parts % world_size == 0:
        return range(begin + (rank - begin) % world_size, begin + batch, world_size)
    mine = position_ranks(order, step, batch, world_size) == rank  # (G,)
    return list((begin + np.flatnonzero(mine)).tolist())


def position_ranks(order: SampleOrder, step: int, batch: int, world_size: int) -> np.ndarray:
    """Return the rank that reads each position (G,) of global batch ``step``."""
    positions = np.arange(step * batch, (step + 1) * batch)  # (G,)
    if order.is_permuted_whole:
        return positions % world_size  # (G,)

    # Own parts in turn. Complete rows do not shift the turns; the last row of each epoch does.
    epochs, within = np.divmod(positions, order.n)  # (G,) each
    parts = within % order.parts  # (G,)
    own_parts = order.parts - order.parts % world_size
    shift = min(order.n % order.parts, own_parts)
    ranks = (epochs * shift + parts) % world_size  # (G,)

    # The size of each share.
    is_own = parts < own_parts  # (G,)
    own = np.bincount(ranks[is_own], minlength=world_size)  # (W,)
    sizes = np.full(world_size, batch // world_size)  # (W,)
    sizes[np.argsort(-own, kind="stable")[: batch % world_size]] += 1

    # Shared parts, one after the other, fill the shares in the order of the ranks.
    shared = np.flatnonzero(~is_own)  # (positions of shared parts,)
    by_part = shared[np.argsort(parts[shared], kind="stable")]
    ranks[by_part] = np.repeat(np.arange(world_size), sizes - own)
    return ranks


def parts_at_a_time(order: SampleOrder, batch: int, world_size: int, ranks: int) -> int:
    """Return how many parts ``ranks`` neighbouring ranks read at most.

    A batch that contains the end of an epoch may add some.
    """
    own, shared = divmod(order.parts, world_size)
    per_part, uneven = divmod(batch, order.parts)
    if not uneven:  # the same shares of the same parts in every batch
        length = ranks * (-(-batch // world_size) - own * per_part)  # shared positions at most
        shared = min(shared, (length + per_part - 2) // per_part + 1)
    return min(order.parts, own * ranks + shared)


def working_set(order: SampleOrder, batch: int, world_size: int, ranks: int) -> int:
    """Return how many shards ``ranks`` neighbouring ranks of ``world_size`` read at a time."""
    if order.is_permuted_whole:
        return len(order.counts)
    parts = parts_at_a_time(order, batch, world_size, ranks)
    return min(len(order.counts), parts * order.window)
