"""The verbs on fake worlds: what was done before, the command, and what brings it to its end after an accident."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from fakes.asks import CPU, GIB, gpu, plan_of, plan_status, tiny
from fakes.compare import answered, left_to_do
from fakes.faults import nothing
from fakes.world import FakeWorld

from orchestrator.core.host import Host
from orchestrator.core.observed import Observed
from orchestrator.core.plan import Plan
from orchestrator.core.profile import Profile
from orchestrator.errors import PlanRefused

COMMIT = "0123456789012345678901234567890123456789"
HUB = {"weights": {"repo": "owner/name", "revision": COMMIT}}
READY = HUB | {"artifacts": {"gguf-q6_k": {"repo": "owner/name-GGUF", "revision": COMMIT, "file": "name-Q6_K.gguf"}}}
WITH_OLLAMA = replace(CPU, programs={"ollama": "/usr/bin/ollama"})
RTX_5090 = gpu("GeForce RTX 5090", (12, 0), 32)
WITH_GPU = replace(WITH_OLLAMA, gpus=(RTX_5090,), driver="580.65.06", cuda=(13, 0))
# A process that has just ended holds 10 GiB of it still.
LINGERING = replace(WITH_GPU, gpus=(replace(RTX_5090, memory_free=21 * GIB, users_complete=True),))


@dataclass(frozen=True)
class Scenario:
    """`again` finishes what an accident left: the command itself, or what is recorded where the command toggles.
    `takes_away` are the public names that it means to end, `gateway` is what is special about the one that runs."""

    before: tuple[str, ...]
    command: str
    host: Host = CPU
    changes: Mapping[str, Any] = field(default_factory=dict)
    gateway: Mapping[str, Any] = field(default_factory=dict)
    again: str = ""
    takes_away: tuple[str, ...] = ()

    @property
    def profile(self) -> Profile:
        return tiny(**self.changes)


ALL = ("tiny", "tiny:latest")

SCENARIOS = {
    "first-up-llamacpp": Scenario((), "up llamacpp", changes=HUB),
    "first-up-vllm": Scenario((), "up vllm"),
    "first-up-ollama": Scenario((), "up ollama", WITH_OLLAMA),
    "migrate": Scenario(("up llamacpp", "lora add a"), "migrate vllm"),
    "rollback": Scenario(("up llamacpp", "migrate vllm", "lora add a"), "rollback", again="up"),
    "lora-add-llamacpp": Scenario(("up llamacpp", "lora add a"), "lora add b"),
    "lora-add-vllm": Scenario(("up vllm", "lora add a"), "lora add b"),
    "lora-new-version-vllm": Scenario(("up vllm", "lora add a"), "lora add a@2"),
    "lora-rm-vllm": Scenario(("up vllm", "lora add a", "lora add b"), "lora rm a", takes_away=("a",)),
    "first-up-ready-made": Scenario((), "up llamacpp", changes=READY),
    "first-up-docker": Scenario((), "up vllm --target docker", WITH_GPU),
    "migrate-to-docker": Scenario(("up ollama", "lora add a"), "migrate vllm --target docker", WITH_GPU),
    "migrate-from-docker": Scenario(
        ("up vllm --target docker", "lora add a"), "migrate ollama --target local", WITH_GPU
    ),
    "lora-add-ollama": Scenario(("up ollama", "lora add a"), "lora add b", WITH_OLLAMA),
    "lora-new-version-ollama": Scenario(("up ollama", "lora add a"), "lora add a@2", WITH_OLLAMA),
    "lora-rm-ollama": Scenario(("up ollama", "lora add a", "lora add b"), "lora rm a", WITH_OLLAMA, takes_away=("a",)),
    "lingering-memory": Scenario((), "up vllm", LINGERING),
    "renew-gateway": Scenario(("up vllm", "lora add a"), "up --gateway", gateway={"version": "0"}),
    "restart-old-gateway": Scenario(
        ("up vllm", "lora add a"), "lora add b", gateway={"version": "0", "protocol": 1}, takes_away=(*ALL, "a")
    ),
    "down": Scenario(("up llamacpp",), "down", takes_away=ALL),
    "down-all-docker": Scenario(("up vllm --target docker",), "down --all", WITH_GPU, takes_away=ALL),
    "down-all": Scenario(("up vllm",), "down --all", takes_away=ALL),
}


@cache
def _start(name: str) -> FakeWorld:
    scenario = SCENARIOS[name]
    world = FakeWorld(scenario.host)
    for command in scenario.before:
        world.run(plan_of(command, scenario.profile, world.observe()))
    for field_name, value in scenario.gateway.items():
        setattr(world.target.processes["gateway"], field_name, value)
    world.faults.calls.clear()
    return world


@cache
def begun(name: str) -> tuple[Observed, list[str]]:
    """The start world as it is observed, and the public names that answer there."""
    return _start(name).observe(), answered(start(name))


@cache
def planned(name: str) -> Plan:
    """The plan of a scenario's command on its start world."""
    scenario = SCENARIOS[name]
    return plan_of(scenario.command, scenario.profile, begun(name)[0])


