"""A script as somebody writes one for Ollama, with its official client: it knows of no gateway, and of no migration."""

from __future__ import annotations

import sys
from typing import Any

import ollama
from all_along import Questions, ask_all_along

GREEDY = {"temperature": 0, "num_predict": 40}


def questions() -> Questions:
    """What is asked."""
    client = ollama.Client(host=sys.argv[1], timeout=120)

    def chat(model: str) -> tuple[Any, str]:
        told = client.chat(model, [{"role": "user", "content": "Who are you?"}], options=GREEDY)
        return told.model_dump(exclude_none=True), told.message.content or ""

    def chat_stream(model: str) -> tuple[Any, str]:
        asked = [{"role": "user", "content": "Who are you?"}]
        parts = [one.model_dump(exclude_none=True) for one in client.chat(model, asked, options=GREEDY, stream=True)]
        assert parts[-1]["done"]
        return [parts[0], parts[-1]], "".join(one["message"]["content"] for one in parts)

    def generate_stream(model: str) -> tuple[Any, str]:
        parts = [
            one.model_dump(exclude_none=True)
            for one in client.generate(model, "Who are you?", options=GREEDY, stream=True)
        ]
        assert parts[-1]["done"]
        return [parts[0], parts[-1]], "".join(one["response"] for one in parts)

    def listed() -> tuple[Any, str]:
        told = client.list().model_dump(exclude_none=True)
        return told, ",".join(sorted(one["model"] for one in told["models"]))

    def unknown() -> tuple[Any, str]:
        try:
            client.chat("nope", [])
        except ollama.ResponseError as error:
            return error.status_code, error.error
        raise AssertionError("an unknown model answers")

    return {
        "chat": lambda: chat("tiny"),
        "chat as an adapter": lambda: chat("alpha"),
        "chat, streamed": lambda: chat_stream("tiny"),
        "chat as an adapter, streamed": lambda: chat_stream("alpha:latest"),
        "generate, streamed": lambda: generate_stream("tiny"),
        "list": listed,
        "unknown": unknown,
    }


if __name__ == "__main__":
    ask_all_along(questions)
