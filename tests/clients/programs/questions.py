"""What all clients ask in the same words."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

TOKENS = 200
GREEDY: dict[str, Any] = {"temperature": 0, "seed": 1, "num_predict": TOKENS}
# One that any model keeps to in a few tokens, blanks included.
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"weather": {"type": "string", "enum": ["sunny", "rainy"]}},
    "required": ["weather"],
}


class Weather(BaseModel):
    """The same, for clients that are told it so."""

    weather: Literal["sunny", "rainy"]


def _function(name: str, description: str, **properties: str) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in properties.items()},
        "required": [*properties],
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TOOLS = [
    _function("get_weather", "The weather in a city", city="string", days="integer"),
    _function("get_time", "The time in a zone", zone="string"),
]


def said(question: str) -> list[dict[str, str]]:
    """A conversation that begins."""
    return [{"role": "user", "content": question}]
