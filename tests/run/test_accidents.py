"""Every verb, broken at every driver call in every way: it ends as declared, and the same command converges."""

from __future__ import annotations

import pytest
from fakes.compare import adapters, lost, what_serves
from fakes.faults import Killed
from fakes.world import FakeWorld
from scenarios import SCENARIOS, Countdown, at_call, begun, clean, finish, observed, planned, serving, start, state

from orchestrator.core.events import Event, EventKind
from orchestrator.core.plan import Action, Plan
from orchestrator.errors import HostError, Interrupted, OrchError, StepFailed, StepStranded
from orchestrator.run import run

MESSAGE, HINT, DETAIL = "told to fail", "do this", "the evidence"
WHEN = ("before", "after")
UNDOES = [name for name in SCENARIOS if any(action.undo for action in planned(name).actions)]


def told() -> HostError:
    """A new one each time: one that is raised again and again drags all its tracebacks along."""
    return HostError(MESSAGE, hint=HINT, detail=DETAIL)


def failed_index(events: list[Event]) -> int:
    (failed,) = (event for event in events if event.kind is EventKind.FAILED)
    return failed.index


def assert_as_before(name: str, world: FakeWorld) -> None:
    now, (then, _) = observed(state(world)), begun(name)
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
            # A gateway that is slow to answer is asked again; what the engine before does not say is not compared, and
            # what is noted for people may be lost.
            assert calls[number].startswith(("gateway.status", "http.post", "records.note"))
            continue
        index = failed_index(world.events)
        if index >= plan.commit:
            assert type(ended) is StepStranded, calls[number]
            finish(name, state(world))
        else:
            if changed_before(plan, index):
                assert type(ended) is StepFailed, calls[number]
                assert MESSAGE in ended.message
            else:
                assert (type(ended), ended.message) == (HostError, MESSAGE), calls[number]
            assert_as_before(name, world)
        assert set(lost(world, begun(name)[1])) <= set(SCENARIOS[name].takes_away)
        assert (ended.hint.endswith(HINT), ended.detail) == (True, DETAIL)
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
            finish(name, state(world))
        else:
            assert_as_before(name, world)


@pytest.mark.parametrize("name", ["first-up-docker", "migrate", "lora-add-vllm", "down"])
def test_a_bug_is_taken_back_like_a_failure_and_raised_as_it_is(name: str) -> None:
    plan, (_, calls, _) = planned(name), clean(name)
    for number in range(len(calls)):
        world = start(name)
        world.faults.after = at_call(number, lambda: TypeError("a bug"))
        with pytest.raises(TypeError, match="a bug") as ended:
            world.run(plan)
        if failed_index(world.events) >= plan.commit:
            assert "the same command again" in ended.value.__notes__[0]
            finish(name, state(world))
        else:
            assert_as_before(name, world)


@pytest.mark.parametrize("name", ["first-up-docker", "migrate"])
def test_a_bug_in_an_undo_keeps_nothing_from_being_undone(name: str) -> None:
    plan, (_, calls, _) = planned(name), clean(name)
    last = max(number for number, call in enumerate(calls) if call == "http.post /v1/chat/completions")
    undo = 0
    while True:
        world = start(name)

        def fault(index: int, what: str, second: int = last + 1 + undo) -> None:
            if index == last:
                raise told()
            if index == second:
                raise TypeError("a bug")

        world.faults.before = fault
        with pytest.raises(StepFailed) as ended:
            world.run(plan)
        if len(world.faults.calls) <= last + 1 + undo:
            break
        assert type(ended.value) is StepStranded
        assert "TypeError: a bug" in ended.value.detail
        assert "Traceback" in ended.value.detail
        finish(name, state(world))
        undo += 1
    assert undo > 0


def test_a_screen_that_breaks_while_it_tells_of_a_failure_keeps_nothing_from_being_undone() -> None:
    world = start("migrate")

    def broken(event: Event) -> None:
        if event.step == "SetRoute":
            raise ValueError("the screen is broken")

    with pytest.raises(ValueError, match="the screen is broken"):
        run(planned("migrate"), world.world, broken, lambda: False)
    assert_as_before("migrate", world)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_killed_command_is_finished_by_the_next_one(name: str) -> None:
    """Killed before each call, and after the last: after one is before the next, because nothing of it lives on."""
    end, calls, _ = clean(name)
    served = {} if name.startswith("down") else serving(end, end.observe())
    for number in range(len(calls) + 1):
        world = start(name)
        if number < len(calls):
            world.faults.before = at_call(number, Killed)
        else:
            world.faults.after = at_call(number - 1, Killed)
        with pytest.raises(Killed):
            world.run(planned(name))
        told = (number, calls[number - 1 : number + 1])
        assert set(lost(world, begun(name)[1])) <= set(SCENARIOS[name].takes_away), told
        reached = finish(name, state(world))
        if SCENARIOS[name].again == "":
            assert reached == served, told


@pytest.mark.slow
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
        finish(name, state(world))
        number += 1
    assert number > last + 1
