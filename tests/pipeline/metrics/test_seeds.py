"""Test intervals over images and seeds: of one seed those of images, of a few seeds honest."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest

from pipeline.config import Protocol
from pipeline.metrics import match_images
from pipeline.metrics.bootstrap import (
    Resampled,
    SeedResampled,
    bootstrap,
    paired_bootstrap,
    pooled_gains,
    seed_bootstrap,
)
from pipeline.metrics.bootstrap.seeds import draw_seeds
from pipeline.metrics.table import MatchTable
from tests.pipeline.metrics.scenes import random_scenes


def tables(seeds: Sequence[int], images: int = 25, classes: int = 2) -> list[MatchTable]:
    """Return tables of detectors that differ, on the same objects."""
    truths = random_scenes(0, images, classes, difficult=0.1)
    return [
        match_images(
            [
                (name, truth, found)
                for (name, truth, _), (_, _, found) in zip(
                    truths, random_scenes(seed, images, classes), strict=True
                )
            ]
        )
        for seed in seeds
    ]


@pytest.mark.parametrize("protocol", ["coco", "voc07", "voc"])
def test_one_seed_is_the_bootstrap_over_images(protocol: Protocol) -> None:
    one, two = tables([0, 1])
    ious = (0,) if protocol != "coco" else (0, 5)
    found = seed_bootstrap({"a": [one], "b": [two]}, 2, ious, 50, 3, protocol)
    pair = paired_bootstrap(one, two, 2, ious, 50, 3, protocol)
    assert found.gain("a", "b") == pair.interval()
    assert found.gain("a", "b", label=1, confidence=0.5) == pair.class_interval(1, 0.5)
    alone = bootstrap(two, 2, ious, 50, 3, protocol=protocol)
    assert found.interval("b") == alone.interval()
    assert np.isnan(found.spread())


def test_order_of_images_does_not_matter() -> None:
    one, two, three, four = tables([0, 1, 2, 3])
    order = np.random.default_rng(0).permutation(one.images)
    moved = [table.select(order) for table in (two, four)]
    expected = seed_bootstrap({"a": [one, two], "b": [three, four]}, 2, resamples=50)
    found = seed_bootstrap({"a": [one, moved[0]], "b": [three, moved[1]]}, 2, resamples=50)
    assert found.gain("a", "b") == expected.gain("a", "b")
    assert found.interval("a") == expected.interval("a")


def test_value_is_the_mean_over_seeds_and_equal_arms_have_no_gain() -> None:
    one, two, three = tables([0, 1, 2])
    found = seed_bootstrap({"a": [one, two], "b": [one, two], "c": [three]}, 2, resamples=50)
    aps = [bootstrap(table, 2, resamples=1).interval().value for table in (one, two)]
    assert found.per_seed("a").tolist() == aps
    assert found.interval("a").value == pytest.approx(np.mean(aps))
    assert found.spread() == pytest.approx(np.std(aps, ddof=1))
    gain = found.gain("a", "b")
    assert gain.value == 0 and gain.low < 0 < gain.high
    assert found.gain("c", "a").value == -found.gain("a", "c").value


def test_tables_of_other_images_are_rejected() -> None:
    (one,), (other,) = tables([0]), tables([1], images=24)
    with pytest.raises(ValueError, match="the match tables of b do not have the images"):
        seed_bootstrap({"a": [one], "b": [other]}, 2, resamples=2)
    with pytest.raises(ValueError, match="no match table of b"):
        seed_bootstrap({"a": [one], "b": []}, 2, resamples=2)


def simulated(
    generator: np.random.Generator, arms: int, seeds: int, of_seeds: float, of_images: float
) -> SeedResampled:
    """Return arms that are equal: each value varies with its seed and its set of images."""
    images = {f"{arm}": generator.normal(0, of_images) for arm in range(arms)}
    noise = generator.normal(0, of_images, (len(images), 400))
    resampled = {}
    for arm, shift in images.items():
        values = 0.5 + shift + generator.normal(0, of_seeds, seeds)
        resampled[arm] = [
            Resampled(np.array([value]), (value + noise[int(arm)])[:, None]) for value in values
        ]
    return SeedResampled(resampled, draw_seeds(dict.fromkeys(resampled, seeds), 400, generator))


@pytest.mark.parametrize("seeds", [2, 3])
def test_variance_over_seeds_is_unbiased(seeds: int) -> None:
    generator = np.random.default_rng(1)
    found = [simulated(generator, 4, seeds, 0.02, 0.0).spread() ** 2 for _ in range(1500)]
    assert np.mean(found) == pytest.approx(0.02**2, rel=0.04)


@pytest.mark.parametrize("of_images", [0.0, 0.01, 0.03])
@pytest.mark.parametrize(("arms", "seeds"), [(2, 2), (4, 2), (2, 3)])
def test_equal_arms_seldom_differ(arms: int, seeds: int, of_images: float) -> None:
    """Resampling two seeds would call equal arms different in half of the cases."""
    generator, wrong = np.random.default_rng(2), 0
    for _ in range(600):
        gain = simulated(generator, arms, seeds, 0.01, of_images).gain("0", "1")
        wrong += not gain.low <= 0 <= gain.high
    assert wrong / 600 < 0.077  # 0.05, and three standard errors
    if not of_images:  # otherwise what images and seeds share is counted twice
        assert wrong / 600 > 0.023


def test_simultaneous_intervals_hold_for_all_pairs_at_once() -> None:
    """Of equal arms, some pair alone is often distinguished by chance; all at once rarely are."""
    generator = np.random.default_rng(0)
    names = [f"arm{k}" for k in range(6)]
    pairs = list(combinations(names, 2))
    alone = together = 0
    for _ in range(100):
        counts = dict.fromkeys(names, 3)
        seeds = {name: generator.normal(0.5, 0.02, 3) for name in names}
        resampled = SeedResampled(
            {
                name: [Resampled(np.array([value]), np.full((400, 1), value)) for value in values]
                for name, values in seeds.items()
            },
            draw_seeds(counts, 400, generator),
        )
        alone += any(
            one.low > 0 or one.high < 0 for one in map(resampled.gain, *zip(*pairs, strict=True))
        )
        found = resampled.simultaneous_gains(pairs)
        together += any(one.low > 0 or one.high < 0 for one in found)
        assert [one.value for one in found] == [resampled.gain(*pair).value for pair in pairs]
    assert together <= 12 < alone
    assert resampled.simultaneous_gains([]) == []


def test_gains_over_several_sets_are_means_with_less_noise() -> None:
    one, two, three, four = tables([0, 1, 2, 3])
    arms = {"a": [one, two], "b": [three, four]}
    first = seed_bootstrap(arms, 2, resamples=200, seed=0)
    other = seed_bootstrap(arms | {"a": [two, three]}, 2, resamples=200, seed=1)
    (alone,) = first.simultaneous_gains([("a", "b")])
    assert pooled_gains([first], [("a", "b")]) == [alone]
    (pooled,) = pooled_gains([first, other], [("a", "b")])
    gains = [item.gain("a", "b").value for item in (first, other)]
    assert pooled.value == pytest.approx(np.mean(gains))
    assert pooled.high - pooled.low < alone.high - alone.low
