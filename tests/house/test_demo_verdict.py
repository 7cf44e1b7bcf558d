"""The demo's verdict on a switch: what clients could notice is found, and how slow a machine is counts for nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from orch_command import script, streams

verdict = script("switch_verdict")
Stream = streams.Stream

BLUE = "The sky is blue."
SWITCH = verdict.Switch(began=100.0, ended=101.0, old="llamacpp", new="vllm")
OLD, NEW = "b0-unknown", "vllm-0.32.0-tp1-1234"


def stream(
    started: float, first: float | None, ended: float | None, engine: str, text: str = f"{BLUE} And so on"
) -> Any:
    return Stream("m", started, first, ended, 9, text, engine)


def good(count: int = 8, pace: float = 1.0) -> list[Any]:
    """Streams over a switch as they should be, on a machine that is `pace` times as slow."""
    before = [stream(100 - 50 * pace, 100 - 40 * pace, 100 - 20 * pace, OLD)] * 3
    over = [stream(100 - 9 * pace, 100 - 8 * pace, 101 + 20 * pace, OLD)] * count
    either = [stream(100 - 1 * pace, 100.5, 101 + pace, engine) for engine in (OLD, NEW)]
    after = [stream(101 + pace, 101 + 2 * pace, 101 + 30 * pace, NEW)] * 3
    return [*before, *over, *either, *after]


def faults(found: list[Any]) -> list[str]:
    return list(verdict.faults(found, SWITCH, BLUE, 8))


@pytest.mark.parametrize("pace", [0.01, 1.0, 60.0])
def test_a_switch_that_nobody_noticed_is_one_on_any_machine(pace: float) -> None:
    assert faults(good(pace=pace)) == []
    assert verdict.across(good(pace=pace), SWITCH) == 8


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda one: replace(one, problem="HTTP 502: no engine"), "a stream failed: HTTP 502"),
        (lambda one: replace(one, problem="cut: no [DONE]"), "a stream failed: cut"),
        (lambda one: replace(one, ended=None), "did not reach its end"),
        (lambda one: replace(one, text="The sky is green."), "a wrong answer"),
        (lambda one: replace(one, text=""), "a wrong answer"),
        (lambda one: replace(one, engine=NEW if one.engine == OLD else OLD), "out of its turn"),
        (lambda one: replace(one, engine=""), "out of its turn"),
    ],
    ids=["refused", "cut", "endless", "wrong", "empty", "the other engine", "no engine"],
)
@pytest.mark.parametrize("which", [0, 5, -1], ids=["before", "across", "after"])
def test_one_stream_that_is_not_as_it_should_be_is_enough(change: Callable[[Any], Any], told: str, which: int) -> None:
    found = good(count=20)
    found[which] = change(found[which])
    assert [told in fault for fault in faults(found)] == [True]


def test_too_few_streams_across_prove_nothing() -> None:
    assert faults(good(count=7)) == ["only 7 streams were open across the switch"]


@pytest.mark.parametrize(
    "not_across",
    [
        stream(90.0, 95.0, 100.5, OLD),  # ended within
        stream(90.0, 100.5, 120.0, OLD),  # had no token before
        stream(90.0, 95.0, 99.0, OLD),
    ],
)
def test_what_is_open_at_one_end_only_is_not_across(not_across: Any) -> None:
    assert verdict.across([not_across], SWITCH) == 0


def test_a_load_that_ended_with_the_switch_proves_nothing() -> None:
    assert faults([one for one in good() if one.started <= SWITCH.ended]) == ["no stream began after the switch"]
