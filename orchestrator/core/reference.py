"""Figures of others that orch ships, with their source, as its users' own are compared with them: values only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from orchestrator.core.part import Must, Part


class ReferencePoint(Part):
    """At so many users at a time: output tokens a second of all together, and milliseconds until the first token; None
    where the source does not say."""

    users: Annotated[int, Must(ge=1)]
    throughput: float | None = None
    ttft: float | None = None


class ReferenceEngine(Part):
    """One engine: GPU memory for one user, seconds for 256 tokens, what a swap of adapters takes, how many fine-tuned
    models fit on the GPU, how many GB five of them take, and per cent of the 16-bit model's score that are left, by
    task."""

    engine: str
    recipe: str
    points: tuple[ReferencePoint, ...]
    memory_gb: float
    seconds_for_256: float
    adapter_swap: str
    models_that_fit: str
    five_models_gb: float
    recovery: Mapping[str, float]

    def at(self, users: int) -> ReferencePoint | None:
        """The point for so many users."""
        return next((point for point in self.points if point.users == users), None)


class ReferenceNote(Part):
    """Where today's engine differs from it, and by whose word."""

    about: str
    text: str
    source: str


class Reference(Part):
    """All of one source: of a model on a GPU."""

    name: str
    title: str
    model: str
    gpu: str
    gpu_memory_gb: float
    source: str
    engines: tuple[ReferenceEngine, ...]
    notes: tuple[ReferenceNote, ...] = ()

    def of(self, engine: str) -> ReferenceEngine | None:
        """What it has of an engine."""
        return next((one for one in self.engines if one.engine == engine), None)
