"""Measure the memory of the process that runs a conversion, without pixels.

    python -m benchmarks.scale_conversion

Each row is from a fresh process. "plan" plans the shards of generated images, reads a result for
each shard, counts a problem for one image in a hundred, and writes the manifest: all that
`jobs.prepare` does except for writing the images and searching near duplicates. "search" searches
near duplicates among random hashes, in more than one piece; it compares each hash with one
neighbour only, which takes less time and as much memory. The two do not overlap: the ids of the
plan are freed before the search. The memory of a larger set follows from the two rows of each.
Sources that list files or parse a JSON need more; see docs/scaling.md.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pipeline.data.conversion import convert, near_duplicates
from pipeline.data.conversion.checks.counts import ObjectCounts
from pipeline.data.conversion.image_hashes import ImageHashes
from pipeline.data.conversion.shard_task import RESULT_FILE, ShardResult, ShardTask, WrittenShard
from pipeline.data.shards.manifest import Shard
from pipeline.data.shards.problems import Problem
from pipeline.data.sources.synthetic import shapes_source

RESULTS = Path(__file__).parent / "results" / "scale_conversion.json"
SIZES = {"plan": (600_000, 1_200_000), "search": (2_500_000, 4_000_000)}
TARGET = 100_000_000
LIMIT_MB = 2000
IMAGES_PER_PROBLEM = 100


def main() -> None:
    """Measure, extrapolate, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--plan", type=int, nargs=2, default=SIZES["plan"], metavar="N")
    parser.add_argument("--search", type=int, nargs=2, default=SIZES["search"], metavar="N")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        kind, images = options.measure
        print(json.dumps({"kind": kind, "images": int(images), **MEASURES[kind](int(images))}))
        return
    rows: list[dict[str, Any]] = []
    targets: dict[str, int] = {}
    for kind, sizes in (("plan", options.plan), ("search", options.search)):
        for images in sizes:
            command = [sys.executable, "-m", "benchmarks.scale_conversion", "--measure", kind]
            done = subprocess.run([*command, str(images)], check=True, stdout=subprocess.PIPE)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(json.dumps(rows[-1]), flush=True)
        targets[kind] = _extrapolate(*rows[-2:])
    result = {"rows": rows, "images": TARGET, "limit_mb": LIMIT_MB, "peak_mb": targets}
    print(json.dumps({key: result[key] for key in ("images", "limit_mb", "peak_mb")}))
    options.out.write_text(json.dumps(result, indent=1) + "\n")


def _extrapolate(one: dict[str, Any], two: dict[str, Any]) -> int:
    """Return the peak in MB for TARGET images, linear in the number of images."""
    per_image = (two["peak_mb"] - one["peak_mb"]) / (two["images"] - one["images"])
    return round(two["peak_mb"] + per_image * (TARGET - two["images"]))


def _measure_plan(images: int) -> dict[str, Any]:
    """Run a conversion in this process, except for its search; return its peak memory."""
    ShardTask.run = _write_result  # type: ignore[method-assign]
    convert.find_near_duplicates = lambda own, others: iter(())
    source = shapes_source(images, "train")
    start = _peak_mb()
    with tempfile.TemporaryDirectory() as folder:
        manifest = convert.stage_shard_set(
            source.images, [], Path(folder), "x", "train", source.classes, source="shapes"
        ).manifest
    return {
        "start_mb": start,
        "peak_mb": _peak_mb(),
        "shards": len(manifest.shards),
        "problems": sum(manifest.problem_counts.values()),
    }


def _measure_search(images: int) -> dict[str, Any]:
    """Search near duplicates among random hashes; return the peak memory of the process."""
    near_duplicates.MAX_BAND_NEIGHBOURS = 2
    draw = random.Random(0)
    hashes = ImageHashes("x")
    for first in range(0, images, 10_000):
        names = [f"{number:012d}.jpg" for number in range(first, min(first + 10_000, images))]
        hashes.extend(names, [draw.randbytes(16) for _ in names])
    start = _peak_mb()
    found = sum(1 for _ in near_duplicates.find_near_duplicates(hashes, []))
    return {"start_mb": start, "peak_mb": _peak_mb(), "found": found}


def _write_result(task: ShardTask, tick: Any) -> WrittenShard:
    """Write the record of a shard as a task does, with random hashes and without the shard."""
    names = [image.file_name for image in task.images]
    draw = random.Random(task.first_key)
    result = ShardResult(
        input_hash=task.input_hash(),
        shard=Shard(name="shard-000000.tar", samples=len(names), bytes=1, sha256="0" * 64),
        boxes_per_label={0: len(names)},
        samples_without_objects=0,
        counts=ObjectCounts(),
        problems=[
            Problem(file=name, kind="box clipped", reason="reaches outside the image")
            for name in names[::IMAGES_PER_PROBLEM]
        ],
        file_names=names,
        image_hashes=[draw.randbytes(16).hex() for _ in names],
        content_hashes=[draw.randbytes(64).hex() for _ in names],
    )
    folder = Path(task.folder)
    folder.mkdir()
    (folder / RESULT_FILE).write_bytes(result.encode(indent=None))
    return WrittenShard(task.folder, result.input_hash)


def _peak_mb() -> int:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)


MEASURES = {"plan": _measure_plan, "search": _measure_search}

if __name__ == "__main__":
    main()
