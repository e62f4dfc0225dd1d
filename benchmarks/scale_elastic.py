"""Count the reads of a whole cluster that lost ranks, in two epochs, without pixels.

A part of `benchmarks.scale`. The global batch stays that of the full cluster. Every position of
every batch is assigned to its rank, so the counts are exact: a shard is fetched once per epoch by
each node that needs a sample of it, if the node's cache holds its working set.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pipeline.data.loading.rank_share import position_ranks, working_set
from pipeline.data.loading.sample_order import SampleOrder

# samples, shards, parts, window, images in a global batch, ranks
CLUSTERS = (
    (1_000_000, 1_000, 64, 4, 512, (64, 63, 62, 60)),
    (10_000_000, 10_000, 256, 4, 2048, (256, 255, 248)),
    (1_000_000, 1_000, 64, 4, 500, (62,)),  # a batch that the parts do not divide
    (1_000_000, 1_000, 64, 4, 512, (72,)),  # more ranks than parts
)
RANKS_PER_NODE = 8
EPOCHS = 2


def count_elastic_reads(make_counts: Callable[[int, int], np.ndarray]) -> list[dict[str, Any]]:
    """Return one row per cluster and number of ranks; print each.

    ``make_counts`` returns samples per shard (shards,) for a number of samples and of shards.
    """
    rows = []
    for samples, shards, parts, window, batch, sizes in CLUSTERS:
        counts = make_counts(samples, shards)
        order = SampleOrder(counts, 0, parts, window)
        shard_of = np.concatenate([_shards(order, epoch) for epoch in range(EPOCHS)])
        for ranks in sizes:
            row = {
                "samples": samples,
                "shards": shards,
                "parts": parts,
                "window": window,
                "batch": batch,
                "ranks": ranks,
                **_count_reads(order, shard_of, batch, ranks),
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def _shards(order: SampleOrder, epoch: int) -> np.ndarray:
    """Return the shard (N,) of each position of an epoch, window by window."""
    shards = np.empty(order.n, np.int32)
    starts = np.cumsum(order.counts) - order.counts
    windows = order._epoch(epoch)
    for part in range(order.parts):
        at = part
        while at < order.n:
            samples = windows.window_samples(at)
            end = at + len(samples) * order.parts
            shards[at : end : order.parts] = np.searchsorted(starts, samples, side="right") - 1
            at = end
    return shards


def _count_reads(
    order: SampleOrder, shard_of: np.ndarray, batch: int, ranks: int
) -> dict[str, Any]:
    """Return fetches per shard and epoch: dealt in shares, and if all ranks took turns."""
    nodes = -(-ranks // RANKS_PER_NODE)
    total = EPOCHS * len(order.counts)
    by_rank, by_node, in_turn = (np.zeros((n, total), bool) for n in (ranks, nodes, nodes))
    parts = np.zeros((nodes, EPOCHS * order.parts), bool)
    for step, steps_shards, epochs, within in _batches(order, shard_of, batch):
        readers = position_ranks(order, step, batch, ranks)[: len(within)]
        shards = epochs * len(order.counts) + steps_shards
        by_rank[readers, shards] = True
        by_node[readers // RANKS_PER_NODE, shards] = True
        turns = np.arange(step * batch, step * batch + len(within)) % ranks
        in_turn[turns // RANKS_PER_NODE, shards] = True
        parts[readers // RANKS_PER_NODE, epochs * order.parts + within % order.parts] = True
    shards_per_node = by_node.reshape(nodes, EPOCHS, -1).sum(2)
    return {
        "fetches_per_shard": {
            "cache_per_node": round(by_node.sum() / total, 4),
            "cache_per_rank": round(by_rank.sum() / total, 4),
            "cache_per_node_in_turn": round(in_turn.sum() / total, 4),
        },
        "shards_per_node": {
            "min": int(shards_per_node.min()),
            "mean": round(float(shards_per_node.mean()), 1),
            "max": int(shards_per_node.max()),
        },
        "parts_per_node_max": int(parts.reshape(nodes, EPOCHS, -1).sum(2).max()),
        "shards_at_a_time": working_set(order, batch, ranks, RANKS_PER_NODE),
    }


def _batches(
    order: SampleOrder, shard_of: np.ndarray, batch: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield each step with shards, epochs and positions within the epoch (G,); the last is cut."""
    for step, begin in enumerate(range(0, len(shard_of), batch)):
        positions = np.arange(begin, min(begin + batch, len(shard_of)))
        yield step, shard_of[positions], *np.divmod(positions, order.n)
