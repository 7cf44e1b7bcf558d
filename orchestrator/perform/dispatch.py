"""Which function does a step: the one that is registered for its class."""

from __future__ import annotations

from functools import singledispatch

from orchestrator.core.progress import Progress
from orchestrator.core.steps import Step
from orchestrator.drivers.base import World


@singledispatch
def perform(step: Step, world: World, progress: Progress) -> str | None:
    """Do a step; what came of it in words, where there is more to say than that it is done. Raises the OrchError tree;
    whatever `progress` raises ends it between two moments, never inside one."""
    raise TypeError(f"nothing performs {type(step).__name__}")
