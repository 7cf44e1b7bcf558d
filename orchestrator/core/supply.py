"""Having things: what a plan needs of weights, artifacts, adapters, environments and images, and what of it is here."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.core.observed import Observed
from orchestrator.core.resolved import Supply
from orchestrator.core.steps import (
    Action,
    BuildArtifact,
    BuildImage,
    BuildTogether,
    EnsureEnvironment,
    FetchArtifact,
    FetchWeights,
    ImportAdapter,
    Plan,
    PullImage,
    Skip,
    Step,
)


def plan_supply(verb: str, supply: tuple[Supply, ...], observed: Observed) -> Plan:
    """Have all of this, what can be in one read of the weights; nothing that serves is touched."""
    items = tuple(supply_items(_in_one_read(supply), observed))
    return Plan(verb, items, commit=len(items))


def builds_of(plan: Plan) -> tuple[BuildArtifact, ...]:
    """All that it builds."""
    return tuple(build for action in plan.actions for build in _builds(action.step))


def supply_items(supply: tuple[Supply, ...], observed: Observed) -> Iterator[Action | Skip]:
    made = {build.key: build.calibration for step in supply for build in _builds(step)}
    built = [step.reference for step in supply if isinstance(step, BuildImage)]
    for step in supply:
        match step:
            case FetchWeights() if made and all(key in observed.finished for key in made):
                yield Skip(step.what, "all that is made of it is in the store")
                continue
            case EnsureEnvironment(spec):
                present = observed.environments.get(spec.name)
                if present is not None and not present.problem:
                    yield Skip(step.what, "installed")
                    continue
                made_in = [key for key, how in made.items() if how is not None and how.environment == spec]
                if made_in and all(key in observed.finished for key in made_in):
                    yield Skip(step.what, "all that is made in it is in the store")
                    continue
            case PullImage(image):
                if image.reference in observed.images:
                    yield Skip(step.what, "it is here")
                    continue
                if built and all(reference in observed.images for reference in built):
                    yield Skip(step.what, "all that is made of it is here")
                    continue
            case BuildImage(reference):
                if reference in observed.images:
                    yield Skip(step.what, "it is here")
                    continue
            case BuildTogether(builds):
                yield from (Skip(build.what, "in the store") for build in builds if build.key in observed.finished)
                left = tuple(build for build in builds if build.key not in observed.finished)
                if left:
                    yield Action(BuildTogether(left) if len(left) > 1 else left[0])
                continue
            case FetchWeights() | FetchArtifact() | BuildArtifact() | ImportAdapter():
                if step.key in observed.finished:
                    yield Skip(step.what, "in the store")
                    continue
        yield Action(step)


def _builds(step: Step) -> tuple[BuildArtifact, ...]:
    match step:
        case BuildArtifact():
            return (step,)
        case BuildTogether(builds):
            return builds
        case _:
            return ()


def _in_one_read(supply: tuple[Supply, ...]) -> tuple[Supply, ...]:
    """The same, but what can be made in one read of the weights is made together, at the end."""
    streamed = tuple(step for step in supply if isinstance(step, BuildArtifact) and step.recipe.streamed)
    others = tuple(step for step in supply if step not in streamed)
    return (*others, BuildTogether(streamed)) if len(streamed) > 1 else supply
