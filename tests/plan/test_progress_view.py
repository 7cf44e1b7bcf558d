"""How far, how fast, how long still: what Progress calls become on a screen."""

from __future__ import annotations

import pytest

from orchestrator.core.progress import WINDOW_S, Pace, part_of, split_part
from orchestrator.core.progress_view import ProgressView, amount, duration

MB = 10**6


def at_pace(*seen: tuple[float, int]) -> Pace:
    pace = Pace()
    for at, done in seen:
        pace.add(at, done)
    return pace


def test_a_rate_needs_a_second() -> None:
    assert at_pace().rate is None
    assert at_pace((0.0, 5)).rate is None
    assert at_pace((0.0, 5), (0.9, 50)).rate is None
    assert at_pace((0.0, 5), (2.0, 25)).rate == 10


def test_what_was_there_before_does_not_count() -> None:
    pace = at_pace((0.0, 1_000_000), (1.0, 1_000_010), (2.0, 1_000_020))
    assert (pace.rate, pace.left(1_000_120)) == (10, 10)


def test_a_rate_is_of_the_last_seconds() -> None:
    fast = [(second, second * 100) for second in range(21)]
    slow = [(21 + second, 2000 + second) for second in range(int(WINDOW_S) + 2)]
    assert at_pace(*fast).rate == 100
    assert at_pace(*fast, *slow).rate == pytest.approx(1)


def test_nothing_comes_any_more() -> None:
    pace = at_pace((0.0, 5), (1.0, 10), (2.0, 10), (30.0, 10), (31.0, 10))
    assert (pace.rate, pace.left(100)) == (0, None)


def test_going_back_begins_anew() -> None:
    assert at_pace((0.0, 0), (5.0, 500), (6.0, 0), (8.0, 20)).rate == 10


def test_a_part_has_a_job() -> None:
    assert split_part(part_of("Qwen/Qwen3-8B", "model.safetensors")) == ("Qwen/Qwen3-8B", "model.safetensors")
    assert split_part("hashing: a - b") == ("hashing: a - b", "")


def test_the_whole_in_one_line() -> None:
    view = ProgressView()
    assert view.tell("test/big", 3_100 * MB, 16_400 * MB, 0.0)
    assert view.line == "test/big   3.1 of 16.4 GB (18 %)"
    view.tell("test/big", 3_196 * MB, 16_400 * MB, 2.0)
    assert view.line == "test/big   3.2 of 16.4 GB (19 %)   48.0 MB/s   5 min left"
    for second in range(3, 20):
        view.tell("test/big", 3_196 * MB, 16_400 * MB, second)
    assert view.line == "test/big   3.2 of 16.4 GB (19 %)   stalled"
    view.tell("hashing", 100 * MB, 200 * MB, 20.0)
    view.tell("hashing", 101 * MB, 200 * MB, 20.5)
    assert view.line == "hashing   101.0 of 200.0 MB (50 %)", "another job has another pace"


def test_counts_of_files_have_no_rate() -> None:
    view = ProgressView()
    for second in range(5):
        view.tell("pip: unpacking packages", second, 60, second)
    assert view.line == "pip: unpacking packages   4 of 60 (6 %)"


def test_parts_are_those_of_the_last_round() -> None:
    view = ProgressView()
    rounds = [{"a": (1, 4), "b": (1, 2)}, {"b": (2, 2), "the hub asks to wait": (0, 0)}, {}]
    shown = []
    for second, parts in enumerate([*rounds, {}]):
        assert view.tell("job", second, 9, second)
        shown.append([(part.name, part.share) for part in view.parts])
        for name, (done, total) in parts.items():
            assert not view.tell(part_of("job", name), done, total, second)
    assert shown == [[], [("a", 0.25), ("b", 0.5)], [("b", 1.0), ("the hub asks to wait", None)], []]


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.2, "0 s"),
        (59.6, "60 s"),
        (99, "99 s"),
        (150, "2 min"),
        (4000, "67 min"),
        (6000, "1 h 40 min"),
        (90_000, "25 h 0 min"),
    ],
)
def test_durations(seconds: float, told: str) -> None:
    assert duration(seconds) == told


@pytest.mark.parametrize(
    ("count", "total", "told"),
    [(12, 0, "12"), (9_999, 0, "9999"), (12_000, 0, "12 kB"), (5, 20 * MB, "0.0 MB"), (16_400 * MB, 0, "16.4 GB")],
)
def test_amounts(count: int, total: int, told: str) -> None:
    assert amount(count, total) == told
