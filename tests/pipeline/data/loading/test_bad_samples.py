"""Test the limit on unreadable samples."""

import pytest

from pipeline.data.loading.bad_samples import MAX_LISTED_PROBLEMS, BadSamples
from pipeline.distributed.world import World
from pipeline.errors import UserError
from tests.pipeline.distributed.test_world import RANKS, on_each_rank


def lines(count: int, first: int = 0) -> list[str]:
    return [f"{i}: broken" for i in range(first, first + count)]


def test_each_bad_sample_is_warned_about_once(caplog):
    bad = BadSamples(0.01)
    for _ in range(3):
        bad.count(8, ["a: broken"])
        bad.check(World())
    assert caplog.text.count("a: broken") == 1 and bad.problems == {"a: broken": 3}


def test_ten_bad_samples_are_always_tolerated():
    bad = BadSamples(0.0)
    for _ in range(5):
        bad.count(10, lines(10))
        bad.check(World())


def test_more_bad_samples_are_tolerated_up_to_the_fraction():
    bad = BadSamples(0.01)
    bad.count(1100, lines(11))
    bad.check(World())
    bad.count(1, lines(1, first=11))
    with pytest.raises(UserError, match=r"12 of 1101 samples .*max_bad_fraction 0.01: 0: broken; "):
        bad.check(World())


def test_list_of_bad_samples_is_limited():
    bad = BadSamples(0.5)
    bad.count(1000, lines(400))
    bad.check(World())
    assert bad.occurrences == 400 and len(bad.problems) == MAX_LISTED_PROBLEMS
    bad.count(0, lines(200))
    with pytest.raises(UserError, match=r"600 of 1000 samples .*99: broken; \.\.\.$"):
        bad.check(World())


def test_totals_of_a_checkpoint_are_continued():
    bad = BadSamples(0.01)
    bad.restore(1100, 11, dict.fromkeys(lines(11), 1))
    bad.count(1, ["0: broken"])
    with pytest.raises(UserError, match="12 of 1101 samples"):
        bad.check(World())


def test_bad_samples_of_one_rank_are_judged_by_those_read_by_all():
    def work(world: World) -> int:
        bad = BadSamples(0.01)
        bad.count(500, lines(14) if world.rank == 1 else [])
        bad.check(world)
        return bad.occurrences

    assert on_each_rank(work) == [14, 0, 0]  # of 1500; rank 0 has the totals


def test_ranks_that_are_below_the_limits_alone_exceed_them_together():
    def work(world: World) -> str:
        bad = BadSamples(0.01)
        for _ in range(2):
            bad.count(100, lines(1, first=10 * world.rank))
            bad.check(world)
        bad.count(100, lines(5, first=10 * world.rank + 1))
        with pytest.raises(UserError) as raised:
            bad.check(world)
        return str(raised.value)

    (message, *others) = on_each_rank(work)
    assert message.startswith(f"{7 * RANKS} of {300 * RANKS} samples could not be read")
    assert others == [message, message]
