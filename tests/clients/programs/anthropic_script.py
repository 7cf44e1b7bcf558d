"""A script as somebody writes one for Anthropic's API, with its official client; it asks a model that has an adapter
(`tiny`), or one that thinks and calls tools (`chain`).
"""

from __future__ import annotations

import sys
from typing import Any

import anthropic
from all_along import Questions, ask_all_along
from questions import said

TOKENS = 60
TOOLS: list[Any] = [
    {"name": name, "description": "d", "input_schema": {"type": "object"}} for name in ("get_weather", "get_time")
]


def questions() -> Questions:
    """What is asked."""
    messages = anthropic.Anthropic(base_url=sys.argv[1], api_key="none", timeout=120, max_retries=0).messages

    def told(message: anthropic.types.Message) -> tuple[Any, str]:
        texts = [block.text for block in message.content if block.type == "text"]
        thoughts = [f"({block.thinking})" for block in message.content if block.type == "thinking"]
        calls = [f"{block.name}{block.input}" for block in message.content if block.type == "tool_use"]
        whole = message.model_dump(mode="json", exclude_none=True)
        return [whole, message.stop_reason, message.stop_sequence], "".join([*thoughts, *texts, *calls])

    def create(model: str, question: str, **more: Any) -> tuple[Any, str]:
        return told(messages.create(model=model, max_tokens=TOKENS, messages=said(question), **more))

    def stream(model: str, question: str, **more: Any) -> tuple[Any, str]:
        with messages.stream(model=model, max_tokens=TOKENS, messages=said(question), **more) as parts:
            types = {part.type for part in parts}
            whole, text = told(parts.get_final_message())
            return [whole, sorted(types)], text

    def count(model: str, question: str) -> tuple[Any, str]:
        counted = messages.count_tokens(model=model, messages=said(question))
        return counted.model_dump(), str(counted.input_tokens)

    def unknown() -> tuple[Any, str]:
        try:
            create("nope", "x")
        except anthropic.NotFoundError as error:
            return error.body, str(error.status_code)
        raise AssertionError("an unknown model answers")

    asked: dict[str, Questions] = {
        "tiny": {
            "create": lambda: create("tiny", "Who are you?"),
            "create as an adapter": lambda: create("alpha", "Who are you?"),
            "stream": lambda: stream("tiny", "Who are you?"),
            "stream as an adapter": lambda: stream("alpha", "Who are you?"),
            "create up to a sequence": lambda: create("tiny", "Who are you?", stop_sequences=["test", "nope"]),
            "stream up to a sequence": lambda: stream("tiny", "Who are you?", stop_sequences=["test", "nope"]),
            "create more than there is room for": lambda: create(
                "tiny", "Who are you?", extra_body={"max_tokens": 9999}
            ),
            "count": lambda: count("tiny", "Who are you?"),
            "unknown": unknown,
        },
        "chain": {
            "create with thoughts": lambda: create("chain", "How?", thinking={"type": "adaptive"}),
            "create without": lambda: create("chain", "How?", thinking={"type": "disabled"}),
            "stream with thoughts": lambda: stream("chain", "How?", thinking={"type": "adaptive"}),
            "create with tools": lambda: create("chain", "How?", tools=TOOLS),
            "stream with tools": lambda: stream("chain", "How?", tools=TOOLS),
            "count": lambda: count("chain", "How?"),
        },
    }
    return asked[sys.argv[2]]


if __name__ == "__main__":
    ask_all_along(questions)
