"""The official Python client of OpenAI's API."""

from __future__ import annotations

from functools import cache
from typing import Any

import openai
from asking import Stream, answer
from completions import called, results, told
from questions import TOKENS, TOOLS, Weather, said


@cache
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def create(url: str, model: str, messages: Any, **more: Any) -> Any:
    return client(url).chat.completions.create(model=model, messages=messages, max_tokens=TOKENS, temperature=0, **more)


def stream(url: str, model: str, question: str) -> Stream:
    reason = None
    for part in create(url, model, said(question), stream=True):
        for choice in part.choices:
            if choice.delta.content:
                yield choice.delta.content
            reason = choice.finish_reason or reason
    return reason


def final(url: str, model: str, messages: Any, **more: Any) -> Any:
    """What its own helper makes of a stream."""
    with client(url).chat.completions.stream(
        model=model,
        messages=messages,
        max_tokens=TOKENS,
        temperature=0,
        stream_options={"include_usage": True},
        **more,
    ) as parts:
        return parts.get_final_completion()


def completions(url: str, model: str, prompt: str) -> Stream:
    for part in client(url).completions.create(model=model, prompt=prompt, max_tokens=TOKENS, stream=True):
        for choice in part.choices:
            if choice.text:
                yield choice.text


def responses(url: str, model: str, question: str) -> Stream:
    for event in client(url).responses.create(model=model, input=question, stream=True):
        if event.type == "response.output_text.delta":
            yield event.delta


def schema(url: str, model: str, question: str) -> Any:
    parsed = client(url).chat.completions.parse(
        model=model, messages=said(question), max_tokens=TOKENS, temperature=0, response_format=Weather
    )
    return parsed.choices[0].message.parsed.model_dump()


def tools(url: str, model: str, question: str, result: str, streamed: bool) -> Any:
    ask = final if streamed else create
    first = ask(url, model, said(question), tools=TOOLS).choices[0].message
    then = ask(url, model, [*said(question), first, *results(first, result)], tools=TOOLS)
    return {"calls": called(first), "then": then.choices[0].message.content}


answer(
    {
        "chat": lambda url, model, question: told(create(url, model, said(question))),
        "final": lambda url, model, question: told(final(url, model, said(question))),
        "schema": schema,
        "tools": tools,
        "list": lambda url: sorted(one.id for one in client(url).models.list()),
    },
    {"stream": stream, "completions": completions, "responses": responses},
)
