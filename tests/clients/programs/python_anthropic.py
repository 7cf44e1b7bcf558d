"""The official Python client of Anthropic's API."""

from __future__ import annotations

from typing import Any

import anthropic
from asking import Stream, answer
from questions import TOKENS, said


def client(url: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)


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
    answered = client(url).messages.create(model=model, max_tokens=TOKENS, messages=said(question))
    return answered.model_dump(mode="json", exclude_none=True)


answer({"chat": chat}, {"stream": stream, "events": events})
