"""Every verb, broken at every driver call in every way: it ends as declared, and the same command converges."""

from __future__ import annotations

import pytest
from fakes.compare import adapters, lost, what_serves
from fakes.faults import Killed
from fakes.world import FakeWorld
from scenarios import SCENARIOS, Countdown, at_call, clean, finish, planned, serving, start

from orchestrator.core.events import Event, EventKind
from orchestrator.core.steps import Action, Plan
from orchestrator.errors import HostError, Interrupted, OrchError, StepFailed, StepStranded

TOLD = HostError("told to fail", hint="do this", detail="the evidence")
WHEN = ("before", "after")
UNDOES = [name for name in SCENARIOS if any(action.undo for action in planned(name).actions)]


def told() -> HostError:
    return TOLD


def failed_index(events: list[Event]) -> int:
    (failed,) = (event for event in events if event.kind is EventKind.FAILED)
    return failed.index


def assert_as_before(name: str, world: FakeWorld) -> None:
    now, then = world.observe(), start(name).observe()
    assert (what_serves(now), adapters(now)) == (what_serves(then), adapters(then))


def changed_before(plan: Plan, index: int) -> bool:
    return any(isinstance(item, Action) and item.undo for item in plan.items[:index])


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_failure_ends_as_declared(name: str, when: str) -> None:
    plan, (_, calls, _) = planned(name), clean(name)
    seen = set()
    for number in range(len(calls)):
        world = start(name)
        setattr(world.faults, when, at_call(number, told))
        try:
            world.run(plan)
        except OrchError as error:
            ended = error
        else:
            assert calls[number] == "gateway.status", "a gateway that is slow to answer is asked again"
            continue
        index = failed_index(world.events)
        if index >= plan.commit:
            assert type(ended) is StepStranded, calls[number]
            finish(name, world)
        else:
            if changed_before(plan, index):
                assert type(ended) is StepFailed, calls[number]
                assert TOLD.message in ended.message
            else:
                assert ended is TOLD, calls[number]
            assert_as_before(name, world)
        assert set(lost(world, start(name))) <= set(SCENARIOS[name].takes_away)
        assert (ended.hint.endswith(TOLD.hint), ended.detail) == (True, TOLD.detail)
        seen.add(index)
    assert seen == {index for index, item in enumerate(plan.items) if isinstance(item, Action)}


@pytest.mark.parametrize("name", SCENARIOS)
def test_an_interrupt_is_taken_back_or_said_to_be_too_late(name: str) -> None:
    plan, (_, _, asked) = planned(name), clean(name)
    for number in range(asked):
        world = start(name)
        with pytest.raises(Interrupted) as ended:
            world.run(plan, Countdown(number))
        if failed_index(world.events) >= plan.commit:
            assert ("orch up" if name == "rollback" else "the same command again") in ended.value.hint
            finish(name, world)
        else:
            assert_as_before(name, world)


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_killed_command_is_finished_by_the_next_one(name: str, when: str) -> None:
    end, calls, _ = clean(name)
    for number in range(len(calls)):
        world = start(name)
        setattr(world.faults, when, at_call(number, Killed))
        with pytest.raises(Killed):
            world.run(planned(name))
        assert set(lost(world, start(name))) <= set(SCENARIOS[name].takes_away), calls[number]
        reached = finish(name, world)
        if SCENARIOS[name].again == "":
            assert reached == ({} if name.startswith("down") else serving(end)), calls[number]


@pytest.mark.parametrize("name", UNDOES)
def test_an_undo_that_fails_strands_and_the_next_command_mends_it(name: str) -> None:
    plan, (_, calls, _) = planned(name), clean(name)
    # The last call before the commit point asks through the gateway: everything is undone when it fails.
    last = max(number for number, call in enumerate(calls) if call == "http.post /v1/chat/completions")
    number = last + 1
    while True:
        world = start(name)

        def fault(index: int, what: str, second: int = number) -> None:
            if index in (last, second):
                raise told()

        world.faults.before = fault
        with pytest.raises(StepFailed) as ended:
            world.run(plan)
        if len(world.faults.calls) <= number:
            assert type(ended.value) is StepFailed
            break
        assert type(ended.value) is StepStranded
        assert "while undoing" in ended.value.message
        finish(name, world)
        number += 1
    assert number > last + 1
