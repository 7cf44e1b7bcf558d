"""JSON Schemas (draft 2020-12) of all that is printed with --json: a document, or a line of several."""

from __future__ import annotations

import json
from typing import Any

from orchestrator import resources
from orchestrator.errors import UsageError

# What the others refer to.
COMMON = "common"


def schema_names() -> dict[str, str]:
    """The verbs that have one, as they are typed, and its `$id`, whose last part is its version: a new one where what
    was there means something else, or is gone."""
    return {_verb(name): str(_read(name)["$id"]) for name in resources.schemas() if name != COMMON}


def schema_of(verb: str) -> dict[str, Any]:
    """A verb's, with what it refers to in it. UsageError where there is none."""
    if verb not in schema_names():
        raise UsageError(f"There is no schema of {verb}.", hint="orch schema tells all that there are.")
    found = _read(verb.replace(" ", "-"))
    return {**found, "$defs": {COMMON: _read(COMMON)}}


def _verb(name: str) -> str:
    return name.replace("-", " ")


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(resources.schemas()[name].read_text("utf-8"))
    return found
