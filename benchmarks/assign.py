"""Time and memory of assignment, compared with a loop over images and objects.

    python -m benchmarks.assign                        # CPU, one thread; several minutes
    python -m benchmarks.assign --device cuda

Each repetition times the loop of `assign_rival`, the assigner and the compiled assigner on the same
batch, one after the other, so that other load on the machine affects all of them. The results are
medians with the 10th and 90th percentile, and ratios within repetitions.
"""

import argparse
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.assign_rival import mutual_guidance_loop
from model import build_detector
from model.anchors import make_anchors
from model.assign import ASSIGNERS, Assigner, Assignment, StaticPart, build_assigner
from model.boxes import decode
from model.loss import DetectionLoss

IMAGE, CLASSES, BATCH = 320, 80, 16
OBJECTS = (3, 8, 20, 100)
MANY_OBJECTS = 500
RESULTS = Path(__file__).parent / "results" / "assign.json"
# A training step as on BCCD: about 13 blood cells of 3 classes per image.
STEP = {"batch": 4, "objects": 13, "classes": 3}

Batch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def make_batch(images: int, objects: int, classes: int, device: str) -> Batch:
    """Return the inputs of an assigner early in training: boxes near their anchors, low scores.

    Objects are 16 to 215 px wide and high, uniform in the logarithm.
    """
    draw = torch.Generator().manual_seed(objects)
    anchors = make_anchors(IMAGE)[0]
    size = 16 * torch.exp(2.6 * torch.rand(images, objects, 2, generator=draw))
    centre = IMAGE * torch.rand(images, objects, 2, generator=draw)
    boxes = torch.cat([centre - size / 2, centre + size / 2], -1).clamp(0, IMAGE)
    labels = torch.randint(0, classes, (images, objects), generator=draw)
    deltas = torch.randn(images, len(anchors), 4, generator=draw)
    scores = torch.sigmoid(torch.randn(images, len(anchors), classes, generator=draw) - 4)
    batch = (anchors, boxes, labels, decode(deltas, anchors), scores)
    return tuple(x.to(device) for x in batch)  # type: ignore[return-value]


def seconds(call: Callable[[], Any], device: str) -> float:
    """Return the time of one call, by the clock of the GPU if there is one."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def interleaved(
    calls: dict[str, Callable[[], Any]], repetitions: int, device: str
) -> dict[str, list[float]]:
    """Return the seconds of each call in each repetition, after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repetition in range(repetitions + 1):
        for name, call in calls.items():
            taken = seconds(call, device)
            if repetition:
                times[name].append(taken)
    return times


def summary(values: list[float], factor: float = 1.0) -> dict[str, float]:
    """Return the median, the 10th and the 90th percentile."""
    cuts = statistics.quantiles(values, n=10, method="inclusive")
    named = {"median": statistics.median(values), "p10": cuts[0], "p90": cuts[-1]}
    return {name: round(value * factor, 3) for name, value in named.items()}


def speed(objects: int, repetitions: int, device: str, compiled: bool) -> dict[str, Any]:
    """Return the milliseconds of Mutual Guidance, and how many times faster than the loop it is."""
    batch = make_batch(BATCH, objects, CLASSES, device)
    assigner = build_assigner("mutual_guidance")
    calls: dict[str, Callable[[], Any]] = {
        "loop": lambda: mutual_guidance_loop(*batch),
        "eager": lambda: assigner(*batch),
    }
    row: dict[str, Any] = {"objects": objects}
    if compiled:
        compiled_assigner = torch.compile(assigner.__call__, fullgraph=True, dynamic=False)
        calls["compiled"] = lambda: compiled_assigner(*batch)
    times = interleaved(calls, repetitions, device)
    row["ms"] = {name: summary(values, 1e3) for name, values in times.items()}
    row["times_faster"] = {
        name: summary([a / b for a, b in zip(times["loop"], values, strict=True)])
        for name, values in times.items()
        if name != "loop"
    }
    return row


def all_assigners(repetitions: int, device: str) -> dict[str, Any]:
    """Return the milliseconds of every assigner with 20 objects per image, eager."""
    batch, strides = make_batch(BATCH, 20, CLASSES, device), make_anchors(IMAGE)[1].to(device)
    assigners = {name: build_assigner(name, anchor_strides=strides) for name in ASSIGNERS}
    calls = {name: lambda a=a: a(*batch) for name, a in assigners.items()}
    times = interleaved(calls, repetitions, device)
    return {name: summary(values, 1e3) for name, values in times.items()}


def memory(device: str) -> dict[str, int]:
    """Return the peak bytes that each assigner allocates with 500 objects per image."""
    strides = make_anchors(IMAGE)[1].to(device)
    batch = make_batch(BATCH, MANY_OBJECTS, CLASSES, device)
    found = {"loop": highest_bytes(lambda: mutual_guidance_loop(*batch), device)}
    for name in ASSIGNERS:
        assigner = build_assigner(name, anchor_strides=strides)
        found[name] = highest_bytes(lambda a=assigner: a(*batch), device)
    return found


