"""The official Python client of Anthropic's API."""

from __future__ import annotations

from typing import Any

import anthropic
from asking import Stream, answer
from questions import TOKENS, said


def client(url: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)


def plain(answered: Any) -> Any:
    return answered.model_dump(mode="json", exclude_none=True)


def stream(url: str, model: str, question: str) -> Stream:
    """By the way that its documentation begins with."""
    with client(url).messages.stream(model=model, max_tokens=TOKENS, messages=said(question)) as parts:
        yield from parts.text_stream
        return parts.get_final_message().stop_reason


def events(url: str, model: str, question: str) -> Stream:
    reason = None
    for event in client(url).messages.create(model=model, max_tokens=TOKENS, messages=said(question), stream=True):
        if event.type == "content_block_delta":
            yield event.delta.text
        if event.type == "message_delta":
            reason = event.delta.stop_reason
    return reason


def chat(url: str, model: str, question: str) -> Any:
    return plain(client(url).messages.create(model=model, max_tokens=TOKENS, messages=said(question)))


def create(url: str, **body: Any) -> Any:
    return plain(client(url).messages.create(**body))


def final(url: str, **body: Any) -> Any:
    """The message that it puts together of a stream, and the types of events that it saw on the way."""
    with client(url).messages.stream(**body) as parts:
        types = [part.type for part in parts]
        return {"message": plain(parts.get_final_message()), "types": types}


def count(url: str, **body: Any) -> Any:
    return client(url).messages.count_tokens(**body).input_tokens


def beta(url: str, **body: Any) -> Any:
    """By the part of the client that asks at another address, with headers of its own."""
    asked = client(url).beta.messages
    return {
        "message": plain(asked.create(betas=["interleaved-thinking-2025-05-14"], **body)),
        "tokens": asked.count_tokens(**{key: value for key, value in body.items() if key != "max_tokens"}).input_tokens,
    }


def tools(url: str, result: str, streamed: bool, **body: Any) -> Any:
    """What it calls, and what it says to the results; its own message goes back as it came."""
    asked = client(url).messages

    def ask() -> Any:
        if not streamed:
            return asked.create(**body)
        with asked.stream(**body) as parts:
            return parts.get_final_message()

    first = ask()
    calls = [block for block in first.content if block.type == "tool_use"]
    results = [{"type": "tool_result", "tool_use_id": call.id, "content": result} for call in calls]
    said_so_far = [{"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
    body["messages"] = [*body["messages"], *said_so_far]
    return {"first": plain(first), "then": plain(ask())}


answer(
    {"chat": chat, "create": create, "final": final, "count": count, "beta": beta, "tools": tools},
    {"stream": stream, "events": events},
)
