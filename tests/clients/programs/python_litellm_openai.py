"""LiteLLM's SDK, as `openai`."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import litellm
from asking import Stream, answer
from completions import called, results, told
from questions import TOKENS, TOOLS, Weather, said

litellm.suppress_debug_info = True


def completion(url: str, model: str, messages: Any, **more: Any) -> Any:
    return litellm.completion(
        model=f"openai/{model}",
        api_base=f"{url}/v1",
        api_key="none",
        messages=messages,
        temperature=0,
        max_tokens=TOKENS,
        max_retries=0,
        **more,
    )


def streamed_whole(url: str, model: str, messages: Any, **more: Any) -> Stream:
    parts = []
    asked = completion(url, model, messages, stream=True, stream_options={"include_usage": True}, **more)
    # It keeps a stream that nobody has to the end, so who leaves has to say so.
    with closing(asked):
        for part in asked:
            for choice in part.choices:
                if choice.delta.content:
                    yield choice.delta.content
            parts.append(part)
    return litellm.stream_chunk_builder(parts)


def stream(url: str, model: str, question: str) -> Stream:
    return told((yield from streamed_whole(url, model, said(question))))


def schema(url: str, model: str, question: str) -> Any:
    text = completion(url, model, said(question), response_format=Weather).choices[0].message.content
    return Weather.model_validate_json(text).model_dump()


def tools(url: str, model: str, question: str, result: str, streamed: bool) -> Any:
    def ask(*more: Any) -> Any:
        messages = [*said(question), *more]
        if not streamed:
            return completion(url, model, messages, tools=TOOLS).choices[0].message
        parts = list(completion(url, model, messages, tools=TOOLS, stream=True))
        return litellm.stream_chunk_builder(parts).choices[0].message

    first = ask()
    return {"calls": called(first), "then": ask(first, *results(first, result)).content}


def thinking(url: str, model: str, question: str) -> Any:
    message = completion(url, model, said(question)).choices[0].message
    return {"thinking": message.reasoning_content, "content": message.content}


def thinking_stream(url: str, model: str, question: str) -> Stream:
    whole = yield from streamed_whole(url, model, said(question))
    return whole.choices[0].message.reasoning_content


answer(
    {
        "chat": lambda url, model, question: told(completion(url, model, said(question))),
        "schema": schema,
        "tools": tools,
        "thinking": thinking,
    },
    {"stream": stream, "thinking_stream": thinking_stream},
)
