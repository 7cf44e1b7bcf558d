"""Ollama's questions for an engine that knows OpenAI's API, and its answers back."""

from __future__ import annotations

from orchestrator.gateway.dialects.base import Engine, Question, Said
from orchestrator.gateway.dialects.ollama import words
from orchestrator.gateway.dialects.ollama.asked import Asked


async def translated(asked: Asked, path: str, engine: Engine) -> Question | Said:
    """What to ask the engine; raises Refusal."""
    raise words.fault(501, f"{path} is not translated for {engine.route.name}: {len(asked.fields)} fields.")
