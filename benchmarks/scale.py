"""Plan epochs of very large sets, and simulate their reads.

    python -m benchmarks.scale [--only sets|elastic]

For each set a manifest is written as a conversion would write it and served over HTTP. A fresh
process does what a rank does before its first batch: it fetches and reads the manifest, builds the
loader, computes the hash that checkpoints hold, and finds its samples, at the start and in the
middle of an epoch. Its time and memory are measured. Then ranks go through an epoch without pixels,
and their reads are counted: how many shards, how often a shard is already in a cache that evicts
the least recently used ones, and how evenly the ranks share the shards. Last, the reads of whole
clusters are counted that have lost ranks (scale_elastic.py).
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.scale_elastic import count_elastic_reads
from pipeline.config import Config
from pipeline.data import build_train_loader
from pipeline.data.loading.prefetch_plan import open_shards
from pipeline.data.loading.rank_share import rank_positions
from pipeline.data.loading.sample_order import SampleOrder
from pipeline.data.shards.manifest import MANIFEST, Manifest

RESULTS = Path(__file__).parent / "results" / "scale.json"
# samples, shards, ranks, parts, window: at least as many parts as ranks; windows of one shard for
# remote shards, of four for local ones.
SETS = (
    (100_000, 100, 8, 64, 4),
    (1_000_000, 1_000, 64, 64, 4),
    (10_000_000, 10_000, 512, 512, 1),
    (100_000_000, 100_000, 4096, 4096, 1),
    (1_000_000_000, 1_000_000, 64, 64, 4),
    (1_000_000_000, 1_000_000, 4096, 4096, 4),
    (1_000_000_000, 1_000_000, 4096, 4096, 1),
)
IMAGES_PER_RANK = 8  # in a global batch
RANKS_PER_NODE = 8
SIMULATED_RANKS = 4
SIMULATED_SAMPLES = 100_000  # at most, per rank
SHARD_BYTES = 50_000_000


def main() -> None:
    """Plan and simulate; print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--max-samples", type=int, default=10**9, help="skip larger sets; for a quick check"
    )
    parser.add_argument("--only", choices=["sets", "elastic"], help="keep the other results")
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        print(json.dumps(_plan(**json.loads(options.rank))))
        return
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    if options.only != "elastic":
        results |= _measure_sets(options.max_samples)
    if options.only != "sets":
        results["elastic"] = count_elastic_reads(_counts)
    options.out.write_text(json.dumps(results, indent=1) + "\n")


