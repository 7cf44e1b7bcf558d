"""Several engines, one after the other: each is brought up, measured, and what was there before is there again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from orchestrator.app.deploy import Options, plan_for, plan_taking_down, plan_to, plan_up
from orchestrator.app.engines import check_engine
from orchestrator.app.intent import MoveTo, Serve, desired_for, recipe_named
from orchestrator.app.resolution import Take
from orchestrator.app.runs import Watcher, plan_and_run
from orchestrator.app.unfinished import Before, forget, keep
from orchestrator.core.artifact import Recipe
from orchestrator.core.deployment import Desired
from orchestrator.core.plan import Action, Plan, Skip
from orchestrator.core.profile import Profile
from orchestrator.core.steps import RecordDesired
from orchestrator.errors import Interrupted, OrchError, PlanRefused, UsageError

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator


@dataclass(frozen=True)
class Side:
    """An engine, and what it is to serve: the artifact of a recipe (None: the profile's first choice)."""

    engine: str
    recipe: Recipe | None = None

    def __str__(self) -> str:
        return f"{self.engine}:{self.recipe.value}" if self.recipe is not None else self.engine

    def is_served_by(self, desired: Desired | None, target: str | None) -> bool:
        """Whether that is what serves already, on that target (None: any)."""
        if desired is None or desired.stopped or desired.spec.engine != self.engine:
            return False
        if target not in (None, desired.spec.target):
            return False
        served = desired.resolution.deployment.recipe if desired.resolution is not None else desired.spec.recipe
        return self.recipe is None or self.recipe == served


def sides_of(text: str) -> tuple[Side, ...]:
    """Engines as people type them: `llamacpp,vllm`, or with artifacts, `vllm:nvfp4a16,vllm:weights`. UsageError where
    one is unknown, or there twice."""
    named = [part.strip().partition(":") for part in text.split(",")]
    for engine, _, _ in named:
        check_engine(engine)
    sides = tuple(Side(engine, recipe_named(recipe or None)) for engine, _, recipe in named)
    if len(set(sides)) != len(sides):
        raise UsageError(f"--engines names one twice: {', '.join(map(str, sides))}.", hint="--engines A,B")
    return sides


@dataclass(frozen=True)
class Asked:
    """How somebody has named the profile (None: not), where its engines are to run, and how long who waits."""

    profile: str | None = None
    target: str | None = None
    options: Options = field(default_factory=Options)


def profile_meant(orch: Orchestrator, side: Side, asked: Asked) -> Profile:
    """The profile that somebody has named, or means. PlanRefused where nothing is deployed and none is named."""
    observed = orch.observe()
    if asked.profile is None and not observed.desired:
        raise PlanRefused("Nothing is deployed, so a profile must be named.", hint="-p qwen3-8b, or -p FILE.toml")
    return desired_for(orch, Serve(side.engine, asked.profile), observed).spec.profile


def plan_of(orch: Orchestrator, side: Side, profile: str, asked: Asked) -> Plan:
    """The plan that has a profile served by one of them: up where nothing serves it, else a migration."""
    observed, named = orch.observe(), asked.profile or profile
    if profile in observed.deployed:
        move = MoveTo(side.engine, named, asked.target, side.recipe)
        return plan_for(orch, "bench", move, observed, asked.options)
    return plan_up(orch, Serve(side.engine, named, asked.target, side.recipe), observed, asked.options)


def plans_back(orch: Orchestrator, was: Before, options: Options) -> Sequence[Callable[[], Plan]]:
    """What to plan, one after the other, so that all is as it was; each is made when the one before has run."""
    drain_s, desired = options.waiting.drain_s, was.desired

    def again() -> Plan:
        assert desired is not None
        return plan_to(orch, "bench", desired, orch.observe(), options, Take.RECORDED)

    def down() -> Plan:
        observed = orch.observe()
        if was.profile not in observed.desired and not observed.engines_of(was.profile):
            return Plan("bench", (Skip(f"take {was.profile} down", "nothing of it is there"),), commit=0)
        return plan_taking_down(was.profile, False, observed, drain_s, desired is None)

    def recorded() -> Plan:
        return Plan("bench", (Action(RecordDesired(was.profile, desired)),), commit=0)

    def all_down() -> Plan:
        return plan_taking_down(None, True, orch.observe(), drain_s, False)

    if was.serving:
        return (again,)
    # What was taken down before is as it was then, whatever served meanwhile.
    back = (down, recorded) if desired is not None else (down,)
    return back if was.gateway else (*back, all_down)


def in_turn(
    orch: Orchestrator,
    sides: Sequence[Side],
    was: Before,
    asked: Asked,
    watcher: Watcher,
    measure: Callable[[Side], None],
    heed_again: Callable[[], None],
    always_start: bool = False,
) -> None:
    """Measure each, started before where it does not serve already, or `always_start`; then, also after an interrupt or
    a failure, have all as it was, for which `heed_again` makes the watcher heed a second interrupt instead of the
    first. An engine that cannot be had ends it."""
    # What was killed before may have left something to be put back.
    changed = orch.observe().desired.get(was.profile) != was.desired
    keep(orch, was, {side.engine for side in sides})
    try:
        for side in sides:
            if always_start or not side.is_served_by(orch.observe().desired.get(was.profile), asked.target):
                changed = True
                plan_and_run(orch, f"bench {side}", partial(plan_of, orch, side, was.profile, asked), watcher)
            measure(side)
    except (Interrupted, OrchError) as stopped:
        if isinstance(stopped, Interrupted):
            heed_again()
        if changed:
            # Why it has ended is what counts; that something is left is told.
            with suppress(Interrupted, OrchError):
                put_back(orch, was, asked.options, watcher)
        forget(orch, was.profile)
        raise
    if changed:
        put_back(orch, was, asked.options, watcher)
    forget(orch, was.profile)


def put_back(orch: Orchestrator, was: Before, options: Options, watcher: Watcher) -> None:
    """Have it as it was. Whoever is interrupted in that is told what to type."""
    try:
        for make in plans_back(orch, was, options):
            plan_and_run(orch, "bench, putting back what was there", make, watcher)
    except (Interrupted, OrchError):
        how = f"orch migrate --to {was.serving} -p {was.profile}" if was.serving else f"orch down {was.profile}"
        orch.note({"left": was.profile, "hint": how}, f"It is not as it was before the measurement: {how}")
        raise
