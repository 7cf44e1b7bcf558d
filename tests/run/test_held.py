"""Requests that are held while a plan runs: for how long, and what comes of a hold that is too long or was left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from fakes.asks import CPU, GIB, plan_of, tiny
from fakes.gateway import AlteredHttp
from fakes.target import Fate
from fakes.world import FakeWorld

from orchestrator.app.deploy import Options, Waiting
from orchestrator.core.gateway_status import HeldLoad
from orchestrator.core.plan import Plan
from orchestrator.drivers.base import Reply
from orchestrator.errors import StepFailed

# llama.cpp asks for 0.93 GiB, vLLM for 3.14.
ONE_FITS = 4 * GIB


@pytest.fixture
def world() -> FakeWorld:
    made = FakeWorld(CPU)
    made.run(plan_of("up llamacpp", tiny(), made.observe(), engine_memory=ONE_FITS))
    return made


def handover(world: FakeWorld, **waiting: float) -> Plan:
    options = Options(waiting=Waiting(**waiting))
    return plan_of("migrate vllm", tiny(), world.observe(), options, engine_memory=ONE_FITS)


def held(world: FakeWorld) -> dict[str, float]:
    status = world.gateway.status()
    assert status is not None
    return dict(status.paused)


def test_nobody_is_held_when_it_is_over(world: FakeWorld) -> None:
    world.run(handover(world))
    assert held(world) == {}
    (engine,) = world.observe().engines_of("tiny")
    assert (engine.deployment.engine, world.chat("tiny")) == ("vllm", 200)


def test_a_request_that_has_waited_too_long_brings_the_old_engine_back(world: FakeWorld) -> None:
    world.target.fates["tiny-vllm-g2"] = Fate(hangs=True)
    world.gateway.held["tiny"] = HeldLoad(1, 70, 31.0)
    with pytest.raises(StepFailed) as failed:
        world.run(handover(world, longest_hold_s=30.0))
    assert "a request has been held for 31 s, and none may be for more than 30" in failed.value.message
    assert "--max-hold" in failed.value.hint
    assert held(world) == {}
    (engine,) = world.observe().engines_of("tiny")
    assert (engine.deployment.engine, engine.answers, world.chat("tiny")) == ("llamacpp", True, 200)


@pytest.mark.parametrize(("waited_s", "engine"), [(23.0, "vllm"), (25.0, "llamacpp")])
def test_the_first_token_is_a_part_of_the_wait(world: FakeWorld, waited_s: float, engine: str) -> None:

    def slow_to_begin(asked: Mapping[str, Any], reply: Reply | None) -> Reply | None:
        if asked.get("max_tokens") == 1:
            world.clock.sleep(6)
        return reply

    world.http = AlteredHttp(world.targets, world.faults, slow_to_begin)
    world.gateway.held["tiny"] = HeldLoad(1, 70, waited_s)
    plan = handover(world, longest_hold_s=30.0)
    if engine == "vllm":
        world.run(plan)
    else:
        with pytest.raises(StepFailed) as failed:
            world.run(plan)
        said = "a request has been held for 25 s and would wait for 6 s more, and none may be for more than 30"
        assert said in failed.value.message
    (serving,) = world.observe().engines_of("tiny")
    assert (serving.deployment.engine, held(world)) == (engine, {})


def test_as_long_as_nobody_waits_for_too_long_it_goes_on_and_the_hold_is_renewed(world: FakeWorld) -> None:
    world.target.fates["tiny-vllm-g2"] = Fate(hangs=True)
    plan = handover(world, longest_hold_s=30.0, ready_s=300.0)
    with pytest.raises(StepFailed, match="did not answer within 300 s"):
        world.run(plan)
    assert world.chat("tiny") == 200


def test_what_is_in_flight_for_too_long_is_not_cut(world: FakeWorld) -> None:
    world.gateway.in_flight["tiny-llamacpp-g1"] = 2
    with pytest.raises(StepFailed) as failed:
        world.run(handover(world, drain_s=5.0))
    assert "2 requests are in flight on tiny-llamacpp-g1 after 5 s" in failed.value.message
    assert world.gateway.in_flight["tiny-llamacpp-g1"] == 2
    assert held(world) == {}