def start(name: str) -> FakeWorld:
    """A fresh copy of the world in which the scenario's command is given."""
    world = pickle.loads(_pickled(name))
    assert isinstance(world, FakeWorld)
    return world


@cache
def _pickled(name: str) -> bytes:
    """Copied from this a world costs a quarter of what copy.deepcopy takes."""
    return pickle.dumps(_start(name))


@cache
def clean(name: str) -> tuple[FakeWorld, tuple[str, ...], int]:
    """The world after a run without accidents, its driver calls, and how often an interrupt was asked about."""
    world = start(name)
    asked = Countdown(-1)
    world.run(planned(name), asked)
    return world, tuple(world.faults.calls), asked.calls


class Countdown:
    """An `interrupted` that comes true at its call number `at` (from 0), and stays true."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.calls = 0

    def __call__(self) -> bool:
        self.calls += 1
        return 0 <= self.at < self.calls


def at_call(number: int, error: Callable[[], BaseException]) -> Callable[[int, str], None]:
    """A fault at one driver call."""

    def fault(index: int, what: str) -> None:
        if index == number:
            raise error()

    return fault


def state(world: FakeWorld) -> bytes:
    """What an accident has left, without the accident. What follows from equal states is equal, and is tried once."""
    world.faults.before = world.faults.after = nothing
    world.faults.calls.clear()
    world.events = []
    return pickle.dumps(world)


@cache
def observed(left: bytes) -> Observed:
    """A state, as it is observed."""
    world = pickle.loads(left)
    assert isinstance(world, FakeWorld)
    return world.observe()


@cache
def finish(name: str, left: bytes) -> dict[str, Any]:
    """Run the command again on a state: nothing may be left to do after it. Who serves then, by name."""
    scenario, world = SCENARIOS[name], pickle.loads(left)
    try:
        world.run(plan_of(scenario.again or scenario.command, scenario.profile, observed(left)))
    except PlanRefused as refused:
        # The accident came after its last effect: what was to be removed is gone.
        assert refused.message == "There is no adapter a."
    after = world.observe()
    if scenario.command.startswith("down"):
        assert left_to_do(plan_of("down", scenario.profile, after)) == []
        return {}
    assert left_to_do(plan_status(scenario.profile, after)) == []
    assert len(after.engines) == 1
    return serving(world, after)


def serving(world: FakeWorld, observed: Observed) -> dict[str, Any]:
    """Public name to engine and status, and the adapters that a restart would bring back."""
    status = observed.gateway.status
    engines = {engine.instance.name: engine.deployment for engine in observed.engines}
    routes = tuple(status.routes) if status is not None else ()
    return {
        route.name: (
            engines[route.backend.instance].engine,
            engines[route.backend.instance].adapters,
            world.chat(route.name),
        )
        for route in routes
    }
