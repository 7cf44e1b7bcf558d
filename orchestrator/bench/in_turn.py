"""Several engines, one after the other: each is brought up, measured, and what was there before is there again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from orchestrator.app.deploy import Options, plan_for, plan_taking_down, plan_to, plan_up
from orchestrator.app.engines import check_engine
from orchestrator.app.intent import MoveTo, Serve, desired_for
from orchestrator.app.resolution import Take
from orchestrator.app.runs import Watcher, plan_and_run
from orchestrator.core.deployment import Desired
from orchestrator.core.observed import Observed
from orchestrator.core.plan import Plan
from orchestrator.core.profile import Profile
from orchestrator.errors import Interrupted, OrchError, UsageError

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator


@dataclass(frozen=True)
class Before:
    """What there was of a profile before: what was recorded (None: nothing), and whether a gateway ran."""

    profile: str
    desired: Desired | None
    gateway: bool

    @property
    def serving(self) -> str:
        """The engine that served it; empty where none did."""
        return self.desired.spec.engine if self.desired is not None and not self.desired.stopped else ""


@dataclass(frozen=True)
class Asked:
    """How somebody has named the profile (None: not), where its engines are to run, and how long who waits."""

    profile: str | None = None
    target: str | None = None
    options: Options = field(default_factory=Options)


def profile_meant(orch: Orchestrator, engine: str, named: str | None) -> Profile:
    """The profile that somebody has named, or means."""
    return desired_for(orch, Serve(engine, named), orch.observe()).spec.profile


def before(profile: str, observed: Observed) -> Before:
    """What there is of it now."""
    return Before(profile, observed.desired.get(profile), bool(observed.gateway.all))


def check(engines: Sequence[str]) -> None:
    """UsageError where these cannot be measured one after the other."""
    for name in engines:
        check_engine(name)
    if len(set(engines)) != len(engines):
        raise UsageError(f"--engines names one twice: {', '.join(engines)}.", hint="--engines A,B")


def plan_of(orch: Orchestrator, engine: str, profile: str, asked: Asked) -> Plan:
    """The plan that has a profile served by an engine: up where nothing serves it, else a migration."""
    observed, named = orch.observe(), asked.profile or profile
    if profile in observed.deployed:
        return plan_for(orch, "bench", MoveTo(engine, named, asked.target), observed, asked.options)
    return plan_up(orch, Serve(engine, named, asked.target), observed, asked.options)


def plans_back(orch: Orchestrator, was: Before, options: Options) -> Sequence[Callable[[], Plan]]:
    """What to plan, one after the other, so that all is as it was; each is made when the one before has run."""
    drain_s = options.waiting.drain_s

    def again() -> Plan:
        assert was.desired is not None
        return plan_to(orch, "bench", was.desired, orch.observe(), options, Take.RECORDED)

    def down() -> Plan:
        return plan_taking_down(was.profile, False, orch.observe(), drain_s, was.desired is None)

    def all_down() -> Plan:
        return plan_taking_down(None, True, orch.observe(), drain_s, False)

    if was.serving:
        return (again,)
    return (down,) if was.gateway else (down, all_down)


def in_turn(
    orch: Orchestrator,
    engines: Sequence[str],
    was: Before,
    asked: Asked,
    watcher: Watcher,
    measure: Callable[[str], None],
    heed_again: Callable[[], None],
) -> None:
    """Measure each; then, also after an interrupt or a failure, have it as it was, for which `heed_again` makes the
    watcher heed a second interrupt instead of the first. An engine that cannot be had ends it."""
    changed = False
    try:
        for engine in engines:
            if engine != before(was.profile, orch.observe()).serving:
                changed = True
                plan_and_run(orch, f"bench {engine}", partial(plan_of, orch, engine, was.profile, asked), watcher)
            measure(engine)
    except Interrupted:
        heed_again()
        raise
    finally:
        if changed:
            put_back(orch, was, asked.options, watcher)


def put_back(orch: Orchestrator, was: Before, options: Options, watcher: Watcher) -> None:
    """Have it as it was. Whoever is interrupted in that is told what to type."""
    try:
        for make in plans_back(orch, was, options):
            plan_and_run(orch, "bench, putting back what was there", make, watcher)
    except (Interrupted, OrchError):
        how = f"orch migrate --to {was.serving} -p {was.profile}" if was.serving else f"orch down {was.profile}"
        orch.note({"left": was.profile, "hint": how}, f"It is not as it was before the measurement: {how}")
        raise
