"""Weights into the store, of a profile or of a repository."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from orchestrator.app.profiles import named_profile
from orchestrator.core.plan import Plan
from orchestrator.core.prerequisites import FetchWeights
from orchestrator.core.weights import REPOSITORY, HubSource
from orchestrator.errors import PlanRefused, UsageError
from orchestrator.planning.prerequisites import plan_prerequisites

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator


def plan_pull(orch: Orchestrator, profile: str | None, repo: str | None) -> Plan:
    """The plan to have the weights of a profile (None: the one that is meant), or of OWNER/NAME@REVISION."""
    observed = orch.observe()
    source = _repository(orch, repo, profile) if repo is not None else None
    if source is None:
        loaded = named_profile(orch, profile, observed)
        source = loaded.weights.hub
        if source is None:
            raise PlanRefused(f"The weights of {loaded.name} are a local directory: nothing to pull.")
    return plan_prerequisites("pull", (FetchWeights(source, orch.catalog.of_hub(source).key),), observed)


def _repository(orch: Orchestrator, repo: str, profile: str | None) -> HubSource:
    if profile is not None:
        raise UsageError("Give a repository or a profile, not both.")
    name, _, revision = repo.partition("@")
    if not re.fullmatch(REPOSITORY, name):
        raise UsageError(f"{repo!r} is not a valid repository name.", hint="OWNER/NAME or OWNER/NAME@REVISION.")
    source = HubSource(name, revision or "main")
    return source if source.pinned else orch.hub.snapshot(source, 30.0, progress=orch.progress).source