def _measure_sets(max_samples: int) -> dict[str, Any]:
    """Plan and simulate each set of at most so many samples; print each row."""
    rows = []
    for samples, shards, ranks, parts, window in SETS:
        if samples > max_samples:
            continue
        with tempfile.TemporaryDirectory() as folder:
            counts = _counts(samples, shards)
            size = _write_manifest(Path(folder), counts)
            with _served(folder) as uri:
                task = {"uri": uri, "ranks": ranks, "parts": parts, "window": window}
                plans = [
                    _plan_in_fresh_process({**task, "rank": rank})
                    for rank in (0, ranks // 2, ranks - 1)
                ]
        row = {
            "samples": samples,
            "shards": shards,
            "ranks": ranks,
            "parts": parts,
            "window": window,
            "manifest_mb": round(size / 1e6, 1),
            **{key: max(plan[key] for plan in plans) for key in plans[0]},
            **_simulate_reads(counts, ranks, parts, window),
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "load": round(os.getloadavg()[1], 1),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "measured": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    return {"rows": rows, "machine": machine}


def _counts(samples: int, shards: int) -> np.ndarray:
    """Return samples per shard (shards,) that differ by about a tenth, as if limited by bytes."""
    draws = np.random.default_rng(0).normal(1, 0.1, shards).clip(0.5, 1.5)
    ends = np.round(np.cumsum(draws) * samples / draws.sum()).astype(np.int64)
    return np.diff(ends, prepend=0)


def _write_manifest(folder: Path, counts: np.ndarray) -> int:
    """Write a manifest of such shards, row by row; return its size in bytes."""
    tree = {
        "format_version": Manifest.FORMAT_VERSION,
        "name": "large",
        "split": "train",
        "source": "coco",
        "fingerprint": "0",
        "classes": ["object"],
        "samples": int(counts.sum()),
        "samples_without_objects": 0,
        "boxes": 0,
        "boxes_per_class": {"object": 0},
        "problem_counts": {},
    }
    path = folder / MANIFEST
    with path.open("w") as file:
        file.write(json.dumps(tree)[:-1] + ', "shards": [')
        for number, count in enumerate(counts.tolist()):
            shard = {
                "name": f"shard-{number:06d}.tar",
                "samples": count,
                "bytes": SHARD_BYTES,
                "sha256": hashlib.sha256(str(number).encode()).hexdigest(),
            }
            file.write((",\n" if number else "\n") + json.dumps(shard))
        file.write("]}\n")
    return path.stat().st_size


@contextlib.contextmanager
def _served(folder: str) -> Iterator[str]:
    """Yield the URL of a folder that a separate process serves on loopback."""
    server = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "-d", folder]
    process = subprocess.Popen(server, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        port = process.stdout.readline().split(" port ")[1].split()[0]
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _plan_in_fresh_process(task: dict[str, Any]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.scale", "--rank", json.dumps(task)]
    node = {"LOCAL_WORLD_SIZE": str(min(task["ranks"], RANKS_PER_NODE))}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env={**os.environ, **node})
    return dict(json.loads(done.stdout))


def _plan(uri: str, ranks: int, parts: int, window: int, rank: int) -> dict[str, float]:
    """Do what a rank does before its first batch, and again in the middle of the third epoch."""
    batch = IMAGES_PER_RANK * ranks
    fields = {"data.parts": parts, "data.window": window, "train.batch_size": batch}
    with tempfile.TemporaryDirectory() as cache:
        config = Config().replace({**fields, "data.cache": cache})
        before = _peak_mib()
        marks = [time.perf_counter()]
        cpu = time.process_time()
        shards = open_shards(uri, config)
        marks.append(time.perf_counter())
        order = build_train_loader(shards, config, rank, ranks).order
        marks.append(time.perf_counter())
        assert shards.manifest.content_hash
        marks.append(time.perf_counter())
        for step in (0, int(2.5 * len(shards)) // batch):
            for position in rank_positions(order, step, batch, rank, ranks):
                order.sample(position)
            marks.append(time.perf_counter())
    manifest_s, loader_s, hash_s, first_s, resumed_s = np.diff(marks).round(2).tolist()
    return {
        "manifest_s": manifest_s,
        "loader_s": loader_s,
        "hash_s": hash_s,
        "first_batch_s": first_s,
        "resumed_batch_s": resumed_s,
        "planning_s": round(marks[-1] - marks[0], 2),
        "planning_cpu_s": round(time.process_time() - cpu, 2),
        "planning_mib": round(_peak_mib() - before),
        "process_mib": round(_peak_mib()),
    }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _simulate_reads(counts: np.ndarray, ranks: int, parts: int, window: int) -> dict[str, Any]:
    """Count the reads of a few ranks in the first epoch, or its first samples, without pixels."""
    order = SampleOrder(counts, 0, parts, window)
    starts = np.cumsum(counts) - counts
    chosen = sorted(
        {round(k * (ranks - 1) / (SIMULATED_RANKS - 1)) for k in range(SIMULATED_RANKS)}
    )
    hits: dict[str, list[float]] = {}
    parts_per_rank = parts // math.gcd(parts, ranks) if ranks < parts else 1
    streams = max(1, parts // ranks)
    for rank in chosen:
        positions = range(rank, order.n, ranks)[:SIMULATED_SAMPLES]
        samples = np.array([order.sample(t)[0] for t in positions])
        shards = (np.searchsorted(starts, samples, side="right") - 1).tolist()
        for name, capacity in (("one", 1), ("window", window), ("window_and_next", window + 1)):
            hits.setdefault(name, []).append(_hit_rate(shards, capacity * streams))
    ends = np.cumsum(counts[order._epoch(0).shards]) if hasattr(order._epoch(0), "shards") else None
    return {
        "samples_per_rank": [order.n // ranks, -(-order.n // ranks)],
        "parts_per_rank": parts_per_rank,
        "shards_per_rank": _shards_per_rank(order, ends, ranks),
        "hit_rate": {name: round(float(np.mean(values)), 5) for name, values in hits.items()},
        "hit_rate_shuffled_whole": round(min(1.0, (window + 1) * streams / len(counts)), 6),
    }


def _shards_per_rank(
    order: SampleOrder, ends: np.ndarray | None, ranks: int
) -> dict[str, Any] | None:
    """Return the shards that a rank's parts overlap: minimum, mean and maximum over all ranks."""
    if ends is None:
        return None
    n, parts = order.n, order.parts
    cuts = np.array([p * (n // parts) + min(p, n % parts) for p in range(parts + 1)])
    first = np.searchsorted(ends, cuts[:-1], side="right")
    last = np.searchsorted(ends, cuts[1:] - 1, side="right")
    # In the first epoch position t belongs to part t mod P and to rank t mod W.
    of_rank = [range(rank % parts, parts, math.gcd(parts, ranks)) for rank in range(ranks)]
    overlapped = [int((last - first + 1)[list(own)].sum()) for own in of_rank]
    return {
        "min": min(overlapped),
        "mean": round(float(np.mean(overlapped)), 1),
        "max": max(overlapped),
        "fetches_per_shard": round(sum(overlapped) / len(ends), 4),
    }


def _hit_rate(shards: list[int], capacity: int) -> float:
    """Return the share of reads whose shard is one of the ``capacity`` last used ones."""
    cache: OrderedDict[int, None] = OrderedDict()
    fetched = 0
    for shard, run in itertools.groupby(shards):
        del run
        if shard in cache:
            cache.move_to_end(shard)
            continue
        fetched += 1
        cache[shard] = None
        if len(cache) > capacity:
            cache.popitem(last=False)
    return 1 - fetched / len(shards)


if __name__ == "__main__":
    main()
