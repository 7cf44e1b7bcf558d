"""The APIs that clients may speak. To add one: a file with its Dialect, and a line here."""

from __future__ import annotations

from orchestrator.gateway.dialects.anthropic import MESSAGES, Anthropic
from orchestrator.gateway.dialects.base import Dialect
from orchestrator.gateway.dialects.ollama import Ollama
from orchestrator.gateway.dialects.openai import OpenAI

_OPENAI = OpenAI()
# By the beginning of a path, whole segments.
_SPOKEN: dict[str, Dialect] = {MESSAGES: Anthropic(), "/api": Ollama()}


def spoken_at(path: str) -> Dialect:
    """The dialect of whoever asks at a path; / is where Ollama's clients look whether there is one."""
    if path == "/":
        return _SPOKEN["/api"]
    return next((dialect for start, dialect in _SPOKEN.items() if f"{path}/".startswith(f"{start}/")), _OPENAI)
