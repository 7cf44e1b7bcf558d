"""The environments of engines, builders and instruments: which there are, and having one here."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import resources
from orchestrator.core.environment import EnvironmentSpec
from orchestrator.core.plan import Plan
from orchestrator.core.prerequisites import EnsureEnvironment
from orchestrator.engines import ENGINES, engine_sheet
from orchestrator.errors import HostError, PlanRefused
from orchestrator.planning.prerequisites import plan_prerequisites

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator
    from orchestrator.drivers.local.command import Finished


def environment_rows(orch: Orchestrator) -> list[dict[str, Any]]:
    """What engines, builders and instruments run from, its state, and its size in bytes."""
    rows: list[dict[str, Any]] = []
    for name, sheet in ENGINES.items():
        lacking, _ = sheet.missing(orch.host)
        if not sheet.needs_environment():
            rows.append({"engine": name, "environment": "", "state": lacking or "ready", "size": 0})
    present = orch.environments.observe()
    rows += [
        {"engine": one.engine, "environment": one.name, "state": one.problem or "ready", "size": one.size}
        for one in present
    ]
    engines = (name for name, sheet in ENGINES.items() if sheet.needs_environment())
    names = [*engines, *resources.builder_pins(), *resources.instrument_pins()]
    for spec in (environment_spec(orch, name) for name in names):
        if spec.name not in {one.name for one in present}:
            rows.append({"engine": spec.engine, "environment": spec.name, "state": "not installed", "size": 0})
    return rows


def environment_spec(orch: Orchestrator, name: str) -> EnvironmentSpec:
    """The environment of an engine, a builder or an instrument, for what this machine computes on. PlanRefused where it
    needs none."""
    if name in resources.builder_pins():
        return orch.builder_spec(name)
    if name in resources.instrument_pins():
        return orch.instrument_spec(name)
    sheet = engine_sheet(name)
    if not sheet.needs_environment():
        raise PlanRefused(f"{name} needs no environment of its own.", hint="orch engines ls")
    index = orch.settings.torch_index
    spec = orch.pins[name].environment(sheet.accelerator(orch.host), (index,) if index is not None else None)
    if spec is None:
        raise HostError(f"No build of {name} is pinned for this machine.")
    return spec


def plan_install(orch: Orchestrator, name: str) -> Plan:
    """The plan to have it installed and checked."""
    step = EnsureEnvironment(environment_spec(orch, name))
    return plan_prerequisites("engines install", (step,), orch.observe())


def remove_environment(orch: Orchestrator, name: str) -> None:
    """Remove an environment. PlanRefused where there is none, or an engine runs from it."""
    if name not in {environment.name for environment in orch.environments.observe()}:
        raise PlanRefused(f"There is no environment {name}.", hint="orch engines ls")
    users = [instance.name for instance in orch.local.observe() if instance.launch.environment == name]
    if users:
        raise PlanRefused(f"{name} is in use by {', '.join(users)}.", hint="orch down first.")
    orch.environments.remove(name)


def run_in(
    orch: Orchestrator,
    spec: EnvironmentSpec,
    argv: Sequence[str],
    env: Mapping[str, str],
    directory: Path,
    tick: Callable[[], None],
    asks_hub: bool = False,
) -> Finished:
    """Run a program of an environment that is here, in a directory, with what its environment variables have besides;
    one that `asks_hub` is told what the hub's client is told. What `tick` raises ends it."""
    # Whoever only lists them runs nothing.
    from orchestrator.drivers.local.command import allowed_environ, run_command

    programs = orch.environments.bin(spec.name)
    named = allowed_environ(asks_hub)
    path = f"{programs}{os.pathsep}{named.get('PATH', os.defpath)}"
    return run_command([str(programs / argv[0]), *argv[1:]], {**named, "PATH": path, **env}, tick=tick, cwd=directory)
