"""`orch check`: whether a model is the same on every engine that can run here, measured.

Each engine is asked directly: one that serves where it is, any other is started for that beside it, and ended again. It
is a generation of the profile, so that what a killed check leaves is taken away by the next `up` or `down`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.app.intent import chosen_target, with_listed_adapters
from orchestrator.app.meaning import learnt, meaning_of_weights
from orchestrator.app.profiles import named_profile, pinned, weights_facts
from orchestrator.app.resolution import Take, observed_for, resolve_desired
from orchestrator.app.runs import Watcher, alone, run_plan
from orchestrator.core.deployment import Deployment, DeploymentSpec, Desired
from orchestrator.core.launch import Instance
from orchestrator.core.meaning import Meaning
from orchestrator.core.observed import Observed
from orchestrator.core.parity import (
    CHATS,
    QUESTIONS,
    TEXTS,
    Answers,
    Check,
    Reference,
    compared,
)
from orchestrator.core.plan import Action, Plan, Skip
from orchestrator.core.profile import Profile
from orchestrator.core.resolved import Resolved
from orchestrator.core.steps import RemoveEngine, StopEngine
from orchestrator.engines import ENGINES
from orchestrator.errors import HostError, OrchError, PlanRefused
from orchestrator.interview import Interview, text_of
from orchestrator.planning.parts import (
    Limits,
    chosen_generation,
    engine_files,
    engine_imports,
    engine_ready_item,
    engine_start_items,
    matching_generation,
)
from orchestrator.planning.preconditions import refuse_no_room
from orchestrator.planning.prerequisites import prerequisite_items
from orchestrator.probes import HELLO, instance_of

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator

ANSWER_S = 300.0


@dataclass(frozen=True)
class Candidate:
    """An engine that can be asked here: what it serves, what has to be done first, and whether it serves already."""

    engine: str
    resolved: Resolved
    deployment: Deployment
    plan: Plan
    runs: bool


@dataclass(frozen=True)
class Checked:
    """What came of it; `left_out` are engines that cannot be asked here, and why."""

    checks: tuple[Check, ...]
    answers: tuple[Answers, ...]
    left_out: tuple[Skip, ...]

    @property
    def holds(self) -> bool:
        """Whether the model is the same on all of them."""
        return all(check.holds for check in self.checks)


def candidates(
    orch: Orchestrator, profile: str | None, engines: Sequence[str], timeout_s: float
) -> tuple[Profile, list[Candidate], list[Skip]]:
    """The engines that a profile can be asked on, and those that it cannot, each with the reason. PlanRefused where
    there is none."""
    observed = orch.observe()
    loaded = pinned(orch, named_profile(orch, profile, observed), observed)
    found: list[Candidate] = []
    left_out: list[Skip] = []
    for engine in engines or ENGINES:
        try:
            found.append(_candidate(orch, loaded, engine, observed, timeout_s))
        except OrchError as error:
            if engines:
                raise
            left_out.append(Skip(f"ask {engine}", error.message))
    if not found:
        raise PlanRefused(
            f"No engine can serve {loaded.name} here.",
            hint=f"orch up ENGINE -p {loaded.name} --plan shows why, for each.",
            detail="\n".join(f"{skip.what}: {skip.why}" for skip in left_out),
        )
    return loaded, found, left_out


def check(
    orch: Orchestrator, profile: str | None, engines: Sequence[str], timeout_s: float, watcher: Watcher
) -> Checked:
    """Ask every engine in turn, and compare. What was started for it is ended again, whatever happens."""
    answers: list[Answers] = []
    reference: Reference | None = None
    with alone(orch, f"check {profile or ''}".strip()):
        loaded, found, left_out = candidates(orch, profile, engines, timeout_s)
        for number, one in enumerate(found):
            # Each anew: what the one before took is free again.
            now = _candidate(orch, loaded, one.engine, orch.observe(), timeout_s) if number else one
            with _running(orch, now, watcher) as instance:
                # Only now the weights are here, if they are.
                reference = reference or _reference(orch, loaded, now)
                answers.append(_ask(orch, now, instance, tuple(reference.ends)))
    checks = compared(reference, answers) if reference is not None else ()
    return Checked(checks, tuple(answers), tuple(left_out))


def _reference(orch: Orchestrator, profile: Profile, one: Candidate) -> Reference:
    """What the model's files say; of an artifact alone what that says."""
    # With the library of tokenizers; few commands need it.
    from orchestrator.artifacts.reference_tokens import reference_of

    weights = weights_facts(orch, profile)
    here = Path(weights.path) if weights.size else None
    # Not what this engine serves, which others may have built: that is what is compared with the weights.
    known = meaning_of_weights(orch, weights) or learnt(orch, weights, one.resolved, ask_hub=False).meaning
    return reference_of(here, known or Meaning())


