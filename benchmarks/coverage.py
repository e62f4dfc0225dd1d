"""How often the bootstrap intervals of AP contain the AP of the population that images are from.

    python -m benchmarks.coverage                       # one core; about 10 minutes
    python -m benchmarks.coverage --sets 5 --images 50 --population 500 --no-save   # a smoke run

A population of images with three classes, frequent to rare, is evaluated by two models. Sets of
images are drawn from it, and for each the 95% intervals of AP, per class and as mean, and of the
gain of one model over the other are computed in four ways:

- percentile: quantiles of the resamples;
- basic: the same, mirrored at the value of the set;
- bias-corrected (BC): quantiles shifted by the share of resamples below the value of the set;
- bias-corrected and accelerated (BCa): also by the skewness of a jackknife over groups of images.

Source of all four: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 13, 14.
"""

import argparse
import json
import platform
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.metrics import ImageDetections, MatchTable, Objects, match_images
from pipeline.metrics.bootstrap import bootstrap

RESULTS = Path(__file__).parent / "results" / "coverage.json"
RATES = (2.0, 0.2, 0.04)  # objects of each class per image
SIDE, GROUPS, CONFIDENCE = 400, 20, 0.95
_NORMAL = NormalDist()
Array = NDArray[np.float64]


def population(images: int, noise: float, seed: int) -> MatchTable:
    """Return the match table of a model; the objects depend on the number of images alone."""
    truth, rng = np.random.default_rng(0), np.random.default_rng(seed)
    scenes = []
    for number in range(images):
        counts = truth.poisson(RATES)
        labels = np.repeat(np.arange(len(RATES)), counts)
        corner = truth.uniform(0, SIDE - 80, (len(labels), 2))
        boxes = np.concatenate([corner, corner + truth.uniform(20, 80, (len(labels), 2))], 1)
        found = rng.random(len(labels)) < 0.85
        false = rng.poisson([1.0, 0.3, 0.1])
        false_corner = rng.uniform(0, SIDE - 80, (int(false.sum()), 2))
        sides = rng.uniform(20, 80, false_corner.shape)
        guess = np.concatenate(
            [
                boxes[found] + rng.normal(0, noise, (int(found.sum()), 4)),
                np.concatenate([false_corner, false_corner + sides], 1),
            ]
        )
        label = np.concatenate([labels[found], np.repeat(np.arange(len(RATES)), false)])
        scores = np.concatenate([rng.beta(4, 2, found.sum()), rng.beta(2, 4, false.sum())])
        none = np.zeros(len(labels), np.bool_)
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        objects = Objects(boxes, labels, none, none, area)
        scenes.append((f"{number:06d}", objects, ImageDetections(guess, scores, label)))
    return match_images(scenes)


def intervals(value: float, samples: Array, jackknife: Array) -> dict[str, tuple[float, float]]:
    """Return the bounds of each method from a value, its resamples and its jackknife."""
    samples, tail = samples[~np.isnan(samples)], (1 - CONFIDENCE) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    below = (samples < value).mean() + (samples == value).mean() / 2
    shift = _NORMAL.inv_cdf(min(max(below, 1e-4), 1 - 1e-4))
    spread = np.nanmean(jackknife) - jackknife
    total = np.nansum(spread**2)
    skew = np.nansum(spread**3) / (6 * total**1.5) if total else 0.0
    found = {"percentile": (low, high), "basic": (2 * value - high, 2 * value - low)}
    for name, acceleration in (("BC", 0.0), ("BCa", skew)):
        levels = []
        for level in (tail, 1 - tail):
            moved = shift + _NORMAL.inv_cdf(level)
            levels.append(_NORMAL.cdf(shift + moved / (1 - acceleration * moved)))
        found[name] = tuple(np.quantile(samples, levels))
    return {name: (float(a), float(b)) for name, (a, b) in found.items()}


def estimates(ap: Array) -> Array:
    """Return the AP of each class and their mean (...,C+1)."""
    return np.concatenate([ap, np.nanmean(ap, axis=-1, keepdims=True)], axis=-1)


def measure(sets: int, images: int, size: int, resamples: int) -> dict[str, Any]:
    """Draw sets of images and count which intervals contain the figure of the population."""
    torch.set_num_threads(1)
    models = [population(size, noise, seed) for noise, seed in ((5.0, 1), (6.0, 2))]
    classes = len(RATES)
    both = [bootstrap(model, classes, resamples=1).ap for model in models]
    truth = np.concatenate([estimates(both[0]), estimates(both[0]) - estimates(both[1])])
    names = [*(f"AP of {rate:g} an image" for rate in RATES), "mean AP"]
    names += [name.replace("AP", "gain", 1) for name in names]
    rng = np.random.default_rng(3)
    outcomes: dict[str, dict[str, list[tuple[bool, bool, float]]]] = {name: {} for name in names}
    groups = np.arange(images) % GROUPS
    for _ in range(sets):
        chosen = np.sort(rng.choice(size, images, replace=False))
        tables = [model.select(chosen) for model in models]
        drawn = [bootstrap(table, classes, resamples=resamples) for table in tables]
        left = [
            [table.select(np.flatnonzero(groups != g)) for g in range(GROUPS)] for table in tables
        ]
        jack = [
            estimates(np.array([bootstrap(one, classes, resamples=1).ap for one in part]))
            for part in left
        ]
        value = [estimates(one.ap) for one in drawn]
        samples = [estimates(one.samples) for one in drawn]
        values = np.concatenate([value[0], value[0] - value[1]])
        all_samples = np.concatenate([samples[0], samples[0] - samples[1]], 1)
        all_jack = np.concatenate([jack[0], jack[0] - jack[1]], 1)
        for number, name in enumerate(names):
            if np.isnan(values[number]):
                continue
            found = intervals(values[number], all_samples[:, number], all_jack[:, number])
            for method, (low, high) in found.items():
                below, above = truth[number] < low, truth[number] > high
                outcomes[name].setdefault(method, []).append((below, above, high - low))
    return {
        "images": images,
        "sets": sets,
        "resamples": resamples,
        "population": {name: float(one) for name, one in zip(names, truth, strict=True)},
        "coverage": {
            name: {method: summary(rows) for method, rows in methods.items()}
            for name, methods in outcomes.items()
        },
    }


def summary(rows: list[tuple[bool, bool, float]]) -> dict[str, float]:
    """Return the share of intervals that contain the figure, and of those on each side of it."""
    below, above, width = (np.array(column, float) for column in zip(*rows, strict=True))
    return {
        "covered": round(float(1 - below.mean() - above.mean()), 4),
        "too_high": round(float(below.mean()), 4),
        "too_low": round(float(above.mean()), 4),
        "mean_width": round(float(width.mean()), 4),
    }


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=250, help="of a set")
    parser.add_argument("--population", type=int, default=20_000, help="images")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--sets", type=int, default=400)
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    result = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        **measure(options.sets, options.images, options.population, options.resamples),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if not options.no_save:
        RESULTS.write_text(text + "\n")


if __name__ == "__main__":
    main()
