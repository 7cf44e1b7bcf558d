"""`llm`, whose user has listed a model for an address of OpenAI's API."""

from __future__ import annotations

import json
from typing import Any

import llm
from asking import Stream, answer
from questions import TOKENS, Weather

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": TOKENS}


def asked(url: str, model: str) -> llm.Model:
    entry = {"model_id": f"orch-{model}", "model_name": model, "api_base": f"{url}/v1"}
    # Any JSON is YAML.
    listed = json.dumps([{**entry, "supports_schema": True, "supports_tools": True}])
    (llm.user_dir() / "extra-openai-models.yaml").write_text(listed)
    return llm.get_model(f"orch-{model}")


def told(response: llm.Response) -> Any:
    text, whole, usage = response.text(), response.response_json, response.usage()
    # What it puts together of a stream has no choices.
    choice = whole["choices"][0] if "choices" in whole else whole
    return {
        "model": whole["model"],
        "content": text,
        "finish": choice["finish_reason"],
        "tokens": [usage.input, usage.output],
    }


def stream(url: str, model: str, question: str) -> Stream:
    response = asked(url, model).prompt(question, stream=True, **GREEDY)
    yield from response
    return told(response)


def schema(url: str, model: str, question: str) -> Any:
    text = asked(url, model).prompt(question, schema=Weather, stream=False, **GREEDY).text()
    return Weather.model_validate_json(text).model_dump()


def tools(url: str, model: str, question: str, result: str, streamed: bool) -> Any:
    calls: list[Any] = []

    def get_weather(city: str, days: int) -> str:
        """The weather in a city"""
        calls.append(["get_weather", {"city": city, "days": days}])
        return result

    def get_time(zone: str) -> str:
        """The time in a zone"""
        calls.append(["get_time", {"zone": zone}])
        return result

    chain = asked(url, model).chain(question, tools=[get_weather, get_time], options=GREEDY, stream=streamed)
    return {"then": chain.text(), "calls": calls}


answer(
    {
        "chat": lambda url, model, question: told(asked(url, model).prompt(question, stream=False, **GREEDY)),
        "schema": schema,
        "tools": tools,
    },
    {"stream": stream},
)
