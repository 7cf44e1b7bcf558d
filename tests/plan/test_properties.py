"""What holds for every plan that a case file makes: it converges, and what it undoes is as it was."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from fakes.asks import plan_of, plan_status, tiny
from fakes.compare import answered, left_to_do, lost, what_serves
from fakes.world import FakeWorld
from situation import Situation
from test_cases import CASES, load

from orchestrator.core.observed import Observed
from orchestrator.core.plan import Action, Plan, Skip
from orchestrator.core.prerequisites import BuildArtifact, FetchWeights
from orchestrator.core.steps import VerifyRoute
from orchestrator.errors import OrchError

PLANNED = [name for name in CASES if "expect" in load(name)]
ALWAYS_FAILS = Action(VerifyRoute(("nobody-serves-this",)))


@cache
def observed_of(name: str) -> Observed:
    return Situation(load(name)).observed()


def plan_for(name: str, observed: Observed) -> Plan:
    """The plan of the case's command."""
    return Situation(load(name)).plan(observed)


@pytest.mark.parametrize("name", PLANNED)
def test_the_fake_world_looks_as_the_case_says(name: str) -> None:
    observed = observed_of(name)
    assert FakeWorld.of(observed).observe() == observed


@pytest.mark.parametrize("name", PLANNED)
def test_nothing_is_left_to_do_after_a_plan(name: str) -> None:
    case = load(name)
    world = FakeWorld.of(observed_of(name))
    world.run(plan_for(name, world.observe()))
    after = world.observe()
    if case["command"].startswith("down"):
        assert left_to_do(plan_of("down", tiny(), after)) == []
        assert (after.engines_of("tiny"), after.routes_of("tiny")) == ((), ())
        assert "tiny" not in after.deployed
        return
    assert left_to_do(plan_status(after.desired["tiny"].spec.profile, after, Situation(case).docker)) == []
    desired = after.desired["tiny"]
    (served, *standing_by) = sorted(after.engines_of("tiny"), key=lambda one: not one.answers or one.rests)
    assert [one.running for one in standing_by] == [one.rests for one in standing_by]
    assert len(standing_by) == desired.keeps
    names = [*desired.spec.profile.public_names, *(adapter.name for adapter in desired.adapters)]
    assert {name: world.chat(name) for name in names} == dict.fromkeys(names, 200)
    # The process's own record says the same: a restart brings all of it back.
    assert served.deployment.adapters == desired.adapters


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANNED)
def test_undoing_any_part_of_a_plan_restores_what_served(name: str) -> None:
    observed = observed_of(name)
    plan = plan_for(name, observed)
    untouched = FakeWorld.of(observed)
    answering = answered(copy.deepcopy(untouched))
    for done in range(plan.commit + 1):
        if done and isinstance(plan.items[done - 1], Skip):
            continue
        world = copy.deepcopy(untouched)
        part = Plan(plan.verb, (*plan.items[:done], ALWAYS_FAILS), commit=done + 1)
        with pytest.raises(OrchError):
            world.run(part)
        after = world.observe()
        assert what_serves(after) == what_serves(observed) | awoken(observed, after)
        assert lost(world, answering) == []


def awoken(before: Observed, after: Observed) -> dict[str, Any]:
    """A gateway that was dead and has been started stays: healing is not undone."""
    was_dead = before.gateway.instance is not None and before.gateway.status is None
    return {"routes": ()} if was_dead and after.gateway.status is not None else {}


def test_weights_are_not_fetched_when_all_that_is_made_of_them_is_there() -> None:
    case = load("first-up-llamacpp-from-hub")
    profile, observed = tiny(**case["profile"]), observed_of("first-up-llamacpp-from-hub")
    builds = [a.step for a in plan_of(case["command"], profile, observed).actions if isinstance(a.step, BuildArtifact)]
    there = replace(observed, finished={step.key: 1000 for step in builds})
    plan = plan_of(case["command"], profile, there)
    assert "pull owner/name at 012345678901" in [item.what for item in plan.items if isinstance(item, Skip)]
    assert not any(isinstance(action.step, FetchWeights | BuildArtifact) for action in plan.actions)
