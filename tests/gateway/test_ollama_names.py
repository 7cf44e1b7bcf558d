"""In front of Ollama models answer under the name that was asked for, in errors too."""

from __future__ import annotations

import asyncio
import json

import pytest

from orchestrator.core.routes import OLLAMA, Backend, Route
from orchestrator.gateway.dialects.ollama.passed import Passed

KEPT = "adapter-2627701e43b9"


async def said(name: str, error: str, upstream: str | None = KEPT) -> str:
    """An engine's error under the name that the client has for the model."""
    route = Route("alpha", "one", (Backend("one-g1", "http://127.0.0.1:1"),), (OLLAMA,), upstream)
    told = await Passed(route, name).whole(400, json.dumps({"error": error}, separators=(",", ":")).encode())
    return str(json.loads(told.body)["error"])


@pytest.mark.parametrize("name", ["alpha", "alpha:latest", "Alpha"])
@pytest.mark.parametrize("upstream", [KEPT, None])
def test_errors_have_the_name_that_was_asked_for(name: str, upstream: str | None) -> None:
    theirs = upstream or "alpha"
    for error, wanted in (
        (f'"{theirs}" does not support thinking', f'"{name}" does not support thinking'),
        (f"model '{theirs}' not found", f"model '{name}' not found"),
        (f"no model is called {theirs}.", f"no model is called {name}."),
        (
            f"registry.ollama.ai/library/{theirs}:latest does not support tools",
            f"registry.ollama.ai/library/{name.removesuffix(':latest')}:latest does not support tools",
        ),
        (f"open /models/{theirs}/x: {theirs}s", f"open /models/{theirs}/x: {theirs}s"),
    ):
        assert asyncio.run(said(name, error, upstream)) == wanted
