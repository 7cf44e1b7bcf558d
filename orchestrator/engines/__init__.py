"""The engines that orch knows, by name. Adding one is adding a file and a line here."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.engines.base import EngineSheet
from orchestrator.engines.llamacpp import Llamacpp
from orchestrator.engines.ollama import Ollama
from orchestrator.engines.vllm import Vllm
from orchestrator.errors import PlanRefused

ENGINES: Mapping[str, EngineSheet] = {sheet.name: sheet for sheet in (Ollama(), Llamacpp(), Vllm())}


def engine_sheet(name: str) -> EngineSheet:
    """The fact sheet of an engine; PlanRefused with the known names otherwise."""
    sheet = ENGINES.get(name)
    if sheet is None:
        raise PlanRefused(f"orch does not know the engine {name}.", hint=f"Known engines: {', '.join(ENGINES)}")
    return sheet
