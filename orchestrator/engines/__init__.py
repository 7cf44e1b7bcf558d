"""The engines that orch knows, by name. Adding one is adding a file and a line here."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.engines.base import EngineSheet
from orchestrator.engines.llamacpp import Llamacpp
from orchestrator.engines.ollama import Ollama
from orchestrator.engines.vllm import Vllm

ENGINES: Mapping[str, EngineSheet] = {sheet.name: sheet for sheet in (Ollama(), Llamacpp(), Vllm())}