def highest_bytes(call: Callable[[], Any], device: str) -> int:
    """Return the peak bytes of tensors that a call allocates."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    events = record.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(itertools.accumulate(size for _, size in changes))


def share_of_a_step(repetitions: int, device: str) -> dict[str, Any]:
    """Return the share of a training step (slim, retinanet) that assignment takes."""
    torch.manual_seed(0)
    detector = build_detector("slim", "retinanet", STEP["classes"], IMAGE).to(device).train()
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-4, momentum=0.9)
    criterion = DetectionLoss(build_assigner("mutual_guidance"))
    images = torch.randint(0, 256, (STEP["batch"], 3, IMAGE, IMAGE), dtype=torch.uint8)
    batch = make_batch(STEP["batch"], STEP["objects"], STEP["classes"], device)
    anchors, boxes, labels = batch[:3]
    images = images.to(device)

    def step() -> None:
        static = criterion.static_part(anchors, boxes, labels)
        assert static is not None
        known = {"normalisers": static.positives, "static": static}
        parts = criterion(detector(images), anchors, boxes, labels, **known)
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()

    def assign(assigner: Assigner) -> None:
        assigner(*batch, static=assigner.static_part(anchors, boxes, labels))

    calls: dict[str, Callable[[], Any]] = {
        "step": step,
        "assignment": lambda: assign(criterion.assigner),
        "loop": lambda: mutual_guidance_loop(*batch),
    }
    times = interleaved(calls, repetitions, device)
    share = [a / b for a, b in zip(times["assignment"], times["step"], strict=True)]
    return {
        **STEP,
        "ms": {name: summary(values, 1e3) for name, values in times.items()},
        "share": summary(share),
    }


class Timed:
    """An assigner that adds up the seconds of its calls."""

    def __init__(self, assigner: Assigner) -> None:
        self.assigner, self.seconds = assigner, 0.0
        self.uses_predictions = assigner.uses_predictions

    def __call__(self, *args: Any, **options: Any) -> Assignment:
        """Return the assignment."""
        return self._timed(self.assigner, *args, **options)

    def static_part(self, *args: Any, **options: Any) -> StaticPart | None:
        """Return the part that depends on no predictions."""
        return self._timed(self.assigner.static_part, *args, **options)

    def _timed(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        begin = time.perf_counter()
        result = call(*args, **options)
        self.seconds += time.perf_counter() - begin
        return result


def share_of_real_training(shards: str, steps: int) -> dict[str, Any]:
    """Return this share in steps of `configs/bccd.yaml` on the CPU, without data loading.

    All steps have the recipe's full size, 320 px. Its `data.sizes` are not used: at every change of
    size the trainer builds a new loss, and with it an assigner that is not timed.
    """
    from pipeline.config import Config, read_recipe
    from pipeline.data import build_train_loader, load_manifest
    from pipeline.distributed.world import World
    from pipeline.training.trainer.trainer import Trainer

    config = Config.from_dict(read_recipe(Path("configs/bccd.yaml")))
    config = config.replace(
        {
            "data.train": shards,
            "data.sizes": (),
            "train.batch_size": STEP["batch"],
            "train.precision": "fp32",
        }
    )
    classes = load_manifest(shards).classes
    trainer = Trainer(config, World(), len(classes), total_steps=steps)
    timed = Timed(trainer.loss.assigner)
    trainer.loss.assigner = timed
    shares, whole = [], []
    for batch in build_train_loader(shards, config, rank=0, world_size=1):
        timed.seconds = 0.0
        whole.append(seconds(lambda batch=batch: trainer.step(batch), "cpu"))
        if not timed.seconds:
            raise RuntimeError(f"step {trainer.step_count} did not use the timed assigner")
        shares.append(timed.seconds / whole[-1])
        if trainer.step_count == steps:
            break
    return {
        "batch": config.train.batch_size,
        "steps": steps,
        "step_ms": summary(whole, 1e3),
        "share": summary(shares),
    }


def without_synchronisation() -> list[str]:
    """Return the assigners if none of them synchronises with the GPU; raise if one does."""
    batch, strides = make_batch(BATCH, 20, CLASSES, "cuda"), make_anchors(IMAGE)[1].cuda()
    assigners = {name: build_assigner(name, anchor_strides=strides) for name in ASSIGNERS}
    for assigner in assigners.values():
        assigner(*batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for assigner in assigners.values():
            assigner(*batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sorted(assigners)


def hardware(device: str) -> dict[str, Any]:
    """Return the hardware and versions that were measured."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    cpu = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "unknown")
    return {
        "cpu": cpu,
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def main() -> None:
    """Run all measurements and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repetitions", type=int, default=11)
    parser.add_argument("--no-compile", action="store_true", help="skip the compiled assigner")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--bccd", metavar="SHARDS", help="also measure real training steps on this shard set"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {
        "hardware": hardware(options.device),
        "case": {"anchors": len(make_anchors(IMAGE)[0]), "classes": CLASSES, "batch": BATCH},
        "repetitions": options.repetitions,
        "mutual_guidance": [],
    }
    for objects in OBJECTS:
        row = speed(objects, options.repetitions, options.device, not options.no_compile)
        print(json.dumps(row), flush=True)
        results["mutual_guidance"].append(row)
    results["all_at_20_objects_ms"] = all_assigners(options.repetitions, options.device)
    one_matrix = 4 * BATCH * MANY_OBJECTS * len(make_anchors(IMAGE)[0])
    results["bytes_at_500_objects"] = {
        "one_float_per_pair": one_matrix,
        **memory(options.device),
    }
    results["training_step"] = share_of_a_step(options.repetitions, options.device)
    if options.bccd:
        results["real_training_step"] = share_of_real_training(options.bccd, steps=60)
    if options.device == "cuda":
        results["without_synchronisation"] = without_synchronisation()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps({key: results[key] for key in list(results)[4:]}, indent=2))


if __name__ == "__main__":
    main()
