"""instructor, around the official client of OpenAI's API."""

from __future__ import annotations

from functools import cache
from typing import Any

import instructor
import openai
from asking import Stream, answer
from completions import told
from instructor import Mode
from pydantic import create_model
from questions import TOKENS, Weather, said


@cache
def client(url: str, mode: Mode) -> instructor.Instructor:
    return instructor.from_openai(openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0), mode=mode)


def create(url: str, model: str, question: str, wanted: Any, mode: Mode = Mode.JSON_SCHEMA, **more: Any) -> Any:
    asked: dict[str, Any] = {"model": model, "messages": said(question), "temperature": 0, "max_tokens": TOKENS}
    return client(url, mode).chat.completions.create(response_model=wanted, max_retries=0, **asked, **more)


def stream(url: str, model: str, question: str) -> Stream:
    for part in create(url, model, question, None, stream=True):
        for choice in part.choices:
            if choice.delta.content:
                yield choice.delta.content


def by_tool(url: str, model: str, question: str, name: str, stop: str) -> Any:
    """As it does it where it is not told how."""
    wanted = create_model(name, city=(str, ...), days=(int, ...))
    return create(url, model, question, wanted, Mode.TOOLS, stop=[stop]).model_dump()


answer(
    {
        "chat": lambda url, model, question: told(create(url, model, question, None)),
        "schema": lambda url, model, question: create(url, model, question, Weather).model_dump(),
        "by_tool": by_tool,
    },
    {"stream": stream},
)
