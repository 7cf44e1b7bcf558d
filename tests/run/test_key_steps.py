"""API keys: kept, read by the gateway that runs, taken over from an earlier version; and what fails meanwhile."""

from __future__ import annotations

import pytest
from fakes.gateway import gateway_processes
from fakes.world import FakeWorld
from scenarios import planned, start

from orchestrator.core.gateway import GatewaySpec, KeyChange
from orchestrator.core.keys import ApiKey, KeyRing, digest_of
from orchestrator.core.plan import Plan
from orchestrator.errors import HostError, PlanRefused, StepFailed
from orchestrator.planning.keys import plan_keys, read_items
from orchestrator.planning.parts import Limits


def ring(*keys: str) -> KeyRing:
    return KeyRing(tuple(ApiKey(key, digest_of(key), "2026-01-31T12:00:00Z") for key in keys))


def running() -> FakeWorld:
    world = start("first-up-llamacpp")
    world.run(planned("first-up-llamacpp"))
    return world


def keys_plan(world: FakeWorld, wanted: KeyRing) -> Plan:
    change = KeyChange(world.keys.read(), wanted, "change the keys", world.keys.written, world.keys.has_old_file)
    gateway = GatewaySpec(world.observe().gateway.listeners, keys=change)
    return plan_keys("keys", gateway, world.observe(), Limits(60.0, 60.0))


def test_orch_shows_no_clients_key_to_the_gateway_and_none_to_an_engine_of_another() -> None:
    world = start("first-up-llamacpp")
    world.keys.ring = ring("one")
    world.run(planned("first-up-llamacpp"))
    assert (world.chat("tiny"), world.chat("tiny", "one")) == (401, 200)


def test_keys_are_kept_and_then_read_by_the_gateway() -> None:
    world = running()
    world.run(keys_plan(world, ring("one")))
    assert (world.chat("tiny"), world.chat("tiny", "one")) == (401, 200)
    assert keys_plan(world, ring("one")).actions == ()


def test_keys_that_the_gateway_cannot_read_are_those_of_before() -> None:
    world = running()
    world.keys.ring = ring("one")
    world.gateway.read_keys()
    refused = iter([HostError("The gateway does not answer.")])

    def refuse_once(_: int, what: str) -> None:
        if what == "gateway.read_keys" and (error := next(refused, None)) is not None:
            raise error

    world.faults.before = refuse_once
    with pytest.raises(StepFailed):
        world.run(keys_plan(world, ring("two")))
    assert world.keys.read() == ring("one")
    assert (world.chat("tiny", "two"), world.chat("tiny", "one")) == (401, 200)


def test_a_gateway_that_was_killed_out_of_reading_reads_them_with_the_next_command() -> None:
    world = running()
    world.keys.ring = ring("one")
    assert world.chat("tiny") == 200
    world.run(keys_plan(world, ring("one")))
    assert (world.chat("tiny"), world.chat("tiny", "one")) == (401, 200)


def test_a_gateway_whose_replacement_was_killed_is_replaced_by_the_next_up() -> None:
    world = running()
    (_, process), *_ = gateway_processes(world.targets)
    process.protocol = 2
    world.keys.old, world.keys.ring = ring("one", "leaked"), ring("one")
    change = KeyChange(world.keys.read(), world.keys.read(), "", written=True, old_file=True)
    plan = keys_plan(world, ring("one"))
    assert [type(action.step).__name__ for action in plan.actions] == [
        "ReplaceGateway",
        "ClearGateway",
        "DropOldKeyFile",
    ]
    assert [*read_items(change, world.observe())] == [], "an earlier one has a file of its own"


def test_keys_are_not_changed_under_a_gateway_that_does_not_answer() -> None:
    world = running()
    world.gateway.stuck = next(process.pid for _, process in gateway_processes(world.targets))
    with pytest.raises(PlanRefused, match="does not answer"):
        keys_plan(world, ring("one"))


def test_keys_as_plain_text_are_taken_over_with_the_gateway() -> None:
    world = running()
    (_, process), *_ = gateway_processes(world.targets)
    process.protocol = 2
    world.keys.old = ring("one")
    plan = keys_plan(world, ring("one", "two"))
    steps = [type(action.step).__name__ for action in plan.actions]
    assert steps == ["WriteKeys", "ReplaceGateway", "ClearGateway", "DropOldKeyFile"]
    world.run(plan)
    assert (world.keys.has_old_file, world.chat("tiny", "one"), world.chat("tiny", "two")) == (False, 200, 200)
