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


@dataclass(frozen=True)
class ImageUse:
    """That an image (by what names it exactly) is used: by whom, in a word or two, and why it is needed."""

    image: str
    who: str
    why: str


def image_uses(observed: Observed) -> Iterator[ImageUse]:
    """What runs, what is recorded, and what rollback would go back to."""
    instances = [*(engine.instance for engine in observed.engines), *observed.gateway.all, *observed.damaged]
    for instance in instances:
        if instance.launch.container is not None:
            yield ImageUse(instance.launch.container.image, instance.name, f"{instance.name} is made from it")
    for profile, desired in sorted(observed.desired.items()):
        who, comes = (
            (f"{profile} (stopped)", "is stopped, and comes back") if desired.stopped else (profile, "is served")
        )
        yield from _used_by(desired.resolution, who, f"{profile} {comes} with it")
        before = desired.before.resolution if desired.before is not None else None
        yield from _used_by(before, f"{profile} (rollback)", f"rollback of {profile} goes back to it")


def images_needed(observed: Observed) -> Needs:
    """Why each is needed; of several reasons the first."""
    needs: dict[str, str] = {}
    for use in image_uses(observed):
        needs.setdefault(use.image, use.why)
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


def _used_by(resolution: Resolution | None, who: str, why: str) -> Iterator[ImageUse]:
    if resolution is not None and resolution.image is not None:
        yield ImageUse(resolution.image.reference, who, why)


def _own_names(facts: ImageFacts, gateway: str, repositories: Collection[str]) -> Iterator[str]:
    yield from (tag for tag in facts.tags if tag.partition(":")[0] == gateway)
    if not facts.tags:
        yield from (one for one in facts.references if one.partition("@")[0] in repositories)
