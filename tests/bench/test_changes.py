"""What adapters and starts come to, by figures that were worked out by hand."""

from __future__ import annotations

import pytest
from levels import level

from orchestrator.bench.starts import Clocked, summed_up
from orchestrator.bench.swaps import swaps
from orchestrator.core.events import Event, EventKind
from orchestrator.errors import HostError


def test_a_swap_is_how_much_later_the_first_token_comes() -> None:
    levels = [
        level("vllm", 4, 500.0, 30.0),
        level("vllm", 4, 200.0, 50.0, adapters=["a"]),
        level("vllm", 4, 180.0, 58.0, adapters=["a", "b", "c"]),
        # Without all three there is nothing to compare.
        level("ollama", 4, 500.0, 30.0),
        level("ollama", 4, 100.0, 900.0, adapters=["a", "b"]),
    ]
    (one,) = swaps(levels)
    assert (one["engine"], one["adapters"], one["swap_ms"]) == ("vllm", 3, pytest.approx(8.0))
    assert (one["base_throughput"], one["one_throughput"], one["turns_throughput"]) == (500.0, 200.0, 180.0)


def test_a_figure_that_is_missing_leaves_no_swap() -> None:
    levels = [level("vllm", 1, 1.0, adapters=["a"] * n) for n in range(3)]
    levels[2]["p50_ttft_ms"] = None
    (one,) = swaps(levels)
    assert one["swap_ms"] is None


class Watched:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.told = 0

    def event(self, event: Event) -> None:
        self.told += 1

    def error(self, error: HostError) -> None:
        raise AssertionError(error)

    def interrupted(self) -> bool:
        return False


def test_a_start_is_the_steps_of_the_last_plan_that_belong_to_it() -> None:
    watched = Watched()
    clock = Clocked(watched)
    for plan in (50.0, 2.0):
        clock.event(Event(EventKind.PLANNED, "bench"))
        clock.event(Event(EventKind.DONE, "bench", step="EnsureArtifact", seconds=99.0))
        clock.event(Event(EventKind.DONE, "bench", step="EnsureEngine", seconds=0.5))
        clock.event(Event(EventKind.STARTED, "bench", step="AwaitReady", seconds=7.0))
        clock.event(Event(EventKind.DONE, "bench", step="AwaitReady", seconds=plan))
        clock.event(Event(EventKind.DONE, "bench", step="Drain", seconds=30.0))
    assert clock.seconds == {"EnsureEngine": 0.5, "AwaitReady": 2.0}
    assert watched.told == 12


def test_starts_are_told_by_their_median_and_range() -> None:
    lines = [
        {"engine": "vllm", "recipe": "nvfp4", "cold_s": cold, "warm_ttft_ms": warm}
        for cold, warm in ((20.0, 30.0), (40.0, None), (22.0, 50.0))
    ]
    (one,) = summed_up(lines)
    assert (one["starts"], one["cold, s"], one["least"], one["most"]) == (3, 22.0, 20.0, 40.0)
    assert one["warm TTFT, ms"] == 40.0
