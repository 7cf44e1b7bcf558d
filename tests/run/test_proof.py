"""What a new engine has to prove before a client meets it, and what comes of it where it does not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fakes.asks import CPU, plan_of, tiny
from fakes.gateway import FakeHttp
from fakes.world import FakeWorld

from orchestrator.app.deploy import Options, Waiting
from orchestrator.core.progress import Progress
from orchestrator.drivers.base import Reply
from orchestrator.errors import StepFailed


class WithoutForms(FakeHttp):
    """Engines that do not know what a JSON schema is."""

    def __init__(self, world: FakeWorld) -> None:
        super().__init__(world.targets, world.faults)

    def send(
        self,
        method: str,
        url: str,
        content: Mapping[str, Any] | Path | None,
        timeout_s: float,
        progress: Progress,
        key: str = "",
    ) -> Reply | None:
        if isinstance(content, Mapping) and "response_format" in content:
            return Reply(400, None, "what is a schema?")
        return super().send(method, url, content, timeout_s, progress, key)


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
    world.http = WithoutForms(world)
    with pytest.raises(StepFailed) as failed:
        world.run(plan_of("migrate vllm", tiny(), world.observe()))
    assert "a JSON schema is answered 400: what is a schema?" in failed.value.message
    assert "--skip-probe schema" in failed.value.hint
    (engine,) = world.observe().engines_of("tiny")
    assert (engine.deployment.engine, engine.answers, world.chat("tiny")) == ("llamacpp", True, 200)


def test_what_is_skipped_need_not_hold(world: FakeWorld) -> None:
    world.http = WithoutForms(world)
    options = Options(waiting=Waiting(skipped_probes=("schema",)))
    world.run(plan_of("migrate vllm", tiny(), world.observe(), options))
    (engine,) = world.observe().engines_of("tiny")
    assert engine.deployment.engine == "vllm"


def test_who_goes_back_proves_nothing(world: FakeWorld) -> None:
    world.run(plan_of("migrate vllm", tiny(), world.observe()))
    world.http = WithoutForms(world)
    world.run(plan_of("rollback", tiny(), world.observe()))
    (engine,) = world.observe().engines_of("tiny")
    assert engine.deployment.engine == "llamacpp"
