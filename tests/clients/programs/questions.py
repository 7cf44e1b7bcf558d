"""What all clients ask in the same words."""

from __future__ import annotations

from typing import Any

TOKENS = 40
GREEDY: dict[str, Any] = {"temperature": 0, "seed": 1, "num_predict": TOKENS}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "size": {"type": "integer"}},
    "required": ["name", "size"],
}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


def said(question: str) -> list[dict[str, str]]:
    """A conversation that begins."""
    return [{"role": "user", "content": question}]
