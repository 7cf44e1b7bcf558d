"""The official Python client of OpenAI's API."""

from __future__ import annotations

from typing import Any

import openai
from asking import Stream, answer
from questions import TOKENS, said


def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def stream(url: str, model: str, question: str) -> Stream:
    reason = None
    parts = client(url).chat.completions.create(
        model=model, messages=said(question), max_tokens=TOKENS, temperature=0, stream=True
    )
    for part in parts:
        for choice in part.choices:
            if choice.delta.content:
                yield choice.delta.content
            reason = choice.finish_reason or reason
    return reason


def completions(url: str, model: str, prompt: str) -> Stream:
    for part in client(url).completions.create(model=model, prompt=prompt, max_tokens=TOKENS, stream=True):
        for choice in part.choices:
            if choice.text:
                yield choice.text


def responses(url: str, model: str, question: str) -> Stream:
    for event in client(url).responses.create(model=model, input=question, stream=True):
        if event.type == "response.output_text.delta":
            yield event.delta


def chat(url: str, model: str, question: str) -> Any:
    answered = client(url).chat.completions.create(
        model=model, messages=said(question), max_tokens=TOKENS, temperature=0
    )
    return answered.model_dump(mode="json", exclude_none=True)


answer({"chat": chat}, {"stream": stream, "completions": completions, "responses": responses})
