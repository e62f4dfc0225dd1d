"""Test that the benchmark of sweeps replays curves as a sweep would have trained them."""

import random

from benchmarks.sweep import measure, replay
from benchmarks.sweep_curves import Curve, Recording


def recording() -> Recording:
    """Return 16 curves that never cross, of points that end 0.02 apart."""
    curves = [
        Curve(
            params={"assign.name": name, "train.lr": lr},
            scores=[(float(epoch), (0.1 + 0.02 * (4 * i + k)) * epoch) for epoch in range(1, 13)],
        )
        for i, name in enumerate(("max_iou", "mutual_guidance", "sim_ota", "task_aligned"))
        for k, lr in enumerate((0.003, 0.01, 0.03, 0.1))
    ]
    return Recording(
        seed=0,
        epochs=12,
        steps_per_epoch=60.0,
        curves=curves,
        standard_error=0.01,
        cpu_seconds=0.0,
        torch="",
    )


def test_replay_finds_the_best_of_curves_that_never_cross() -> None:
    for concurrency in (1, 4, 16):
        for order in range(3):
            best, share = replay(recording(), random.Random(order), concurrency)
            assert best == (0.1 + 0.02 * 15) * 12 and share <= 0.4


def test_without_asha_every_epoch_is_trained() -> None:
    assert replay(recording(), random.Random(0), 4, scheduler="none")[1] == 1.0


def test_failed_orders_are_counted() -> None:
    """The best point of this grid is the worst in the first epochs."""
    crossing = recording()
    scores = [(float(epoch), 10.0 if epoch == 12 else 0.0) for epoch in range(1, 13)]
    crossing.curves[0] = crossing.curves[0].model_copy(update={"scores": scores})
    found = measure(crossing, orders=2)
    assert found["best_of_grid"] == 10.0 and found["points_within_standard_error"] == 1
    assert found["concurrency_1"]["succeeded"] == 0.0
