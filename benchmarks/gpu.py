"""What a GPU makes of a training step, of assignment and of an evaluation, in at most 10 minutes.

    python -m benchmarks.gpu                # needs a GPU; torch alone is enough for most sections
    python -m benchmarks.gpu --smoke        # small cases, also on a CPU, to test the script

Images and boxes are generated. Sections run in the order of `SECTIONS`, each case with a warm-up.
Cases that do not fit into ``--minutes``, fail, or need packages that are not installed are listed
in the results with the reason.
"""

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.assign import hardware, make_batch
from model import build_detector
from model.assign import ASSIGNERS, build_assigner
from model.boxes import decode
from model.loss import DetectionLoss
from model.postprocess import postprocess
from pipeline.training.trainer.ema import WeightAverage

RESULTS = Path(__file__).parent / "results" / "gpu.json"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
CLASSES, OBJECTS = 3, 13  # as on BCCD


class Size(NamedTuple):
    """How much is measured."""

    image: int
    steps: int
    batches: tuple[int, ...]  # images per step, the last one for most cases
    backbones: tuple[str, ...]
    evaluation: tuple[int, ...]  # images per pass
    repetitions: int
    warm_up: int  # steps
    training: int  # steps before the rounding of boxes is measured
    precision: str  # of most cases


FULL = Size(320, 30, (8, 32), ("slim", "resnet18", "vgg16"), (16, 64), 5, 10, 300, "bf16")
SMOKE = Size(64, 1, (2,), ("slim",), (2,), 1, 0, 1, "fp32")


class Case(NamedTuple):
    """A training step; all but the first three fields change one thing of the default."""

    backbone: str
    batch: int
    precision: str
    compile: bool = False
    cudnn_benchmark: bool = False
    fused: bool = True
    average: bool = True
    read_norm: bool = False  # wait for the norm of the gradient in every step
    resident: bool = False  # one batch that is on the device already
    assign: str = "mutual_guidance"

    @property
    def name(self) -> str:
        """Return the backbone, the batch, the precision, and what differs from the default."""
        default = Case(self.backbone, self.batch, self.precision)._asdict()
        changes = [f"{k} {v}" for k, v in self._asdict().items() if v != default[k]]
        return ", ".join([f"{self.backbone} b{self.batch} {self.precision}", *changes])


class Launches(TorchDispatchMode):
    """Counts the operators inside the block, without views."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the operator and count it."""
        if not func.is_view:
            self.counts[str(func.overloadpacket)] += 1
        return func(*args, **(kwargs or {}))


class Step:
    """A training step of model/ as the trainer takes it, with the changes of a case."""

    def __init__(self, case: Case, size: Size, device: str) -> None:
        self.case, self.device, cuda = case, device, device == "cuda"
        torch.backends.cudnn.benchmark = case.cudnn_benchmark
        detector = build_detector(case.backbone, "retinanet", CLASSES, size.image).train()
        self.detector: Any = detector.to(device=device, memory_format=torch.channels_last)
        strides = self.detector.anchor_strides
        self.loss = DetectionLoss(build_assigner(case.assign, anchor_strides=strides))
        self.average = WeightAverage(self.detector, 0.998)
        options: dict[str, Any] = {"lr": 1e-3, "momentum": 0.9, "fused": case.fused and cuda}
        self.optimizer = torch.optim.SGD(self.detector.parameters(), **options)
        self.scaler = torch.amp.GradScaler(device, enabled=case.precision == "fp16")
        if case.compile:
            self.detector.compile()
        images = torch.randint(0, 256, (case.batch, 3, size.image, size.image), dtype=torch.uint8)
        images = images.contiguous(memory_format=torch.channels_last)
        _, boxes, labels, *_ = make_batch(case.batch, OBJECTS, CLASSES, "cpu")
        boxes = boxes * (size.image / 320)
        host = [x.pin_memory() if cuda else x for x in (images, boxes, labels)]
        self.batch = [x.to(device) for x in host] if case.resident else host

    def __call__(self) -> Tensor:
        """Take one step; return the norm of its gradient, which is on the device."""
        images, boxes, labels = (x.to(self.device, non_blocking=True) for x in self.batch)
        anchors = self.detector.anchors
        static = self.loss.static_part(anchors, boxes, labels)
        with self.autocast():
            predictions = self.detector(images)
        known = {"static": static, "normalisers": static.positives} if static else {}
        loss = self.loss(predictions, anchors, boxes, labels, **known)["loss"]
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.detector.parameters(), 10.0)
        if self.case.read_norm:
            float(norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.case.average:
            self.average.update()
        return norm

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context of the case's precision."""
        if self.case.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device, DTYPES[self.case.precision])


