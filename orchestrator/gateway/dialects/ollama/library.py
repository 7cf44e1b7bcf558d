"""Lists and descriptions of what is served, as Ollama gives them of what it has."""

from __future__ import annotations

from orchestrator.core.routes import Route, RouteTable
from orchestrator.gateway import refusals
from orchestrator.gateway.dialects.base import Endpoint, Said, Visit
from orchestrator.gateway.dialects.ollama.words import GO_JSON, go_json

# The API that this is.
VERSION = "0.33.0"
_ENDPOINTS = {"/": Endpoint(), "/api/version": Endpoint()}


def endpoint(path: str) -> Endpoint | None:
    """What the gateway answers by itself."""
    return _ENDPOINTS.get(path)


def find(table: RouteTable, name: str) -> Route | None:
    """The route of a name, in any case, with or without :latest and what Ollama's own registry puts before it."""
    for start in ("registry.ollama.ai/", "library/"):
        name = name.removeprefix(start)
    return table.find_alike(name) or table.find_alike(name.removesuffix(":latest"))


async def tell(visit: Visit) -> Said:
    """What is said of it; raises Refusal."""
    if visit.path == "/":
        return Said(b"Ollama is running", content_type="text/plain; charset=utf-8")
    if visit.path == "/api/version":
        return Said(go_json({"version": VERSION}), content_type=GO_JSON)
    raise refusals.unknown_path(visit.method, visit.path)
