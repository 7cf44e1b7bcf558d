"""What is printed with --json, held against the schemas that are shipped. Every command that tests run is held."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache

from jsonschema import Draft202012Validator

from orchestrator.app.schemas import schema_names, schema_of


@cache
def validator(verb: str) -> Draft202012Validator:
    """Of a verb's lines."""
    return Draft202012Validator(schema_of(verb))


def verb_of(args: Sequence[str]) -> str:
    """The verb of a command line."""
    two = " ".join(args[:2])
    return two if two in schema_names() else args[0]


def problems(args: Sequence[str], out: str) -> list[str]:
    """What is wrong with the lines that a command has printed."""
    held = validator(verb_of(args))
    found = []
    for line in out.splitlines():
        value = json.loads(line)
        if not held.is_valid(value):
            closest = [f"  {error.message}" for kind in held.iter_errors(value) for error in kind.context or [kind]]
            found += [f"orch {' '.join(args)}: {line}", *closest]
    return found
