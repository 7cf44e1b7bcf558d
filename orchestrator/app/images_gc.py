"""Removing the container images that orch has brought and that nothing needs any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator import resources
from orchestrator.app.images import attend, image_pins, pins_before
from orchestrator.core.pins import ImagePin
from orchestrator.drivers.docker import gateway_image
from orchestrator.errors import HostError, OrchError
from orchestrator.planning.gc_roots import refuse_unknown
from orchestrator.planning.images_gc import ImageVerdict, images_needed, sort_out_images
from orchestrator.planning.preconditions import refuse_unreachable

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator


__all__ = ["ImageVerdict", "image_verdicts", "remove_images"]


def image_verdicts(orch: Orchestrator) -> tuple[ImageVerdict, ...]:
    """All of orch's own images that the daemon has. PlanRefused as long as it cannot be told what is needed."""
    attend(orch)
    observed = orch.observe()
    refuse_unreachable(observed)
    refuse_unknown(observed, orch.records.unreadable())
    needs = dict(images_needed(observed))
    pinned: dict[str, list[ImagePin]] = {engine: list(pin.docker) for engine, pin in image_pins(orch).items()}
    for engine, pins in pinned.items():
        for pin in pins:
            needs.setdefault(pin.reference, f"it is pinned for {engine}")
        for pin in pins_before(orch, engine):
            needs.setdefault(pin.reference, f"orch images pin {engine} --back goes back to it")
    bases: list[ImagePin] = list(resources.gateway_bases().values())
    try:
        reference, base = orch.gateway_image()
    except OrchError as error:
        # Nobody could make it again.
        why = f"the next gateway cannot be determined: {error.message}"
        own = (tag for tag in observed.images if tag.startswith(f"{gateway_image.NAME}:"))
        needs |= {tag: why for tag in own if tag not in needs}
    else:
        needs.setdefault(reference, "the next gateway is started from it")
        needs.setdefault(base if isinstance(base, str) else base.reference, "the gateway's image is built on it")
    repositories = {pin.image for pins in (*pinned.values(), bases) for pin in pins}
    return sort_out_images(observed.images.values(), gateway_image.NAME, repositories, needs)


def remove_images(orch: Orchestrator, removable: list[ImageVerdict]) -> dict[ImageVerdict, str]:
    """Remove these; for each that stays after all, why: a container of another data directory is made of it."""
    stay: dict[ImageVerdict, str] = {}
    for verdict in removable:
        orch.progress(f"removing {verdict.name}", 0, 0)
        try:
            orch.images.remove(verdict.facts)
        except HostError as error:
            stay[verdict] = error.message
    return stay
