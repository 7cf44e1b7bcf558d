"""Which container images are needed, by whom, and which of those that orch has brought are not. Pure.

The daemon is everybody's: an image is orch's own if it bears the gateway's name, or if it came by its digest from a
repository that is pinned. One with a tag was named by somebody else, and stays.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from orchestrator.core.deployment import Resolution
from orchestrator.core.images import ImageFacts
from orchestrator.core.observed import Observed

# What names an image (NAME@DIGEST, ID, tag), and who needs it, in words. The first one that says so is believed.
Needs = Mapping[str, str]


@dataclass(frozen=True)
class ImageVerdict:
    """Whether an image stays, and why; `name` is what names it exactly."""

    name: str
    facts: ImageFacts
    stays: bool
    why: str


def images_needed(observed: Observed) -> Needs:
    """What runs, what is recorded, and what rollback would go back to."""
    needs: dict[str, str] = {}
    instances = [*(engine.instance for engine in observed.engines), *observed.gateway.all, *observed.damaged]
    for instance in instances:
        if instance.launch.container is not None:
            needs.setdefault(instance.launch.container.image, f"{instance.name} is made from it")
    for profile, desired in sorted(observed.desired.items()):
        comes = "is stopped, and comes back" if desired.stopped else "is served"
        needs |= _needed_by(desired.resolution, f"{profile} {comes} with it", needs)
        before = desired.before.resolution if desired.before is not None else None
        needs |= _needed_by(before, f"rollback of {profile} goes back to it", needs)
    return needs


def sort_out_images(
    images: Iterable[ImageFacts], gateway: str, repositories: Collection[str], needs: Needs
) -> tuple[ImageVerdict, ...]:
    """Of orch's own images (`gateway` is the name of the gateway's, `repositories` are those that are pinned) which
    stay and which go, the largest first."""
    found = []
    for facts in sorted({one.id: one for one in images}.values(), key=lambda one: -one.size):
        name = next(_own_names(facts, gateway, repositories), None)
        if name is None:
            continue
        why = next((needs[known] for known in (*facts.references, *facts.tags, facts.id) if known in needs), "")
        found.append(ImageVerdict(name, facts, why != "", why or "nothing needs it"))
    return tuple(found)


def _needed_by(resolution: Resolution | None, why: str, needs: Needs) -> dict[str, str]:
    if resolution is None or resolution.image is None or resolution.image.reference in needs:
        return {}
    return {resolution.image.reference: why}


def _own_names(facts: ImageFacts, gateway: str, repositories: Collection[str]) -> Iterator[str]:
    yield from (tag for tag in facts.tags if tag.partition(":")[0] == gateway)
    if not facts.tags:
        yield from (one for one in facts.references if one.partition("@")[0] in repositories)
