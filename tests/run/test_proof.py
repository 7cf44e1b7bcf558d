"""What a new engine has to prove before a client meets it, and what comes of it where it does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from fakes.asks import CPU, plan_of, tiny
from fakes.gateway import AlteredHttp
from fakes.world import FakeWorld

from orchestrator.app.deploy import Options, Waiting
from orchestrator.drivers.base import Reply
from orchestrator.errors import StepFailed


def without_forms(asked: Mapping[str, Any], reply: Reply | None) -> Reply | None:
    """Engines that do not know what a JSON schema is."""
    return Reply(400, None, "what is a schema?") if "response_format" in asked else reply


@pytest.fixture
def world() -> FakeWorld:
    made = FakeWorld(CPU)
    made.run(plan_of("up llamacpp", tiny(), made.observe()))
    return made


def test_it_is_said_what_came_of_it(world: FakeWorld) -> None:
    world.run(plan_of("migrate vllm", tiny(), world.observe()))
    (told,) = (event.why for event in world.events if event.step == "ProveEngine" and event.why)
    assert told == "3 of 3 hold; 5 of 5 greedy answers as before; the first token came after 0.00 s"
    noted = world.records.noted("proofs", "tiny")
    assert isinstance(noted, dict)
    assert noted["instance"] == "tiny-vllm-g2"
    assert [(one["probe"], one["holds"]) for one in noted["proofs"]] == [
        *(("answers", True), ("schema", True), ("first-token", True)),
    ]


def test_what_does_not_hold_leaves_the_old_engine(world: FakeWorld) -> None:
    world.http = AlteredHttp(world.targets, world.faults, without_forms)
    with pytest.raises(StepFailed) as failed:
        world.run(plan_of("migrate vllm", tiny(), world.observe()))
    assert "a JSON schema is answered 400: what is a schema?" in failed.value.message
    assert "--skip-probe schema" in failed.value.hint
    (engine,) = world.observe().engines_of("tiny")
    assert (engine.deployment.engine, engine.answers, world.chat("tiny")) == ("llamacpp", True, 200)


@pytest.mark.parametrize(
    ("now", "told"),
    [
        ("Ahoy!", "1 of 1 adapters answer as before"),
        ("Ahoy, mate!", "0 of 1 adapters answer as before"),
        ("Hello.", "adapter a changes nothing: it answers as the base does"),
    ],
)
def test_adapters_are_compared_and_must_change_something(world: FakeWorld, now: str, told: str) -> None:
    world.run(plan_of("lora add a", tiny(), world.observe()))

    def answers(asked: Mapping[str, Any], reply: Reply | None) -> Reply | None:
        if reply is None or reply.status != 200 or "messages" not in asked:
            return reply
        # llama.cpp is told of an adapter by its scale, vLLM by its name.
        on_llamacpp = any(one["scale"] for one in asked.get("lora", ()))
        said = "Ahoy!" if on_llamacpp else now if asked["model"] == "a" else "Hello."
        return Reply(200, {"choices": [{"message": {"content": said}, "finish_reason": "stop"}]}, "")

    world.http = AlteredHttp(world.targets, world.faults, answers)
    options = Options(waiting=Waiting(skipped_probes=("schema",)))
    plan = plan_of("migrate vllm", tiny(), world.observe(), options)
    if now == "Hello.":
        with pytest.raises(StepFailed) as failed:
            world.run(plan)
        assert told in failed.value.message
        assert "--skip-probe adapters" in failed.value.hint
        return
    world.run(plan)
    (summary,) = (event.why for event in world.events if event.step == "ProveEngine" and event.why)
    assert told in summary


def test_what_is_skipped_need_not_hold(world: FakeWorld) -> None:
    world.http = AlteredHttp(world.targets, world.faults, without_forms)
    options = Options(waiting=Waiting(skipped_probes=("schema",)))
    world.run(plan_of("migrate vllm", tiny(), world.observe(), options))
    (engine,) = world.observe().engines_of("tiny")
    assert engine.deployment.engine == "vllm"


def test_who_goes_back_proves_nothing(world: FakeWorld) -> None:
    world.run(plan_of("migrate vllm", tiny(), world.observe()))
    world.http = AlteredHttp(world.targets, world.faults, without_forms)
    world.run(plan_of("rollback", tiny(), world.observe()))
    (engine,) = world.observe().engines_of("tiny")
    assert engine.deployment.engine == "llamacpp"
