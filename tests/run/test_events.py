"""What is told while a plan runs, and in which order."""

from __future__ import annotations

import pytest
from scenarios import SCENARIOS, at_call, clean, planned, start

from orchestrator.core.events import EventKind, step_name
from orchestrator.core.plan import Action, Skip
from orchestrator.core.steps import MEMORY_S
from orchestrator.errors import HostError, StepFailed


@pytest.mark.parametrize("name", SCENARIOS)
def test_each_item_is_told_once_and_in_order(name: str) -> None:
    plan, world = planned(name), clean(name)[0]
    expected = []
    committed = False
    for index, item in enumerate(plan.items):
        if isinstance(item, Skip):
            expected.append((EventKind.SKIPPED, index, "", item.what, item.why))
            continue
        if index >= plan.commit > 0 and not committed:
            expected.append((EventKind.COMMITTED, index, "", "", ""))
            committed = True
        kind, what = step_name(item.step), item.step.what
        expected += [(EventKind.STARTED, index, kind, what, ""), (EventKind.DONE, index, kind, what, "")]
    expected.append((EventKind.FINISHED, len(plan.items), "", "", ""))
    events = [event for event in world.events if event.kind not in (EventKind.PROGRESS, EventKind.WAITING)]
    # What came of the probes is said besides.
    told = [event.why for event in events if (event.kind, event.step) == (EventKind.DONE, "ProveEngine")]
    assert all("hold; 5 of 5 greedy answers as before" in why for why in told)
    shown = [(e.kind, e.index, e.step, e.what, "" if e.why in told else e.why) for e in events]
    assert shown == expected
    assert {event.verb for event in events} == {plan.verb}


def test_progress_is_told_within_its_step() -> None:
    world = clean("first-up-llamacpp")[0]
    fetch = [event for event in world.events if event.step == "FetchWeights"]
    kinds = [event.kind for event in fetch]
    assert kinds == [EventKind.STARTED, *[EventKind.PROGRESS] * 3, EventKind.DONE]
    assert [(event.done, event.total) for event in fetch[1:-1]] == [(0, 1000), (500, 1000), (1000, 1000)]
    assert fetch[2].to_json() == {
        "event": "progress",
        "verb": "up",
        "index": 0,
        "step": "FetchWeights",
        "what": "downloading",
        "done": 500,
        "total": 1000,
    }


def test_the_time_of_a_step_is_told() -> None:
    world = clean("migrate")[0]
    (waited,) = (e for e in world.events if e.step == "AwaitReady" and e.kind is EventKind.DONE)
    assert 0.5 <= waited.seconds < 1.0


def test_a_wait_is_told_now_and_then_with_its_limit() -> None:
    told = [e for e in clean("lingering-memory")[0].events if e.step == "AwaitMemory"]
    started, *waits, done = told
    assert started.limit == MEMORY_S
    assert {e.kind for e in waits} == {EventKind.WAITING}
    assert [int(e.seconds) for e in waits] == list(range(1, len(waits) + 1))
    assert waits[-1].seconds <= done.seconds
    assert waits[0].to_json() == {
        "event": "waiting",
        "verb": "up",
        "index": waits[0].index,
        "step": "AwaitMemory",
        "what": waits[0].what,
        "seconds": round(waits[0].seconds, 3),
        "limit": MEMORY_S,
    }


def test_a_failure_tells_each_undo_in_reverse() -> None:
    plan, calls = planned("migrate"), clean("migrate")[1]
    last = max(number for number, call in enumerate(calls) if call.startswith("http.post"))
    world = start("migrate")
    world.faults.before = at_call(last, lambda: HostError("no"))
    with pytest.raises(StepFailed):
        world.run(plan)
    failed = next(index for index, event in enumerate(world.events) if event.kind is EventKind.FAILED)
    expected = []
    for item in reversed([item for item in plan.items[: plan.commit] if isinstance(item, Action)]):
        for step in item.undo:
            told = (step_name(step), step.what)
            expected += [(EventKind.UNDOING, *told), (EventKind.UNDONE, *told)]
    assert [(event.kind, event.step, event.what) for event in world.events[failed + 1 :]] == expected
    assert world.events[failed].why == "no"
