"""The names of engines, for whoever types one."""

from __future__ import annotations

from orchestrator.core.tools import TOOLS
from orchestrator.engines import ENGINES, engine_sheet


def engine_names() -> list[str]:
    """All of them, sorted."""
    return sorted(ENGINES)


def check_engine(name: str) -> None:
    """UsageError, with the known ones, where there is no engine of that name."""
    engine_sheet(name)


def image_owners() -> list[str]:
    """What an image can be pinned for."""
    return [*(name for name in engine_names() if ENGINES[name].in_containers), TOOLS]
