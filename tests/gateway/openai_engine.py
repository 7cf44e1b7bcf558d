"""An engine that speaks OpenAI's API, and one that a translator asks before that: both say what a test has them say."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.core.model_card import ModelCard
from orchestrator.core.routes import LLAMA_SERVER, OPENAI, Backend, Route

CARD = ModelCard(digest="0" * 64, context=512, template="{{ messages }}")
ROUTE = Route("tiny", "one", (Backend("tiny-1", "http://127.0.0.1:1"),), (OPENAI, LLAMA_SERVER), card=CARD)


@dataclass
class Counting:
    """An engine whose tokens are the characters of a text; a chat's prompt is the contents of its messages, with two
    characters around each."""

    route: Route = ROUTE
    asked: list[tuple[str, Any]] = field(default_factory=list)

    @property
    def card(self) -> ModelCard | None:
        return self.route.card

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        said = json.loads(body)
        self.asked.append((path, said))
        text = said.get("content", said.get("prompt", ""))
        if "messages" in said:
            text = "".join(f"[{one['content']}]" for one in said["messages"])
        if path == "/tokenize":
            return 200, json.dumps({"tokens": list(map(ord, text))}).encode()
        if path == "/apply-template":
            return 200, json.dumps({"prompt": text}).encode()
        if path == "/detokenize":
            text = "".join(map(chr, said["tokens"]))
            return 200, json.dumps({"content": text, "prompt": text}).encode()
        return 400, b'{"error": {"message": "--tool-call-parser"}}'


def counting(*speaks: str, **card: object) -> Counting:
    """One whose model has this on its card."""
    return Counting(replace(ROUTE, speaks=(OPENAI, *speaks), card=CARD.model_copy(card)))


def event(delta: object = None, **more: object) -> bytes:
    """An event of a chat's stream."""
    choice = {"index": 0, "delta": delta or {}, "finish_reason": None, **more}
    return b"data: " + json.dumps({"id": "x", "choices": [choice]}, ensure_ascii=False).encode() + b"\n\n"


def stream(*deltas: object, reason: str = "stop") -> bytes:
    """A whole stream with the figures at its end."""
    usage = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": len(deltas)}}
    last = [event(finish_reason=reason), b"data: " + json.dumps(usage).encode() + b"\n\n", b"data: [DONE]\n\n"]
    return b"".join([*map(event, deltas), *last])


def texts(*pieces: str) -> list[dict[str, str]]:
    """What is said, one by one."""
    return [{"content": piece} for piece in pieces]


def lines_of(parts: Iterable[bytes]) -> list[dict[str, Any]]:
    """Lines of an answer, without what is of the moment."""
    lines = [json.loads(line) for line in b"".join(parts).splitlines()]
    for line in lines:
        for name in ("created_at", "total_duration", "load_duration", "prompt_eval_duration", "eval_duration"):
            line.pop(name, None)
        for call in line.get("message", {}).get("tool_calls", []):
            call.pop("id")
    return lines
