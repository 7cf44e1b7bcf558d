"""What a real Ollama has answered, read from recorded/ollama."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PLACE = Path(__file__).parent / "recorded" / "ollama"


@dataclass(frozen=True)
class Recorded:
    """One exchange; headers' names are in lower case."""

    verb: str
    path: str
    asked: bytes
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def recorded(name: str) -> Recorded:
    """The exchange of that name."""
    lines = (PLACE / f"{name}.txt").read_text().split("\n")
    begin = next(n for n, line in enumerate(lines) if line.startswith("< HTTP/"))
    end = lines.index("<", begin)
    verb, path, _ = lines[0].removeprefix("> ").split()
    asked = "\n".join(line.removeprefix("> ") for line in lines[lines.index(">") + 1 : begin])
    last = max(n for n, line in enumerate(lines) if line.startswith("# elapsed"))
    pairs = (line.removeprefix("< ").split(": ", 1) for line in lines[begin + 1 : end])
    headers = {key.lower(): value for key, value in pairs}
    body = "\n".join(lines[end + 1 : last])
    return Recorded(verb, path, asked.encode(), int(lines[begin].split()[2]), headers, body.encode())


def form(value: object, but: frozenset[str] = frozenset()) -> object:
    """The shape of a JSON value: names of fields in their order, and types; `but` without the fields of these names."""
    if isinstance(value, dict):
        return [(key, form(one, but)) for key, one in value.items() if key not in but]
    if isinstance(value, list):
        return [form(one, but) for one in value]
    return "number" if type(value) in (int, float) else type(value).__name__
