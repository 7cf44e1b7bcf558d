"""What differs between two JSON values, as places to set and to drop: so assets in tests/assets/meaning stay small."""

from __future__ import annotations

import copy
from typing import Any

Edits = dict[str, Any]


def edited(value: Any, edits: Edits) -> Any:
    """`value` with `set` (place to value) and `drop` (places) done. A place is a JSON pointer (RFC 6901)."""
    made = copy.deepcopy(value)
    for place in edits.get("drop", ()):
        *way, last = _steps(place)
        del _at(made, way)[last]
    for place, found in edits.get("set", {}).items():
        *way, last = _steps(place)
        _at(made, way)[last] = copy.deepcopy(found)
    return made


def edits(old: dict[str, Any], new: dict[str, Any]) -> Edits:
    """What makes `new` of `old`. Objects are compared inside, lists are not."""
    found: Edits = {"set": {}, "drop": []}
    _compare(old, new, "", found)
    return {kind: places for kind, places in found.items() if places}


def _compare(old: dict[str, Any], new: dict[str, Any], place: str, found: Edits) -> None:
    for name in old.keys() - new.keys():
        found["drop"].append(f"{place}/{_escaped(name)}")
    for name, value in new.items():
        below = f"{place}/{_escaped(name)}"
        if name in old and isinstance(value, dict) and isinstance(old[name], dict):
            _compare(old[name], value, below, found)
        elif name not in old or old[name] != value or type(old[name]) is not type(value):
            found["set"][below] = value
    found["drop"].sort()


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _steps(place: str) -> list[str]:
    return [step.replace("~1", "/").replace("~0", "~") for step in place.removeprefix("/").split("/")]


def _at(value: Any, way: list[str]) -> Any:
    for step in way:
        value = value[step]
    return value
