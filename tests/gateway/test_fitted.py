"""What the request says counts before what a profile fills in, also where a server is told it in other words."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from openai_engine import CARD, ROUTE, Counting

from orchestrator.core.model_card import ModelCard
from orchestrator.core.routes import LLAMA_SERVER, OLLAMA, OPENAI, VLLM
from orchestrator.gateway.dialects.base import Question
from orchestrator.gateway.dialects.openai import OpenAI
from orchestrator.gateway.dialects.openai.asked import CHAT, COMPLETIONS, RESPONSES
from orchestrator.gateway.refusals import Refusal

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
FILLED_IN = {"temperature": 0.6, "repeat_penalty": 1.5, "max_tokens": 5}


def sent(server: str, card: ModelCard = CARD, path: str = CHAT, **more: Any) -> dict[str, Any]:
    """What an engine is sent of a question; of two fields with one name the last one counts."""
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "."}]}
    asked = {RESPONSES: {"input": "."}, COMPLETIONS: {"prompt": "twelve chars"}}.get(path, asked)
    body = json.dumps({"model": "tiny", **asked, **more}).encode()
    engine = Counting(replace(ROUTE, speaks=(OPENAI, server), defaults=FILLED_IN, card=card))
    dialect = OpenAI()
    question = asyncio.run(dialect.question(dialect.parse(path, body), path, body, engine))
    assert isinstance(question, Question)
    found: dict[str, Any] = json.loads(question.body)
    return found


@pytest.mark.parametrize(
    ("server", "said", "wanted"),
    [
        (LLAMA_SERVER, {"repetition_penalty": 1.1}, {"repeat_penalty": 1.1}),
        (LLAMA_SERVER, {"max_tokens": -1}, {"max_tokens": -1}),
        (OLLAMA, {"top_k": 1}, {"temperature": 0.0}),
        (OLLAMA, {"max_completion_tokens": 3}, {"max_tokens": 3}),
        (VLLM, {"n": 2, "temperature": 0}, {"temperature": 1.0, "top_k": 1}),
        (VLLM, {"max_tokens": 9999}, {"max_tokens": None}),
    ],
)
def test_what_is_said_counts(server: str, said: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert wanted.items() <= sent(server, **said).items()


@pytest.mark.parametrize("server", [LLAMA_SERVER, OLLAMA, VLLM])
@pytest.mark.parametrize("said", [{}, {"temperature": None, "max_tokens": None}])
def test_what_nobody_says_is_filled_in(server: str, said: dict[str, Any]) -> None:
    assert sent(server, **said).items() >= FILLED_IN.items()


@pytest.mark.parametrize(
    ("said", "limit"),
    [
        ({}, 5),
        ({"max_tokens": None}, 5),
        ({"max_tokens": -1}, 500),
        ({"max_tokens": 512}, 500),
        ({"max_tokens": 505}, 500),
        ({"max_tokens": 499}, 499),
        ({"max_tokens": 16}, 16),
        ({"prompt": ["twelve chars", "a"], "max_tokens": -1}, 500),
        ({"prompt": [1, 2, 3], "max_tokens": -1}, 509),
        ({"prompt": [[1], [1, 2]], "max_tokens": 9999}, 510),
    ],
)
def test_a_completion_on_vllm_is_as_long_as_there_is_room_for(said: dict[str, Any], limit: int) -> None:
    """It takes no limit, and null, for 16."""
    assert sent(VLLM, path=COMPLETIONS, **said)["max_tokens"] == limit


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
@pytest.mark.parametrize("server", [LLAMA_SERVER, VLLM])
def test_tools_that_a_template_has_no_place_for_are_refused(server: str, path: str) -> None:
    """Ollama refuses them itself."""
    for more in ({}, {"tool_choice": "auto"}, {"tool_choice": "required"}):
        with pytest.raises(Refusal) as raised:
            sent(server, path=path, tools=TOOLS, **more)
        assert (raised.value.status, raised.value.param) == (400, "tools")
        assert sent(server, CARD.model_copy({"takes_tools": True}), path, tools=TOOLS, **more)["tools"] == TOOLS
    assert sent(server, path=path, tools=TOOLS, tool_choice="none")["tools"] == TOOLS
