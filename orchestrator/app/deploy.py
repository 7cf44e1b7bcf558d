"""Plans for what serves: up, migrate, rollback, lora, down; and what they will download."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from orchestrator.app.gateway import (
    check_api_key,
    check_each_origin,
    check_limits,
    check_origins,
    gateway_spec,
    passed_over_key,
)
from orchestrator.app.intent import GoBack, Intent, MoveTo, Serve, desired_for, why_not_docker
from orchestrator.app.resolution import Take, observed_for, resolve_desired
from orchestrator.core.deployment import Desired
from orchestrator.core.form import Form
from orchestrator.core.observed import Observed
from orchestrator.core.plan import Plan, Remark, Skip
from orchestrator.core.prerequisites import Prerequisite
from orchestrator.errors import HostError, Interrupted, OrchError, PlanRefused
from orchestrator.planning.deploy import plan_deploy
from orchestrator.planning.down import plan_down, plan_down_all
from orchestrator.planning.parts import LONGEST_HOLD_S, Limits

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator


@dataclass(frozen=True)
class Waiting:
    """How many seconds an engine has until it answers, requests in flight have to end, and one may be held for at most;
    the form of the change (None: by what fits), whether what served before then stands by, and which probes the new
    engine need not pass."""

    ready_s: float = 900.0
    drain_s: float = 300.0
    longest_hold_s: float = LONGEST_HOLD_S
    form: Form | None = None
    keep_old: bool = False
    skipped_probes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Options:
    """How a plan is made: where the gateway is to listen (None: where it does), who waits how long, whether by a new
    generation whatever runs, whether by a gateway of this program, where another one runs, and whose pages that is to
    let in besides."""

    listen: str | None = None
    waiting: Waiting = Waiting()
    fresh: bool = False
    renew_gateway: bool = False
    more_origins: tuple[str, ...] = ()


def plan_for(orch: Orchestrator, verb: str, intent: Intent, observed: Observed, options: Options) -> Plan:
    """The plan from what is observed to what is asked."""
    desired = desired_for(orch, intent, observed)
    if options.waiting.keep_old:
        desired = desired.model_copy({"keeps": True})
    why = why_not_docker(orch, intent.target, desired, observed) if isinstance(intent, MoveTo) else ""
    return _without_docker(orch, why, lambda: plan_to(orch, verb, desired, observed, options, _take(intent)))


def _take(intent: Intent) -> Take:
    match intent:
        case GoBack():
            return Take.RECORDED
        case Serve():
            return Take.NEWEST
        case _:
            return Take.STEADY


def plan_to(
    orch: Orchestrator,
    verb: str,
    desired: Desired,
    observed: Observed,
    options: Options,
    take: Take = Take.STEADY,
    learn: bool = True,
) -> Plan:
    """The plan from what is observed to what is wanted. Unless it is to `learn`, no hub is asked for what a model says
    of itself: such a plan is only looked at."""
    observed = observed_for(orch, desired, observed)
    resolved, desired = resolve_desired(orch, desired, observed, take=take, learn=learn)
    target, renew, more = desired.spec.target, options.renew_gateway, options.more_origins
    gateway = gateway_spec(orch, observed, options.listen, target, renew, more)
    waiting = options.waiting
    limits = Limits(waiting.ready_s, waiting.drain_s, waiting.longest_hold_s, waiting.skipped_probes)
    return plan_deploy(verb, resolved, desired, observed, gateway, limits, options.fresh, waiting.form)


def plan_up(orch: Orchestrator, intent: Serve, observed: Observed, options: Options) -> Plan:
    """The plan of `up`, which moves nothing that serves to another engine; with a lock, only what is in the store as it
    is locked is served."""
    check_each_origin(options.more_origins, "--origin", "Give each an --origin of its own")
    desired = desired_for(orch, intent, observed)
    if options.waiting.keep_old:
        desired = desired.model_copy({"keeps": True})
    _refuse_other_engine(desired, observed)
    check_api_key(orch)
    check_origins(orch, observed, options.more_origins, options.renew_gateway)
    check_limits(orch, observed, options.renew_gateway)
    why = why_not_docker(orch, intent.target, desired, observed)
    plan = _without_docker(orch, why, lambda: plan_to(orch, "up", desired, observed, options, _take(intent)))
    if (no_key := passed_over_key(orch, observed)) is not None:
        plan = replace(plan, items=(no_key, *plan.items), commit=plan.commit + 1)
    if intent.lock is not None:
        # Few have one.
        from orchestrator.app.lock import check_served

        check_served(orch, intent.lock, desired.spec.profile, observed, plan)
    return plan


def _without_docker(orch: Orchestrator, why: str, make: Callable[[], Plan]) -> Plan:
    """The plan, or the refusal, that says why an engine is not to be in a container (empty: nobody expects one)."""
    if not why:
        return make()
    try:
        plan = make()
    except HostError as error:
        # Whoever has Docker would not know what a program on PATH is wanted for.
        said = f"{error.message} Nor is Docker used: {why.rstrip('.')}."
        ways = (
            orch.docker_facts.hint,
            f"Or without Docker: {error.hint[0].lower()}{error.hint[1:]}" if error.hint else "",
        )
        raise type(error)(said, " ".join(filter(None, ways)), error.detail) from error
    return replace(plan, items=(Remark("use Docker", why), *plan.items), commit=plan.commit + 1)


def plan_taking_down(profile: str | None, everything: bool, observed: Observed, drain_s: float, forget: bool) -> Plan:
    """The plan to stop a profile (None: the only one), or everything with the gateway."""
    if everything:
        return plan_down_all(observed, drain_s, forget)
    name = _to_take_down(profile, observed)
    if name is None:
        return Plan("down", (Skip("take anything down", "nothing is deployed"),), commit=0)
    return plan_down(name, observed, drain_s, forget)


def download_sizes(orch: Orchestrator, plan: Plan) -> dict[str, int]:
    """Bytes that a plan will download from the hub, by repository, as the hub says."""
    sizes: dict[str, int] = {}
    steps = (action.step for action in plan.actions)
    for download in (step.download for step in steps if isinstance(step, Prerequisite)):
        if download is not None and download.hub is not None:
            size = orch.hub.snapshot(download.hub, 30.0, list(download.files) or None, orch.progress).size
            sizes[download.name] = sizes.get(download.name, 0) + size
    return sizes


def less_ready_made(orch: Orchestrator, size: int, make_plan: Callable[[], Plan]) -> dict[str, int]:
    """What a plan that takes ready-made artifacts would download, if that is less than `size` bytes; nothing where it
    is not, or that cannot be said."""
    try:
        sizes = download_sizes(orch, make_plan())
    except Interrupted:
        raise
    except OrchError:
        return {}
    return sizes if sum(sizes.values()) < size else {}


def _to_take_down(profile: str | None, observed: Observed) -> str | None:
    """The profile to take down: by name, or the only one. A killed `up` or `down` leaves engines without a record."""
    known = sorted({*observed.desired, *(engine.deployment.profile for engine in observed.engines)})
    if profile is not None and observed.damaged_of(profile):
        return profile
    running = sorted({*observed.deployed, *(engine.deployment.profile for engine in observed.engines)})
    if profile is None and len(running) > 1:
        raise PlanRefused(
            f"Several profiles are deployed: {', '.join(running)}.", hint="orch down NAME, or orch down --all"
        )
    if profile is None:
        return next(iter(running or known), None)
    if profile not in known:
        raise PlanRefused(f"{profile} is not deployed.", hint=f"Deployed: {', '.join(running) or 'nothing'}.")
    return profile


def _refuse_other_engine(desired: Desired, observed: Observed) -> None:
    profile, engine = desired.spec.profile.name, desired.spec.engine
    present = observed.desired.get(profile)
    if present is not None and not present.stopped and present.spec.engine != engine:
        raise PlanRefused(
            f"{profile} is served by {present.spec.engine}.",
            hint=f"To move it without a failed request: orch migrate --to {engine}",
        )
