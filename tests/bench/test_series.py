"""Curves of levels, how sure they are, and where two cross: by figures that were worked out by hand."""

from __future__ import annotations

import math

import pytest
from levels import article, level

from orchestrator.bench.series import crossover, series_of
from orchestrator.bench.sweep import next_users


def test_the_article_crosses_a_little_above_two_users() -> None:
    simple, other = series_of(article())
    found = crossover(simple, other)
    assert found is not None
    # 20 below at 2, 97 above at 4, straight over the logarithm: 2 ** (1 + 20 / 117).
    assert found.users == pytest.approx(2 ** (1 + 20 / 117))
    assert crossover(other, simple) is None


def test_a_single_level_is_as_sure_as_its_rounds_differ() -> None:
    (one,) = series_of([level("vllm", 4, 400.0, completed=16, mean_e2el_ms=1000.0, std_e2el_ms=100.0)])
    # 4 rounds of 4 users, each a tenth away: 400 * 0.1 / 2.
    assert one.points[0].error == pytest.approx(20.0)


def test_repeats_say_it_themselves() -> None:
    (one,) = series_of([level("vllm", 4, value) for value in (390.0, 400.0, 410.0)])
    (point,) = one.points
    assert (point.throughput, point.levels, point.completed) == (400.0, 3, 24)
    assert point.error == pytest.approx(10.0 / math.sqrt(3))


def test_noise_widens_the_crossing() -> None:
    def noisy(spread: float) -> tuple[float | None, float | None]:
        simple, other = series_of([{**one, "std_e2el_ms": spread, "completed": 32} for one in article()])
        found = crossover(simple, other)
        assert found is not None
        return found.least, found.most

    assert noisy(0.0) == (pytest.approx(2 ** (1 + 20 / 117)),) * 2
    least, most = noisy(50.0)
    assert least is not None
    assert most is not None
    assert least < 2.25 < most
    # So noisy that it may be beyond what was measured.
    assert noisy(9000.0)[1] is None


def test_who_is_saturated_is_held_to_give_what_it_gave() -> None:
    levels = [level("llamacpp", n, rate) for n, rate in ((1, 500.0), (2, 500.0), (4, 490.0))]
    levels += [level("vllm", n, rate) for n, rate in ((1, 100.0), (2, 200.0), (4, 400.0), (8, 600.0))]
    found = crossover(*series_of(levels))
    assert found is not None
    assert found.users == pytest.approx(2 ** (2 + 90 / 200))
    # One that was still gaining says nothing of more users.
    rising = [level("llamacpp", n, rate) for n, rate in ((1, 300.0), (2, 400.0), (4, 500.0))]
    assert crossover(*series_of([*rising, *levels[3:]])) is None


def test_what_was_interrupted_or_asked_by_the_second_is_in_no_curve() -> None:
    levels = [level("vllm", 1, 100.0), level("vllm", 2, 5.0, interrupted=True), level("vllm", None, 50.0)]
    (one,) = series_of(levels)
    assert [point.users for point in one.points] == [1]


@pytest.mark.parametrize(
    ("rates", "failed", "users"),
    [
        ((100.0,), 0, 2),
        ((100.0, 150.0), 0, 4),
        ((100.0, 150.0, 157.0), 0, None),
        ((100.0, 90.0), 0, None),
        ((100.0, 150.0, 300.0), 1, None),
    ],
)
def test_users_are_doubled_until_that_brings_no_more(rates: tuple[float, ...], failed: int, users: int | None) -> None:
    levels = [level("vllm", 2**n, rate) for n, rate in enumerate(rates)]
    levels[-1]["failed"] = failed
    assert next_users(levels) == users


def test_there_is_an_end_to_it() -> None:
    assert next_users([level("vllm", 1024, 100.0)]) is None
