"""What resolving a wish gives: a Deployment, and what it takes to have it."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.artifact import Recipe
from orchestrator.core.deployment import Deployment
from orchestrator.core.routes import Route
from orchestrator.core.steps import (
    BuildArtifact,
    BuildImage,
    BuildTogether,
    EnsureEnvironment,
    FetchArtifact,
    FetchWeights,
    ImportAdapter,
    PullImage,
    Skip,
)
from orchestrator.core.vram import Budget
from orchestrator.core.weights import hub_source

Supply = (
    FetchWeights
    | FetchArtifact
    | BuildArtifact
    | BuildTogether
    | ImportAdapter
    | EnsureEnvironment
    | PullImage
    | BuildImage
)


def way_of(key: str, recipe: Recipe, source: str, weights: str, ready: bool) -> Supply | None:
    """How an entry of this recipe and source is made, as far as they tell: pulled, taken ready-made (`ready`), or built
    from its weights in the directory `weights`. None for a LoRA and for a directory's files: where they lay is not
    said."""
    hub, file = hub_source(source) or (None, "")
    if recipe is Recipe.WEIGHTS:
        return FetchWeights(hub, key) if hub is not None else None
    if hub is not None and (ready or file):
        return FetchArtifact(recipe, key, source, hub, file)
    return BuildArtifact(recipe, key, source, weights) if recipe.served else None


@dataclass(frozen=True)
class Resolved:
    """A Deployment with what it takes to have its files, and the recipes that were passed over.

    `supply` is ordered; `routes` name public name, upstream and patch, their url is not known before the engine runs;
    `budget` is the memory that one more such engine needs, None when nothing is known of the weights yet.
    """

    deployment: Deployment
    supply: tuple[Supply, ...]
    passed_over: tuple[Skip, ...]
    routes: tuple[Route, ...]
    budget: Budget | None = None
