"""A script as somebody writes one for OpenAI's API, with its official client. Of an answer it looks at what OpenAI
documents; engines add what they like.
"""

from __future__ import annotations

import sys
from typing import Any

import openai
from all_along import Questions, ask_all_along
from openai.types.chat import ChatCompletion
from questions import said

TOKENS = 60


def questions() -> Questions:
    """What is asked."""
    client = openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none", timeout=120, max_retries=0)

    def usage(told: Any) -> list[int]:
        assert told.prompt_tokens + told.completion_tokens == told.total_tokens
        return [told.prompt_tokens, told.completion_tokens, told.total_tokens]

    def create(model: str = "tiny", **more: Any) -> tuple[Any, str]:
        asked: dict[str, Any] = {"max_tokens": TOKENS, "temperature": 0, **more}
        answer: ChatCompletion = client.chat.completions.create(model=model, messages=said("Who are you?"), **asked)
        (choice,) = answer.choices
        assert choice.message.content is not None
        told = [answer.object, answer.model == model, choice.index, choice.finish_reason, choice.message.role]
        return [*told, answer.id, answer.created, usage(answer.usage)], choice.message.content

    def stream(model: str = "tiny", **more: Any) -> tuple[Any, str]:
        asked: dict[str, Any] = {"max_tokens": TOKENS, "temperature": 0, "stream": True, **more}
        parts = list(client.chat.completions.create(model=model, messages=said("Who are you?"), **asked))
        assert {part.model for part in parts} == {model}
        choices = [choice for part in parts for choice in part.choices]
        ends = [choice.finish_reason for choice in choices if choice.finish_reason]
        counted = [usage(part.usage) for part in parts[-1:] if "stream_options" in more]
        return [parts[0].object, ends, counted], "".join(choice.delta.content or "" for choice in choices)

    def refused(kind: type[openai.APIStatusError], **more: Any) -> tuple[Any, str]:
        try:
            create(**more)
        except kind as error:
            assert isinstance(error.body, dict)
            return sorted(error.body), f"{error.status_code} {error.code} {error.param}"
        raise AssertionError("it is answered")

    def models() -> tuple[Any, str]:
        listed = client.models.list().data
        return [[one.object, one.owned_by] for one in listed], ",".join(sorted(one.id for one in listed))

    return {
        "create": create,
        "create as an adapter": lambda: create("alpha"),
        "stream": stream,
        "stream as an adapter": lambda: stream("alpha"),
        "stream with figures": lambda: stream(stream_options={"include_usage": True}),
        "create without a limit": lambda: create(max_tokens=None),
        "create more than there is room for": lambda: create(max_tokens=9999),
        "create up to a word": lambda: create(stop=["test", ""]),
        "create with what is nothing": lambda: create(tools=[], stream_options={"include_usage": True}, seed=2**64),
        "a bad value": lambda: refused(openai.BadRequestError, temperature=9),
        "unknown": lambda: refused(openai.NotFoundError, model="nope"),
        "list": models,
    }


if __name__ == "__main__":
    ask_all_along(questions)
