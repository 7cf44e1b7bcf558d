"""What profiles say of engines, as the engines that there are take it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.core.part import Unfit, Unknown
from orchestrator.core.profile import EngineTables, Profile
from orchestrator.engines import ENGINES


def read_settings(tables: Mapping[str, Any], extra: Unknown) -> EngineTables:
    """The settings of every engine that there is, whole, with what goes without saying; see `ReadSettings`.

    With `extra` "ignore" engines and settings that nobody knows are left out, else they are problems.
    """
    problems: list[Any] = []
    if extra == "forbid":
        strange = {name: table for name, table in tables.items() if name not in ENGINES}
        words = f"unknown engine; known: {', '.join(sorted(ENGINES))}"
        problems = [
            {"type": "unknown_engine", "loc": ("engines", name), "msg": words, "input": table}
            for name, table in strange.items()
        ]
    found: EngineTables = {}
    for name, sheet in ENGINES.items():
        try:
            found[name] = sheet.settings.model_validate(tables.get(name, {}), extra).model_dump()
        except Unfit as error:
            problems += [{**one, "loc": ("engines", name, *one["loc"])} for one in error.problems]
    if problems:
        raise Unfit("These settings are not valid for their engines.", problems)
    return found


def said_settings(profile: Profile) -> EngineTables:
    """What a profile says of engines beyond what goes without saying."""
    said = {name: sheet.settings.of(profile, name).model_dump(exclude_defaults=True) for name, sheet in ENGINES.items()}
    return {name: table for name, table in said.items() if table}
