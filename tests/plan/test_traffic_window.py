"""The lines of what clients did, and what they come to: pure."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as some

from orchestrator.core.live_load import LiveLoad
from orchestrator.core.traffic_window import (
    AtATime,
    Line,
    bound_of,
    bucket_of,
    file_name,
    files_since,
    is_old,
    level_of,
    live_load_of,
    read,
)

NOW = datetime(2026, 11, 30, 12, 0, 30, tzinfo=UTC).timestamp()
MINUTE = int(NOW // 60) * 60
NAMED = Line(
    MINUTE - 60, "one", "tiny", "vllm", False, 5, 1, AtATime(3, {0: 10.0, 3: 50.0}), AtATime(), {40: 4}, 50, 60
)
TOGETHER = Line(MINUTE - 60, "one", users=AtATime(4, {0: 6.0, 3: 48.0, 4: 6.0}), waiting=AtATime(2, {0: 30.0, 2: 30.0}))


def test_a_line_is_read_as_it_was_written() -> None:
    for line in (NAMED, TOGETHER):
        assert read([line.to_text()]) == [line]
        assert line.to_text().count("\n") == 1
    # A later version may say more.
    assert read([json.dumps({**json.loads(NAMED.to_text()), "version": 9, "more": []})]) == [NAMED]


@given(some.integers(0, len(NAMED.to_text()) - 2))
def test_half_a_line_is_none(cut: int) -> None:
    assert read([NAMED.to_text()[:cut], TOGETHER.to_text()]) == [TOGETHER]


@pytest.mark.parametrize("text", ["", "{}", "null", "[]", "3", '{"minute": 1}', "\0", "[" * 100_000])
def test_what_is_no_line_is_passed_over(text: str) -> None:
    assert read([text]) == []


@given(some.floats(0, 5000))
def test_a_time_is_in_its_bucket(seconds: float) -> None:
    number = bucket_of(seconds)
    assert seconds <= bound_of(number) * (1 + 1e-8) or number == 80
    assert number == 0 or seconds > bound_of(number - 1) * (1 - 1e-8)


@given(some.integers(0, 10**6))
def test_a_level_is_never_less_and_hardly_more(requests: int) -> None:
    assert requests <= level_of(requests) <= requests * 1.125 + 0.01


def test_what_lines_come_to() -> None:
    found = live_load_of([NAMED, TOGETHER], "one", NOW, 24)
    assert found is not None
    # Four times in the bucket that ends at 1.024 s: half of them below its middle.
    low = bound_of(39)
    half, nearly = (1000 * (low + (1.024 - low) * part) for part in (0.5, 0.95))
    assert found.ttft_p50_ms == pytest.approx(half)
    assert found.ttft_p95_ms == pytest.approx(nearly)
    rest = {"users_p50": 3, "users_p95": 4, "users_max": 4, "waiting_p95": 2, "adapters": 0}
    assert {name: getattr(found, name) for name in rest} == rest
    assert (found.requests, found.errors) == (5, 1)
    assert found.hours == pytest.approx(1.5 / 60)


def test_the_time_in_which_nobody_was_there_does_not_count() -> None:
    calm = Line(MINUTE, "one", users=AtATime(6, {0: 57.0, 2: 1.0, 6: 2.0}), waiting=AtATime(1, {0: 59.0, 1: 1.0}))
    found = live_load_of([NAMED, calm], "one", NOW, 24)
    assert found is not None
    assert (found.users_p50, found.users_p95) == (6, 6)
    # A third of the three seconds.
    assert found.waiting_p95 == 1


def test_two_gateways_and_two_minutes_are_added() -> None:
    later = Line(MINUTE, "one", "tiny", "vllm", requests=2, users=AtATime(1, {1: 30.0}), ttft={0: 12})
    adapter = Line(MINUTE, "one", "law", "vllm", True, 1, ttft={})
    others = [Line(MINUTE, "one", users=AtATime(9, {1: 10_000.0})), Line(MINUTE, "two", "big", requests=100)]
    found = live_load_of([NAMED, TOGETHER, later, NAMED, adapter, adapter, *others], "one", NOW, 1)
    assert found is not None
    assert (found.requests, found.errors, found.adapters) == (14, 2, 1)
    assert (found.users_p50, found.users_p95, found.users_max) == (1, 1, 9)
    assert found.ttft_p50_ms == pytest.approx(10 / 12)


def test_nothing_streamed_has_no_time_to_a_first_token() -> None:
    found = live_load_of([Line(MINUTE, "one", "tiny", requests=1)], "one", NOW, 24)
    assert found == LiveLoad(pytest.approx(30 / 3600), 1, 0, 0.0, 0.0, 0, 0.0, None, None, 0)


@pytest.mark.parametrize("lines", [[], [TOGETHER], [Line(MINUTE - 3600 * 25, "one", "tiny", requests=1)]])
def test_none_where_nobody_asked_for_anything(lines: list[Line]) -> None:
    assert live_load_of(lines, "one", NOW, 24) is None
    assert live_load_of([*lines, NAMED], "two", NOW, 24) is None


def test_the_hours_begin_with_the_first_line() -> None:
    long_ago = Line(MINUTE - 3600 * 3, "two", "big", requests=1)
    for hours, counted in ((1, 1), (24, 3 + 30 / 3600)):
        found = live_load_of([long_ago, NAMED], "one", NOW, hours)
        assert found is not None
        assert found.hours == pytest.approx(counted, abs=0.02)


def test_files_are_of_days() -> None:
    assert file_name(NOW) == "2026-11-30.jsonl"
    assert files_since(NOW - 3600 * 24, NOW) == ("2026-11-29.jsonl", "2026-11-30.jsonl")
    assert files_since(NOW, NOW) == ("2026-11-30.jsonl",)
    assert [name for name in map("2026-11-{}.jsonl".format, range(18, 31)) if is_old(name, NOW)] == [
        *("2026-11-18.jsonl", "2026-11-19.jsonl", "2026-11-20.jsonl", "2026-11-21.jsonl")
    ]
    for other in ("2020-01-01", "key-use.json", "x.jsonl", "2020-13-01.jsonl"):
        assert not is_old(other, NOW)
