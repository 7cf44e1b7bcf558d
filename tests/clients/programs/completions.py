"""What clients tell of an answer that they give as an object of OpenAI's API."""

from __future__ import annotations

import json
from typing import Any


def told(completed: Any) -> Any:
    (choice,) = completed.choices
    usage = completed.usage
    return {
        "model": completed.model,
        "content": choice.message.content,
        "finish": choice.finish_reason,
        "tokens": [usage.prompt_tokens, usage.completion_tokens] if usage else None,
        "whole": completed.model_dump(mode="json", exclude_none=True),
    }


def called(message: Any) -> list[Any]:
    """What it calls, each by its name and what is given."""
    return [[call.function.name, json.loads(call.function.arguments)] for call in message.tool_calls or ()]


def results(message: Any, result: str) -> list[Any]:
    """What came of each call, as it is told."""
    return [{"role": "tool", "tool_call_id": call.id, "content": result} for call in message.tool_calls or ()]
