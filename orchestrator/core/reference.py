"""Figures of others that orch ships, with their source, as its users' own are compared with them: values only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from orchestrator.core.part import Must, Part
from orchestrator.core.weights import HubSource, Shape, shape_of


class ReferencePoint(Part):
    """At so many users at a time: output tokens a second of all together, and milliseconds until the first token; None
    where the source does not say."""

    users: Annotated[int, Must(ge=1)]
    throughput: float | None = None
    ttft: float | None = None


class ReferenceWeights(Part):
    """A repository at a commit, and what its config.json says of sizes, by the names that it has there."""

    repo: str
    revision: str
    config: Mapping[str, int | bool | str]

    @property
    def shape(self) -> Shape | None:
        """The sizes; None where it does not tell them all."""
        return shape_of(self.config)

    @property
    def hub(self) -> HubSource:
        """Where they are."""
        return HubSource(self.repo, self.revision)


class ReferenceEngine(Part):
    """One engine: GPU memory for one user, seconds for 256 tokens, what a swap of adapters takes, how many fine-tuned
    models fit on the GPU, how many GB five of them take, each by itself ("separate") or as adapters of one base
    ("together"), and per cent of the 16-bit model's score that are left, by task."""

    engine: str
    recipe: str
    points: tuple[ReferencePoint, ...]
    memory_gb: float
    seconds_for_256: float
    adapter_swap: str
    models_that_fit: str
    five_models_gb: float
    five_models: Literal["separate", "together"]
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
    """All of one source: of a model on a GPU, and the `weights` that the model is."""

    name: str
    title: str
    model: str
    gpu: str
    gpu_memory_gb: float
    source: str
    weights: ReferenceWeights
    engines: tuple[ReferenceEngine, ...]
    notes: tuple[ReferenceNote, ...] = ()

    def of(self, engine: str) -> ReferenceEngine | None:
        """What it has of an engine."""
        return next((one for one in self.engines if one.engine == engine), None)
