"""The engines that orch knows, by name. Adding one is adding a file and a line here, and what it has of its own:
templates/NAME, and profiles/engines/NAME.toml where images or environments of it are pinned.

Whoever needs them looks here when they are needed, so that a test can add one of its own for a while.
"""

from __future__ import annotations

from orchestrator.engines.base import EngineSheet
from orchestrator.engines.llamacpp import Llamacpp
from orchestrator.engines.ollama import Ollama
from orchestrator.engines.vllm import Vllm
from orchestrator.errors import UsageError

ENGINES: dict[str, EngineSheet] = {sheet.name: sheet for sheet in (Ollama(), Llamacpp(), Vllm())}


def engine_sheet(name: str) -> EngineSheet:
    """The fact sheet of an engine; UsageError with the known names otherwise."""
    sheet = ENGINES.get(name)
    if sheet is None:
        raise UsageError(f"orch does not know the engine {name}.", hint=f"Known engines: {', '.join(ENGINES)}")
    return sheet
