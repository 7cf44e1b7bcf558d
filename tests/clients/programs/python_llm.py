"""`llm` with its plugin llm-ollama."""

from __future__ import annotations

import os
from typing import Any

import llm
from asking import Stream, answer
from questions import GREEDY, SCHEMA


def asked(url: str, model: str) -> llm.Model:
    """It asks the address of its environment for what there is, and knows models by what that says of them."""
    os.environ["OLLAMA_HOST"] = url
    return llm.get_model(f"ollama/{model}")


def chat(url: str, model: str, question: str, headers: dict[str, str] | None = None) -> Any:
    os.environ["OLLAMA_HEADERS"] = ",".join(f"{name}={value}" for name, value in (headers or {}).items())
    response = asked(url, model).prompt(question, stream=False, **GREEDY)
    text = response.text()
    return {"content": text, "whole": response.response_json}


def stream(url: str, model: str, question: str) -> Stream:
    response = asked(url, model).prompt(question, stream=True, **GREEDY)
    yield from response
    return response.response_json


def tools(url: str, model: str, question: str, result: str) -> Any:
    calls: list[Any] = []

    def get_weather(city: str, days: int) -> str:
        """The weather in a city"""
        calls.append({"function": {"name": "get_weather", "arguments": {"city": city, "days": days}}})
        return result

    def get_time(zone: str) -> str:
        """The time in a zone"""
        calls.append({"function": {"name": "get_time", "arguments": {"zone": zone}}})
        return result

    chain = asked(url, model).chain(question, tools=[get_weather, get_time], options=GREEDY, stream=False)
    return {"then": chain.text(), "calls": calls}


def thinking(url: str, model: str, question: str, think: Any = True) -> Any:
    response = asked(url, model).prompt(question, stream=False, think=think, **GREEDY)
    content = response.text()
    return {"thinking": response.response_json["message"].get("thinking") or "", "content": content}


def models(url: str) -> Any:
    os.environ["OLLAMA_HOST"] = url
    return sorted(model.model_id for model in llm.get_models() if model.model_id.startswith("ollama/"))


answer(
    {
        "chat": chat,
        "schema": lambda url, model, question: (
            asked(url, model).prompt(question, schema=SCHEMA, stream=False, **GREEDY).text()
        ),
        "tools": tools,
        "thinking": thinking,
        "models": models,
    },
    {"stream": stream},
)
