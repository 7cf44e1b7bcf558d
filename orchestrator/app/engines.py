"""The names of engines, for whoever types one."""

from __future__ import annotations

from orchestrator.core.tools import TOOLS
from orchestrator.engines import ENGINES


def engine_names() -> list[str]:
    """All of them, sorted."""
    return sorted(ENGINES)


def image_owners() -> list[str]:
    """What an image can be pinned for."""
    return [*(name for name in engine_names() if ENGINES[name].in_containers), TOOLS]
