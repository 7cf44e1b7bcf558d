"""What serves, and what is not as it should be: `orch up --plan`, told differently, as a value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.app.deploy import Options, plan_to
from orchestrator.app.gateway import upgrade
from orchestrator.app.runs import who_is_at_work
from orchestrator.core.deployment import Desired
from orchestrator.core.gateway_status import is_gateway
from orchestrator.core.launch import InstanceState
from orchestrator.core.observed import EngineObserved, GatewayObserved, Observed
from orchestrator.core.plan import Upgrade
from orchestrator.core.steps import (
    AwaitReady,
    EnsureEngine,
    ImportArtifact,
    RecordDesired,
    RemoveEngine,
    SetRoute,
    Step,
    StopEngine,
    VerifyRoute,
    WriteFile,
)
from orchestrator.errors import OrchError

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator

# What the start of an engine consists of.
OF_A_START = (WriteFile, EnsureEngine, ImportArtifact, AwaitReady, SetRoute, VerifyRoute)


@dataclass(frozen=True)
class Status:
    """`drift` has a sentence for each thing that is not as it should be, `stopped` the profiles that are recorded and
    taken down, `unseen` the targets that could not be asked what runs there, `restarted` a sentence for each engine
    that the kernel ended for want of memory. `at_work` says which other orch changes things now, `gpu_problem` which
    GPUs were left out, `upgrades` what could be served by something newer, the gateway too, and is not out of sync for
    that, `images` what images are called by what names them exactly; each is empty where there is nothing to tell.
    `empty`: nothing is deployed and nothing runs."""

    engines: tuple[EngineObserved, ...]
    gateway: GatewayObserved
    drift: tuple[str, ...]
    stopped: tuple[str, ...]
    unseen: tuple[str, ...] = ()
    restarted: tuple[str, ...] = ()
    at_work: str = ""
    gpu_problem: str = ""
    upgrades: tuple[str, ...] = ()
    images: Mapping[str, str] = field(default_factory=dict)
    empty: bool = False


def status(orch: Orchestrator) -> Status:
    """The world compared with what is recorded. Takes no lock: looking never hinders doing."""
    observed = orch.observe()
    unreachable = [f"{name}: {error.message} {error.hint}" for name, error in observed.unreachable.items()]
    runs = observed.deployed or observed.engines or observed.gateway.instance is not None
    looked_at = [_profile(orch, observed.desired[name], observed) for name in observed.deployed]
    drift = [line for lines, _ in looked_at for line in lines]
    drift += _left_over(observed)
    drift += [f"{one.name}: {one.problem}; orch down --all" for one in observed.damaged]
    drift += [*observed.unreadable, *(() if observed.deployed else unreachable)]
    return Status(
        engines=observed.engines,
        gateway=observed.gateway,
        drift=tuple(drift),
        stopped=tuple(sorted(set(observed.desired) - set(observed.deployed))),
        unseen=tuple(observed.unreachable),
        restarted=tuple(_out_of_memory(observed)),
        at_work=who_is_at_work(orch),
        gpu_problem=observed.host.gpu_problem,
        images=_image_names(observed),
        upgrades=(*filter(None, (upgrade(observed),)), *(line for _, lines in looked_at for line in lines)),
        empty=not runs and not drift,
    )


def _image_names(observed: Observed) -> dict[str, str]:
    """What images are called, by what names them exactly."""
    found = {}
    for desired in observed.desired.values():
        for served in (desired.before, desired.served):
            if served is not None and served.resolution is not None and served.resolution.image is not None:
                image = served.resolution.image
                found[image.reference] = f"{image.name} ({image.digest.removeprefix('sha256:')[:12]})"
    return found


def _out_of_memory(observed: Observed) -> Iterator[str]:
    for engine in observed.engines:
        ended = engine.instance.last_exit
        if engine.running and ended is not None and ended.memory_limit is not None:
            yield f"{engine.instance.name} {ended} at {ended.at}, and was started again."


def _profile(orch: Orchestrator, desired: Desired, observed: Observed) -> tuple[list[str], list[str]]:
    """What `up` would do to heal a profile, and what keeps it from being healed (nothing: it is in sync); and what it
    could be served by that is newer."""
    profile = desired.spec.profile.name
    troubled = []
    for engine in observed.engines_of(profile):
        if engine.instance.state is InstanceState.BACKOFF:
            troubled.append(f"{engine.instance.name} {engine.instance.last_exit} and waits to be restarted")
        elif engine.running and not engine.instance.supervised:
            troubled.append(f"{engine.instance.name} has no keeper: nothing restarts it after a crash")
        elif engine.instance.drift:
            troubled.append(f"{engine.instance.name} {engine.instance.drift}")
    try:
        plan = plan_to(orch, "up", desired, observed, Options())
    except OrchError as error:
        return [*troubled, f"{profile}: {error.message} {error.hint}".strip()], []
    steps = [action.step for action in plan.actions if not _tidies(action.step, desired)]
    starts = next((step for step in steps if isinstance(step, EnsureEngine)), None)
    if starts is not None and not any(engine.running for engine in observed.engines_of(profile)):
        # One sentence, not all that a start consists of.
        dead = _dead(profile, observed)
        troubled.append(f"{profile}: {dead}; orch up would start {starts.deployment.instance} and route to it")
        steps = [step for step in steps if not isinstance(step, OF_A_START)]
    troubled += [f"{profile}: orch up would {step.what}" for step in steps]
    upgrades = [f"{profile}: {one.what} ({one.why})" for one in plan.items if isinstance(one, Upgrade)]
    return troubled, upgrades


def _dead(profile: str, observed: Observed) -> str:
    """What has become of the engine that its names lead to."""
    serving = observed.serving(profile)
    if serving is None:
        return "none of its engines is running"
    there = any(engine.instance.name == serving for engine in observed.engines_of(profile))
    return f"{serving} is not running" if there else f"{serving} is gone"


def _tidies(step: Step, present: Desired) -> bool:
    """It clears away a gateway that was replaced and has left, or writes down what an earlier version of orch did not:
    nothing is wrong as long as nobody does."""
    if isinstance(step, RecordDesired) and step.desired is not None:
        return present.resolution is None and step.desired.model_copy({"resolution": None}) == present
    return isinstance(step, StopEngine | RemoveEngine) and is_gateway(step.instance)


def _left_over(observed: Observed) -> list[str]:
    """Engines and routes of profiles that nobody wants: a killed `up` or `down` leaves them."""
    deployed = set(observed.deployed)
    owners = {engine.deployment.profile for engine in observed.engines}
    if observed.gateway.status is not None:
        owners |= {route.owner for route in observed.gateway.status.routes}
    found = [f"{name}: left over; orch up or orch down {name}" for name in sorted(owners - deployed)]
    if observed.gateway.instance is not None and not observed.gateway.well and not deployed:
        found.append("the gateway does not answer or has no keeper; orch down --all")
    return found