def steps(size: Size, device: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield cases of training steps: networks, then one change at a time on two of them."""
    batch = size.batches[-1]
    cases = [Case(backbone, n, size.precision) for backbone in size.backbones for n in size.batches]
    for backbone in dict.fromkeys((size.backbones[0], size.backbones[-1])):
        default = Case(backbone, batch, size.precision)
        changes: tuple[dict[str, Any], ...] = (
            {"read_norm": True},
            {"fused": False},
            {"average": False},
            {"resident": True},
            {"cudnn_benchmark": True},
            {"precision": "fp32"},
            {"precision": "fp16"},
            {"assign": "max_iou"},
            {"assign": "mutual_guidance_soft"},
            {"compile": True},
        )
        cases += [default._replace(**change) for change in changes]
    for case in dict.fromkeys(cases):
        if not (case.compile and device == "cpu"):  # which compiles for minutes
            yield case.name, lambda case=case: measure_step(case, size, device)


def measure_step(case: Case, size: Size, device: str) -> dict[str, float]:
    """Return the speed and memory of a step, and how long the CPU took to launch it."""
    step = Step(case, size, device)
    for _ in range(size.warm_up):
        step()
    synchronise(device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    took, launched = [], []
    for _ in range(size.repetitions):
        begin = time.perf_counter()
        for _ in range(size.steps):
            step()
        launched.append((time.perf_counter() - begin) / size.steps)
        synchronise(device)
        took.append((time.perf_counter() - begin) / size.steps)
    median = statistics.median(took)
    found = {"images_per_second": case.batch / median, "ms": 1e3 * median}
    found |= {"ms_min": 1e3 * min(took), "ms_max": 1e3 * max(took)}
    found["launch_ms"] = 1e3 * statistics.median(launched)
    if device == "cuda":
        found["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return {name: round(value, 3) for name, value in found.items()}


def synchronisation(size: Size, device: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield every assigner: a step of it that waits for the GPU is an error."""
    for name in sorted(ASSIGNERS):
        yield name, lambda name=name: check_no_wait(name, size, device)
    yield "trainer", lambda: check_trainer(size, device)


def check_no_wait(assigner: str, size: Size, device: str) -> dict[str, Any]:
    """Raise RuntimeError if a step waits; return its launches."""
    step = Step(Case("slim", size.batches[0], size.precision, assign=assigner), size, device)
    step()  # the first one allocates, and may wait
    synchronise(device)
    with waiting_is_an_error(device), Launches() as launches:
        step()
    return {"waits": False, "launches": launches.counts.total()}


def check_trainer(size: Size, device: str) -> dict[str, Any]:
    """Raise RuntimeError if a step of the project's trainer waits; needs pydantic and NumPy."""
    from pipeline.config import Config
    from pipeline.data import Batch
    from pipeline.distributed.world import World
    from pipeline.training.trainer.trainer import Trainer

    count = size.batches[0]
    tree = {"model": {"image_size": size.image}, "train": {"batch_size": count}}
    trainer = Trainer(Config.from_dict(tree), World(device=torch.device(device)), CLASSES, 100)
    images, boxes, labels = Step(Case("slim", count, size.precision), size, device).batch
    valid = torch.ones(count, dtype=torch.bool)
    crowd = torch.zeros(count, 0, 4)
    tensors = [x.pin_memory() if device == "cuda" else x for x in (crowd, valid)]
    batch = Batch(images, boxes, labels, *tensors, [], [])
    for _ in range(max(1, size.warm_up)):
        trainer.step(batch)
    synchronise(device)
    with waiting_is_an_error(device):
        trainer.step(batch)
    trainer.check_gradients()
    return {"waits": False, "precision": trainer.precision}


def evaluation(size: Size, device: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield passes of an evaluation by images and precision."""
    for batch in size.evaluation:
        for precision in ("fp32", "bf16"):
            case = Case(size.backbones[-1], batch, precision)
            yield case.name, lambda case=case: measure_evaluation(case, size, device)


@torch.no_grad()
def measure_evaluation(case: Case, size: Size, device: str) -> dict[str, float]:
    """Return milliseconds per image of the network and of post-processing."""
    step = Step(case, size, device)
    step.detector.eval()
    images = step.batch[0].to(device)
    took: dict[str, list[float]] = {"network": [], "postprocess": []}
    for repetition in range(size.repetitions + 1):
        begin = time.perf_counter()
        with step.autocast():
            found = step.detector(images)
        synchronise(device)
        middle = time.perf_counter()
        deltas, logits = found.deltas.float(), found.logits.float() + 3.0  # enough candidates
        postprocess(deltas, logits, step.detector.anchors, size.image, score_threshold=0.01)
        synchronise(device)
        if repetition:  # the first one warms up
            took["network"].append(middle - begin)
            took["postprocess"].append(time.perf_counter() - middle)
    return {f"{k}_ms": round(1e3 * statistics.median(v) / case.batch, 3) for k, v in took.items()}


def rounding(size: Size, device: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield how far 16 bits move boxes, after some training."""
    for precision in ("bf16", "fp16"):
        yield precision, lambda name=precision: measure_rounding(name, size, device)


def measure_rounding(precision: str, size: Size, device: str) -> dict[str, float]:
    """Return the distance of box edges from those in fp32, in pixels of the input."""
    case = Case(size.backbones[0], size.batches[-1], precision)
    step = Step(case, size, device)
    for _ in range(size.training):
        step()
    step.detector.eval()
    images = step.batch[0].to(device)
    with torch.no_grad():
        exact = decode(step.detector(images).deltas, step.detector.anchors)
        with step.autocast():
            rounded = step.detector(images).deltas.float()
        moved = (decode(rounded, step.detector.anchors) - exact).abs().flatten()
    ordered = moved.sort().values
    at = {"median": 0.5, "p99": 0.99, "max": 1.0}
    return {k: round(float(ordered[int(q * (len(ordered) - 1))]), 4) for k, q in at.items()}


SECTIONS: dict[str, Callable[[Size, str], Iterator[tuple[str, Callable[[], Any]]]]] = {
    "synchronisation": synchronisation,
    "evaluation": evaluation,
    "rounding_px": rounding,
    "steps": steps,
}


@contextlib.contextmanager
def waiting_is_an_error(device: str) -> Iterator[None]:
    """Make torch raise RuntimeError inside the block where the CPU would wait for the GPU."""
    if device != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def synchronise(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def run(size: Size, device: str, seconds: float) -> dict[str, Any]:
    """Return the results of every section, and the cases that did not run with the reason."""
    began = time.monotonic()
    results: dict[str, Any] = {"hardware": hardware(device), "not_run": {}}
    for section, cases in SECTIONS.items():
        results[section] = {}
        for name, measure in cases(size, device):
            if time.monotonic() - began > seconds:
                results["not_run"][f"{section}: {name}"] = "no time left"
                continue
            try:
                results[section][name] = measure()
            except (ImportError, RuntimeError) as error:
                results["not_run"][f"{section}: {name}"] = (str(error).splitlines() or ["?"])[0]
            print(json.dumps({section: {name: results[section].get(name)}}), flush=True)
            if device == "cuda":
                torch.cuda.empty_cache()
    results["seconds"] = round(time.monotonic() - began, 1)
    return results


def main() -> None:
    """Run all sections and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="no case starts later than this")
    parser.add_argument(
        "--smoke", action="store_true", help="small cases, without a GPU on the CPU"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.smoke:
        print("not run: torch finds no GPU; --smoke tests the script on a CPU", file=sys.stderr)
        return
    results = run(SMOKE if options.smoke else FULL, device, 60.0 * options.minutes)
    options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
