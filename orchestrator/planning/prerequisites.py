"""What a plan needs of weights, artifacts, adapters, environments and images, and what of it is here. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from orchestrator.core.observed import Observed
from orchestrator.core.plan import Action, Plan, Remark, Skip
from orchestrator.core.prerequisites import BuildArtifact, BuildTogether, Prerequisite, Storage

# Why something need not be done, by where it is kept: because it is here, or because it only serves to make others,
# and all of those are.
HERE = {Storage.STORE: "in the store", Storage.ENVIRONMENTS: "installed", Storage.IMAGES: "it is here"}
SPENT = {
    Storage.STORE: "all that is made from it is in the store",
    Storage.ENVIRONMENTS: "all that is made with it is in the store",
    Storage.IMAGES: "all that is made from it is here",
}


def plan_prerequisites(
    verb: str, wanted: tuple[Prerequisite, ...], observed: Observed, results: Collection[str] = ()
) -> Plan:
    """Have all of this, what can be in one read of the weights; nothing that serves is touched. `results` are the keys
    of what is wanted for itself, though others may be made from it."""
    items = tuple(prerequisite_items(_in_one_read(wanted), observed, results))
    return Plan(verb, items, commit=len(items))


def prerequisite_items(
    wanted: tuple[Prerequisite, ...], observed: Observed, results: Collection[str] = ()
) -> Iterator[Action | Skip]:
    """Each as an Action, or as a Skip that says why it need not be done."""
    parts = tuple(part for step in wanted for part in step.parts)
    for step in wanted:
        if all(is_here(part, observed) for part in step.parts):
            yield from (Skip(part.what, HERE[part.storage]) for part in step.parts)
        elif step.key not in results and _is_spent(step, parts, observed):
            yield Remark(step.what, SPENT[step.storage])
        else:
            yield from (Skip(part.what, HERE[part.storage]) for part in step.parts if is_here(part, observed))
            yield Action(_what_is_left(step, observed))


def is_here(step: Prerequisite, observed: Observed) -> bool:
    """Whether it is where it is kept, whole."""
    match step.storage:
        case Storage.STORE:
            return step.key in observed.finished
        case Storage.IMAGES:
            return step.key in observed.images
        case Storage.ENVIRONMENTS:
            present = observed.environments.get(step.key)
            return present is not None and not present.problem


def builds_of(plan: Plan) -> tuple[BuildArtifact, ...]:
    """All that it builds of weights and adapters."""
    steps = (action.step for action in plan.actions)
    parts = (part for step in steps if isinstance(step, Prerequisite) for part in step.parts)
    return tuple(part for part in parts if isinstance(part, BuildArtifact))


def entries(wanted: Iterable[Prerequisite]) -> tuple[Prerequisite, ...]:
    """Those that end in the store."""
    return tuple(step for step in wanted if step.storage is Storage.STORE)


def missing_entries(plan: Plan) -> tuple[Prerequisite, ...]:
    """What a plan would have to bring into the store first."""
    return entries(action.step for action in plan.actions if isinstance(action.step, Prerequisite))


def _is_spent(step: Prerequisite, parts: tuple[Prerequisite, ...], observed: Observed) -> bool:
    users = [part for part in parts if step.key in part.made_from]
    if any(step.key in part.rests_on for part in parts):
        return False
    return bool(users) and all(is_here(user, observed) for user in users)


def _what_is_left(step: Prerequisite, observed: Observed) -> Prerequisite:
    if not isinstance(step, BuildTogether):
        return step
    left = tuple(build for build in step.builds if not is_here(build, observed))
    return BuildTogether(left) if len(left) > 1 else left[0]


def _in_one_read(wanted: tuple[Prerequisite, ...]) -> tuple[Prerequisite, ...]:
    """The same, but what can be made in one read of the same files is made together, at the end."""
    by_place: dict[str, list[BuildArtifact]] = {}
    for step in wanted:
        if isinstance(step, BuildArtifact) and step.streamed:
            by_place.setdefault(step.source_path, []).append(step)
    together = tuple(BuildTogether(tuple(builds)) for builds in by_place.values() if len(builds) > 1)
    others = tuple(step for step in wanted if not any(step in one.builds for one in together))
    return (*others, *together)
