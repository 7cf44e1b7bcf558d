"""What orch knows of an engine: one fact sheet each, pure. Everything that differs between engines is in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.core.artifact import Recipe
from orchestrator.core.deployment import Adapter, Deployment
from orchestrator.core.environment import EnvironmentSpec
from orchestrator.core.host import Host
from orchestrator.core.launch import Launch
from orchestrator.core.pins import Accelerator, EnginePin
from orchestrator.core.profile import Profile
from orchestrator.core.vram import Ask
from orchestrator.core.weights import Shape

# Renders a template by its path under templates/ with these variables; strict: an undefined one is an error.
Render = Callable[[str, Mapping[str, Any]], str]


@dataclass(frozen=True)
class Asked:
    """What a launch is made from. `model_path` is the directory or file of the artifact."""

    profile: Profile
    recipe: Recipe
    model_path: str
    accelerator: Accelerator
    host: Host
    environment: EnvironmentSpec | None
    adapters: tuple[Adapter, ...]


@dataclass(frozen=True)
class Launched:
    """How an engine is started: launch without adapters, files by name, commands to run once it answers."""

    launch: Launch
    files: tuple[tuple[str, str], ...] = ()
    imports: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Failure:
    """Why an engine died: the telling line of its log, and what to do, where that is known."""

    line: str
    hint: str = ""


class EngineSheet(Protocol):
    """The knowledge of one engine."""

    name: str
    # Adapters can be loaded and unloaded while it serves.
    hot_adapters: bool
    # It computes on a GPU where there is one.
    takes_gpu: bool

    def accelerator(self, host: Host) -> Accelerator:
        """What it computes on, on this host."""
        ...

    def needs_environment(self) -> bool:
        """Whether orch installs it into an environment of its own."""
        ...

    def missing(self, host: Host) -> tuple[str, str]:
        """What the host lacks to run it at all, and a hint; empty strings when nothing."""
        ...

    def cannot_serve(self, recipe: Recipe, accelerator: Accelerator, host: Host) -> str:
        """Why it cannot serve what the recipe makes, on this host; empty when it can."""
        ...

    def model_file(self, recipe: Recipe) -> str:
        """The file within the artifact that is given to it; empty for the directory itself."""
        ...

    def launch(self, asked: Asked, render: Render) -> Launched:
        """argv, environment, files; without adapters."""
        ...

    def adapter_args(self, adapters: tuple[Adapter, ...]) -> tuple[str, ...]:
        """What ends the argv so that it starts with these adapters."""
        ...

    def cannot_adapt(self, profile: Profile, adapters: tuple[Adapter, ...]) -> str:
        """Why it cannot serve these adapters together; empty when it can."""
        ...

    def adapter_slots(self, profile: Profile, accelerator: Accelerator) -> int:
        """How many distinct adapters one process may be given in its life."""
        ...

    def upstream(self, deployment: Deployment, adapter: Adapter | None) -> str:
        """The name to ask it for, for the base (None) or an adapter."""
        ...

    def patch(self, deployment: Deployment, adapter: Adapter | None) -> dict[str, Any]:
        """What must be merged into each request's body for the base (None) or an adapter."""
        ...

    def ask(self, profile: Profile, weights: int, shape: Shape, accelerator: Accelerator, adapters: int) -> Ask:
        """The memory that one more needs, for an artifact of so many bytes and this many adapters."""
        ...

    def liveness_path(self) -> str:
        """Answers 200 as soon as the server can take commands; that says nothing of the model yet."""
        ...

    def identity_path(self) -> str:
        """What to read to know which model it serves."""
        ...

    def recognises(self, deployment: Deployment, reply: Any) -> bool:
        """Whether the JSON at identity_path is that of this deployment, and not of a stranger on the port."""
        ...

    def loaded(self, deployment: Deployment, reply: Any) -> tuple[tuple[str, str], ...] | None:
        """The adapters (name, path) that the JSON at identity_path shows; None where it does not tell."""
        ...

    def load_request(self, adapter: Adapter) -> tuple[str, dict[str, Any]]:
        """Path and body that load an adapter, in place of one of that name if there is one."""
        ...

    def unload_request(self, name: str) -> tuple[str, dict[str, Any]]:
        """Path and body that unload an adapter."""
        ...

    def failure(self, log: str) -> Failure:
        """The telling line of a dead engine's log."""
        ...


class AdaptersAtStart:
    """For the sheets of engines whose adapters are given at start, if at all."""

    hot_adapters = False

    def loaded(self, deployment: Deployment, reply: Any) -> tuple[tuple[str, str], ...] | None:
        """Nothing tells."""
        return None

    def load_request(self, adapter: Adapter) -> tuple[str, dict[str, Any]]:
        """Never asked for where `hot_adapters` is false."""
        raise TypeError("adapters are given at start only")

    def unload_request(self, name: str) -> tuple[str, dict[str, Any]]:
        """Never asked for where `hot_adapters` is false."""
        raise TypeError("adapters are given at start only")


Pins = Mapping[str, EnginePin]