def _candidate(orch: Orchestrator, profile: Profile, engine: str, observed: Observed, timeout_s: float) -> Candidate:
    present = observed.desired.get(profile.name)
    same = present is not None and present.spec.engine == engine
    target = chosen_target(orch, engine, None, present if same else None)
    recipe = present.spec.recipe if present is not None and same else None
    spec = DeploymentSpec(profile=profile, engine=engine, target=target, recipe=recipe)
    adapters = with_listed_adapters(orch, profile, present.adapters if present is not None else (), observed)
    desired = (
        present if present is not None and same and present.spec == spec else Desired(spec=spec, adapters=adapters)
    )
    observed = observed_for(orch, desired, observed)
    resolved, _ = resolve_desired(orch, desired, observed, take=Take.STEADY)
    mine = observed.engines_of(profile.name)
    match = matching_generation(resolved.deployment, mine, observed.serving(profile.name))
    if match is not None and match.answers:
        return Candidate(engine, resolved, match.deployment, Plan("check", (), 0), runs=True)
    refuse_no_room(resolved)
    chosen, limits = chosen_generation(resolved.deployment, mine, None), Limits(timeout_s, 0.0)
    items = (
        *prerequisite_items(resolved.prerequisites, observed),
        *engine_files(chosen, None),
        *engine_start_items(chosen, None, resolved.memory_fit, limits),
        *engine_imports(resolved, chosen, None),
        engine_ready_item(chosen, None, None, limits),
    )
    return Candidate(engine, resolved, chosen, Plan("check", items, len(items)), runs=False)


@contextmanager
def _running(orch: Orchestrator, one: Candidate, watcher: Watcher) -> Iterator[Instance]:
    """The engine while it answers; ended afterwards, unless it serves anyway."""
    target, name = one.deployment.target, one.deployment.instance
    if not one.runs:
        run_plan(orch, one.plan, watcher)
    try:
        instance = instance_of(target, name, orch)
        if instance is None:
            raise HostError(f"{name} is gone.", hint="Another command stopped it; run the same again.")
        yield instance
    finally:
        if not one.runs:
            steps = (Action(StopEngine(target, name)), Action(RemoveEngine(target, name)))
            run_plan(orch, Plan("check", steps, commit=0), watcher)


def _ask(orch: Orchestrator, one: Candidate, instance: Instance, ends: tuple[int, ...]) -> Answers:
    """Everything that there is to ask one engine."""
    deployment, forced_end = one.deployment, ENGINES[one.engine].forced_end
    interview = Interview(orch, deployment, instance, orch.progress, ANSWER_S)
    orch.progress(f"asking {one.engine} for tokens", 0, 0)
    texts = tuple(map(interview.tokens, TEXTS))
    chats = tuple(map(interview.prompt, CHATS)) if deployment.chats else None
    orch.progress(f"asking {one.engine} where answers end", 0, 0)
    forced = {number: forced_end(number) for number in ends}
    told = {number: interview.choice(HELLO, **extra) for number, extra in forced.items() if extra is not None}
    ended = tuple(number for number, choice in told.items() if choice.get("finish_reason") == "stop")
    greedy = {}
    for adapter in (None, *deployment.adapters):
        name = adapter.name if adapter is not None else deployment.served_name
        orch.progress(f"asking {one.engine} as {name}", 0, 0)
        greedy[name] = tuple(text_of(interview.choice(question, adapter)) for question in QUESTIONS)
    return Answers(one.engine, deployment.recipe, texts, chats, ended if len(told) == len(forced) else None, greedy)
