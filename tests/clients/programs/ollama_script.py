"""A script as somebody writes one for Ollama, with its official client: it knows of no gateway, and of no migration.

It asks over and over until its input ends, then prints how often it asked what, each shape and each text that it was
answered with, and everything that failed.
"""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import ollama

THREADS = 3
GREEDY = {"temperature": 0, "num_predict": 40}


def shape(value: Any) -> Any:
    """The fields of an answer and their types, whatever is in them."""
    if isinstance(value, dict):
        return {key: shape(one) for key, one in value.items()}
    if isinstance(value, list):
        kinds = {json.dumps(shape(one), sort_keys=True) for one in value}
        return sorted(kinds)
    return type(value).__name__


def questions(client: ollama.Client) -> dict[str, Callable[[], tuple[Any, str]]]:
    """What is asked: each gives the answer as a whole, and the text in it."""

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


def main() -> None:
    over = threading.Event()
    asked: Counter[str] = Counter()
    shapes: dict[str, set[str]] = defaultdict(set)
    texts: dict[str, set[str]] = defaultdict(set)
    failed: list[str] = []

    def ask() -> None:
        client = ollama.Client(host=sys.argv[1], timeout=120)
        while not over.is_set():
            for what, question in questions(client).items():
                try:
                    answer, text = question()
                    shapes[what].add(json.dumps(shape(answer), sort_keys=True))
                    texts[what].add(text)
                except Exception as error:  # noqa: BLE001
                    failed.append(f"{what}: {type(error).__name__}: {error}")
                asked[what] += 1

    threads = [threading.Thread(target=ask) for _ in range(THREADS)]
    for one in threads:
        one.start()
    sys.stdin.read()
    over.set()
    for one in threads:
        one.join()
    told = {name: sorted(found) for name, found in texts.items()}
    counted = {name: sorted(found) for name, found in shapes.items()}
    sys.stdout.write(json.dumps({"asked": asked, "failed": failed, "texts": told, "shapes": counted}))


if __name__ == "__main__":
    main()
