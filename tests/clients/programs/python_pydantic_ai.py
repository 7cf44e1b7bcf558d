"""pydantic-ai, with its model for OpenAI's chats."""

from __future__ import annotations

from collections.abc import AsyncIterable
from functools import cache
from typing import Any

import openai
from asking import Stream, answer
from pydantic import create_model
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.messages import ToolCallPart
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from questions import TOKENS, Weather


@cache
def provider(url: str) -> OpenAIProvider:
    return OpenAIProvider(openai_client=openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0))


def agent(url: str, model: str, **more: Any) -> Agent[None, Any]:
    asked = OpenAIChatModel(model, provider=provider(url))
    return Agent(asked, model_settings={"temperature": 0, "max_tokens": TOKENS}, retries=0, **more)


def told(response: Any) -> Any:
    return {
        "model": response.model_name,
        "content": response.text,
        "finish": response.finish_reason,
        "tokens": [response.usage.input_tokens, response.usage.output_tokens],
    }


def stream(url: str, model: str, question: str) -> Stream:
    with agent(url, model).run_stream_sync(question) as run:
        yield from run.stream_text(delta=True, debounce_by=None)
        return told(run.response)


def tools(url: str, model: str, question: str, result: str, streamed: bool) -> Any:
    def get_weather(city: str, days: int) -> str:
        """The weather in a city"""
        return result

    def get_time(zone: str) -> str:
        """The time in a zone"""
        return result

    async def watch(_: object, events: AsyncIterable[Any]) -> None:
        async for _event in events:
            pass

    asked = agent(url, model, tools=[get_weather, get_time])
    run = asked.run_sync(question, event_stream_handler=watch if streamed else None)
    parts = [part for message in run.all_messages() for part in message.parts]
    calls = [[part.tool_name, part.args_as_dict()] for part in parts if isinstance(part, ToolCallPart)]
    return {"calls": calls, "then": run.output}


def thinking(url: str, model: str, question: str) -> Any:
    response = agent(url, model).run_sync(question).response
    return {"thinking": response.thinking, "content": response.text}


def thinking_stream(url: str, model: str, question: str) -> Stream:
    with agent(url, model).run_stream_sync(question) as run:
        yield from run.stream_text(delta=True, debounce_by=None)
        return run.response.thinking


def structured(url: str, model: str, question: str, wanted: Any, **settings: Any) -> Any:
    run = agent(url, model, output_type=wanted).run_sync(question, model_settings=settings)
    return run.output.model_dump()


def by_tool(url: str, model: str, question: str, name: str, stop: str) -> Any:
    """As it does it where it is not told how."""
    wanted = ToolOutput(create_model("Asked", city=(str, ...), days=(int, ...)), name=name)
    return structured(url, model, question, wanted, stop_sequences=[stop])


answer(
    {
        "chat": lambda url, model, question: told(agent(url, model).run_sync(question).response),
        "schema": lambda url, model, question: structured(url, model, question, NativeOutput(Weather)),
        "by_tool": by_tool,
        "tools": tools,
        "thinking": thinking,
    },
    {"stream": stream, "thinking_stream": thinking_stream},
)
