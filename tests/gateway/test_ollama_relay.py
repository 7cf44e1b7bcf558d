"""Ollama's API through a gateway process, in front of an engine that breaks off, fails, or is another one."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from gateway_process import Gateway
from openai_engine import CARD
from upstream import Upstream

from orchestrator.core.routes import LLAMA_SERVER, OPENAI

HELLO = {"model": "TINY:latest", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
def ask(gateway: Gateway, engine: Callable[..., Upstream]) -> Callable[..., tuple[int, str, list[Any]]]:
    """Asks for a chat of an engine that is told by the route's patch how to behave."""
    upstream = engine("tiny-1")

    def asked(wants_stream: bool, **patch: object) -> tuple[int, str, list[Any]]:
        route = gateway.route("tiny", upstream, speaks=(OPENAI, LLAMA_SERVER), patch=patch, card=CARD)
        gateway.admin.set_routes("one", [route])
        status, head, body = gateway.ask("/api/chat", {**HELLO, "stream": wants_stream})
        return status, head["content-type"], [json.loads(line) for line in body.splitlines()]

    return asked


def test_a_stream_is_told_in_lines(ask: Callable[..., Any]) -> None:
    status, kind, lines = ask(True)
    assert (status, kind) == (200, "application/x-ndjson")
    assert [line["done"] for line in lines] == [True]
    assert lines[0]["model"] == "TINY:latest"


@pytest.mark.parametrize("place", ["middle", "inside"])
def test_a_stream_that_breaks_off_ends_with_an_error(ask: Callable[..., Any], place: str) -> None:
    status, _, lines = ask(True, die=place)
    assert status == 200
    assert lines[-1].keys() == {"error"}


def test_an_engine_s_error_is_told(ask: Callable[..., Any]) -> None:
    for stream in (False, True):
        status, kind, lines = ask(stream, status=422, stream=False)
        assert (status, kind) == (400, "application/json; charset=utf-8")
        assert [line.keys() for line in lines] == [{"error"}]


def test_an_engine_that_is_lost_is_told(ask: Callable[..., Any]) -> None:
    status, kind, lines = ask(False, die="head")
    assert (status, kind) == (503, "application/json; charset=utf-8")
    assert [line.keys() for line in lines] == [{"error"}]
