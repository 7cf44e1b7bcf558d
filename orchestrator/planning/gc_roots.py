"""What of the store is needed, by whom, and so what garbage collection removes. Pure.

Roots are engines that are there, what is recorded of profiles, and lock files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from orchestrator.core.artifact import Recipe, artifact_key
from orchestrator.core.deployment import Adapter
from orchestrator.core.lock_file import Lock
from orchestrator.core.observed import Observed
from orchestrator.core.prerequisites import Prerequisite
from orchestrator.core.profile import Profile
from orchestrator.errors import PlanRefused
from orchestrator.planning.prerequisites import entries

# Keys, and who needs each, in words. The first one that says so is believed.
Needs = Mapping[str, str]


@dataclass(frozen=True)
class Stored:
    """Something in the store: an entry, or what is left of an `unfinished` build; its bytes, when it was made or last
    written to, and its source as far as it is known."""

    key: str
    size: int
    at: datetime
    source: str = ""
    unfinished: bool = False


@dataclass(frozen=True)
class Verdict:
    """Whether something stays, and why."""

    stored: Stored
    stays: bool
    why: str


@dataclass(frozen=True)
class GcPolicy:
    """How much is given up: what is younger than `age` stays; weights go when all that is made of them is there
    (`weights`), and so do all unfinished builds (`unfinished`)."""

    age: timedelta
    weights: bool = False
    unfinished: bool = False


def refuse_unknown(observed: Observed, unreadable: tuple[str, ...]) -> None:
    """Who needs what cannot be told as long as a record cannot be read."""
    damaged = tuple(f"{instance.name}: {instance.problem}" for instance in observed.damaged)
    if damaged or unreadable:
        raise PlanRefused(
            "What is needed cannot be determined: not every record can be read.",
            hint="orch status names them; orch down stops what they describe.",
            detail="\n".join((*damaged, *unreadable)),
        )


def needed_by_engines(observed: Observed) -> Needs:
    """What the engines that are there were started with."""
    needs: dict[str, str] = {}
    for engine in observed.engines:
        deployment = engine.deployment
        keys = [deployment.artifact_key, *_keys_of(deployment.adapters)]
        if deployment.recipe is Recipe.WEIGHTS:
            keys.append(artifact_key(Recipe.WEIGHTS, deployment.weights_source))
        for key in keys:
            needs.setdefault(key, f"{engine.instance.name} uses it")
    return needs


def needed_for(
    why: str,
    wanted: tuple[Prerequisite, ...],
    adapters: tuple[Adapter, ...],
    finished: Collection[str],
    policy: GcPolicy,
) -> Needs:
    """What a deployment takes; `wanted` is all that it may be served with, of which one artifact is enough."""
    made = [step for step in entries(wanted) if step.recipe is not Recipe.WEIGHTS]
    served = [step.key in finished for step in made if step.recipe is not None and step.recipe.served]
    loras = [step.key in finished for step in made if step.recipe is Recipe.LORA_GGUF]
    keys = [key for step in made for key in (step.key, *step.rests_on)]
    if not (policy.weights and any(served) and all(loras)):
        keys += [step.key for step in wanted if step.recipe is Recipe.WEIGHTS]
    return dict.fromkeys((*keys, *_keys_of(adapters)), why)


def doubts(why: str, profile: Profile) -> Mapping[str, str]:
    """What a profile may need whose keys cannot be told, because a directory that it names cannot be read: by how their
    source begins, and why."""
    hubs = [profile.weights.hub, *(ready.hub for ready in profile.ready_made.values())]
    return dict.fromkeys(("dir:", "file:", *(str(hub) for hub in hubs if hub is not None)), why)


def needed_by_lock(why: str, lock: Lock, finished: Collection[str], policy: GcPolicy) -> Needs:
    """What a lock file names."""
    made = [key for key in lock.entries if key != lock.weights]
    spare = policy.weights and made and all(key in finished for key in made)
    return dict.fromkeys(made if spare else lock.entries, why)


def sort_out(
    stored: Iterable[Stored], needs: Needs, doubts: Mapping[str, str], now: datetime, policy: GcPolicy
) -> tuple[Verdict, ...]:
    """What stays and what goes, each with its reason; see `doubts`."""
    all_stored = tuple(stored)
    finished = {one.key for one in all_stored if not one.unfinished}
    return tuple(_verdict(one, needs, doubts, finished, now, policy) for one in all_stored)


def _verdict(
    one: Stored, needs: Needs, doubts: Mapping[str, str], finished: Collection[str], now: datetime, policy: GcPolicy
) -> Verdict:
    young = now - one.at < policy.age
    if one.unfinished and policy.unfinished:
        return Verdict(one, False, "unfinished")
    if one.key in needs and not (one.unfinished and one.key in finished):
        return Verdict(one, True, needs[one.key])
    if (doubt := next((why for begin, why in doubts.items() if one.source.startswith(begin)), None)) is not None:
        return Verdict(one, True, doubt)
    if young:
        hours = policy.age.total_seconds() / 3600
        return Verdict(one, True, f"{'written to' if one.unfinished else 'made'} in the last {hours:g} h")
    return Verdict(one, False, "unfinished, and nothing continues it" if one.unfinished else "nothing needs it")


def _keys_of(adapters: tuple[Adapter, ...]) -> tuple[str, ...]:
    return tuple(key for adapter in adapters for key in (adapter.key, adapter.gguf_key))
