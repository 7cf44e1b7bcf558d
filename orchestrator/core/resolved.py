"""What resolving a wish gives: a Deployment, and what it takes to have it."""

from __future__ import annotations

from dataclasses import dataclass

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
