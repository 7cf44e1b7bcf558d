"""What clients are told of models: as the store has it, and where an earlier version of orch has not recorded it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fakes.asks import CPU, MadeUpCatalog, MadeUpOrchestrator, intent_of, tiny
from fakes.storage import SIZE
from fakes.world import FakeWorld

from orchestrator.app.deploy import Options, plan_for, plan_to
from orchestrator.core.deployment import Desired
from orchestrator.core.meaning import Meaning
from orchestrator.core.plan import Plan
from orchestrator.core.routes import FIRST_WITH_CARDS, PROTOCOL, Route, RouteTable
from orchestrator.core.steps import SetRoute
from orchestrator.errors import SourceError

MADE = "2026-01-01T00:00:00+00:00"


class Contradicting(MadeUpCatalog):
    """Weights whose files contradict each other by now."""

    def meaning(self, path: Path) -> Meaning:
        raise SourceError(f"The files in {path} contradict each other.")


def plan(world: FakeWorld, command: str, catalog: MadeUpCatalog | None = None) -> Plan:
    orch, observed = MadeUpOrchestrator(world.host), world.observe()
    orch.catalog = catalog or orch.catalog  # type: ignore[assignment]
    if command == "status":
        return plan_to(orch, "status", observed.desired["tiny"], observed, Options(), learn=False)
    return plan_for(orch, "a test", intent_of(command, tiny()), observed, Options(renew_gateway="--gateway" in command))


def steps(world: FakeWorld, command: str) -> list[str]:
    return [type(action.step).__name__ for action in plan(world, command).actions]


def do(world: FakeWorld, command: str) -> list[str]:
    made = plan(world, command)
    world.run(made)
    return [type(action.step).__name__ for action in made.actions]


def routes(world: FakeWorld) -> dict[str, Route]:
    return {route.name: route for route in world.observe().routes_of("tiny")}


def forget(world: FakeWorld, protocol: int) -> None:
    """As a version of orch has left it that did not know of cards, and a gateway of this protocol."""
    desired = world.observe().desired["tiny"]
    before = desired.before
    if before is not None:
        before = Desired(spec=before.spec, resolution=before.resolution).without_card.served
    world.records.record("tiny", desired.without_card.model_copy({"before": before}))
    process = world.target.processes["gateway"]
    process.protocol = protocol
    process.routes = RouteTable([route.known_to(FIRST_WITH_CARDS - 1) for route in process.routes])


@pytest.fixture
def world() -> FakeWorld:
    made = FakeWorld(replace(CPU, programs={"ollama": "/usr/bin/ollama"}))
    do(made, "up llamacpp")
    return made


def test_what_the_store_says_of_the_artifact(world: FakeWorld) -> None:
    """What was an estimate before it was built is no longer; and it is no change."""
    for route in routes(world).values():
        assert route.card is not None
        assert (route.card.size, route.card.made_at) == (SIZE, MADE)
    assert (steps(world, "status"), steps(world, "up")) == ([], [])
    do(world, "lora add a")
    card = routes(world)["a"].card
    assert card is not None
    assert (card.base, card.made_at) == ("tiny", MADE)
    assert (steps(world, "status"), steps(world, "up")) == ([], [])


def test_it_is_told_by_the_next_up_and_nothing_starts_anew(world: FakeWorld) -> None:
    forget(world, PROTOCOL)
    # The gateway knows less than there is to say: nothing is wrong with that.
    (looked,) = plan(world, "status").actions
    assert isinstance(looked.step, SetRoute)
    assert looked.step.only_tells
    assert do(world, "up") == ["RecordDesired", "SetRoute", "VerifyRoute"]
    assert all(route.card is not None and route.card.made_at == MADE for route in routes(world).values())
    assert (steps(world, "status"), steps(world, "up")) == ([], [])
    assert [engine.instance.name for engine in world.observe().engines] == ["tiny-llamacpp-g1"]


def test_a_gateway_of_an_older_protocol_stays_until_it_is_replaced(world: FakeWorld) -> None:
    forget(world, FIRST_WITH_CARDS - 1)
    assert (steps(world, "status"), steps(world, "up")) == ([], [])
    assert do(world, "up --gateway")[0] == "ReplaceGateway"
    assert all(route.card is not None for route in routes(world).values())
    assert steps(world, "up") == []
    assert [engine.instance.name for engine in world.observe().engines] == ["tiny-llamacpp-g1"]


@pytest.mark.parametrize("command", ["lora add a", "migrate ollama"])
def test_with_another_change_it_is_told_too(world: FakeWorld, command: str) -> None:
    forget(world, FIRST_WITH_CARDS - 1)
    assert "ReplaceGateway" in do(world, command)
    assert all(route.card is not None for route in routes(world).values())
    assert (steps(world, "status"), steps(world, "up")) == ([], [])


def test_what_is_gone_back_to_is_told(world: FakeWorld) -> None:
    do(world, "migrate ollama")
    forget(world, PROTOCOL)
    do(world, "rollback")
    assert all(route.card is not None and route.card.format == "gguf" for route in routes(world).values())
    assert (steps(world, "status"), steps(world, "up")) == ([], [])


def test_what_cannot_be_told_any_more_keeps_nothing_from_serving(world: FakeWorld) -> None:
    """What serves was made of files that did not contradict each other yet."""
    forget(world, PROTOCOL)
    world.run(plan(world, "up", Contradicting()))
    assert all(route.card is None for route in routes(world).values())
    assert steps(world, "status") == []
    # Once it can be asked again it is told.
    assert do(world, "up") == ["RecordDesired", "SetRoute", "VerifyRoute"]
