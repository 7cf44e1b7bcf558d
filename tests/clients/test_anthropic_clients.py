"""The official clients of Anthropic's API, unmodified, in front of each engine: the same fields, and the same texts."""

from __future__ import annotations

from typing import Any

import pytest
from chain_model import CALLS, SAID, THOUGHT
from client_programs import Clients, shape
from served import ALPHA, Served

pytestmark = pytest.mark.clients

ENGINES = (
    pytest.param("llamacpp", marks=pytest.mark.llamacpp),
    pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.long]),
    # With the model that has an adapter, and no tools.
    pytest.param("vllm-tiny", marks=[pytest.mark.vllm, pytest.mark.long]),
)
WHO = {"max_tokens": 60, "messages": [{"role": "user", "content": "Who are you?"}]}
WEATHER: dict[str, Any] = {
    "model": "chain",
    "max_tokens": 200,
    "messages": [{"role": "user", "content": "How is the weather?"}],
}
TOOLS = [{"name": name, "description": "d", "input_schema": {"type": "object"}} for name, _ in CALLS]
COUNTS = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens")
TEXT = {"type": "str", "text": "str"}
MESSAGE = {
    "id": "str",
    "type": "str",
    "role": "str",
    "model": "str",
    "content": [TEXT],
    "stop_reason": "str",
    "usage": dict.fromkeys(COUNTS, "int"),
}
# What the SDK for JavaScript tells of what is null.
NULL = {"stop_sequence": "NoneType"}
EVENTS = ("message_start", "ping", "content_block_start", "content_block_delta", "content_block_stop")
LAST = ("message_delta", "message_stop")

every = pytest.mark.parametrize("client", ["python_anthropic", "npm_anthropic"])


def plain(message: dict[str, Any]) -> dict[str, Any]:
    """The shape of a message, without what is null."""
    return {name: kind for name, kind in shape(message).items() if kind != "NoneType"}


def thought_and_said(message: dict[str, Any]) -> tuple[str, str]:
    thought, said = message["content"]
    assert (thought["type"], said["type"], bool(thought["signature"])) == ("thinking", "text", True)
    return thought["thinking"], said["text"]


@every
def test_create(clients: Clients, served: Served, client: str) -> None:
    ask = clients[client].ask
    off = {"thinking": {"type": "disabled"}}
    told = ask("create", served.url, model=served.model, **WHO, **off).good()
    assert plain(told) == MESSAGE
    assert (told["content"][0]["text"], told["stop_reason"], told["model"]) == (served.answer, "end_turn", served.model)
    counted = ask("count", served.url, model=served.model, messages=WHO["messages"], **off).good()
    assert told["usage"]["input_tokens"] == counted
    final = ask("final", served.url, model=served.model, **WHO, **off).good()
    assert final["message"]["content"][0]["text"] == served.answer
    assert final["message"]["usage"] == told["usage"]
    assert plain(final["message"]) == MESSAGE


@every
def test_adapters_answer_as_themselves(clients: Clients, served: Served, client: str) -> None:
    if not served.tiny:
        pytest.skip("vLLM has the other model here")
    for model, said in (("alpha", ALPHA), ("tiny", served.answer), ("alpha", ALPHA)):
        told = clients[client].ask("create", served.url, model=model, **WHO).good()
        assert (told["content"][0]["text"], told["model"]) == (said, model)
        final = clients[client].ask("final", served.url, model=model, **WHO).good()
        assert (final["message"]["content"][0]["text"], final["message"]["model"]) == (said, model)


@every
def test_an_answer_ends_at_a_sequence_and_says_which(clients: Clients, served: Served, client: str) -> None:
    words = served.answer.split(" ")
    asked = {**WHO, "model": served.model, "stop_sequences": ["never", f"{words[2]} {words[3]}"]}
    asked["thinking"] = {"type": "disabled"}
    told = clients[client].ask("create", served.url, **asked).good()
    final = clients[client].ask("final", served.url, **asked).good()["message"]
    for message in (told, final):
        assert message["content"][0]["text"] == " ".join(words[:2]) + " "
        assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", asked["stop_sequences"][1])
        assert 0 < message["usage"]["output_tokens"] < 20


@every
def test_thinking(clients: Clients, capable: Served, client: str) -> None:
    for thinking in ({"type": "adaptive"}, {"type": "enabled", "budget_tokens": 1024}):
        told = clients[client].ask("create", capable.url, **WEATHER, thinking=thinking).good()
        assert thought_and_said(told) == (THOUGHT.strip(), SAID)
        final = clients[client].ask("final", capable.url, **WEATHER, thinking=thinking).good()
        assert thought_and_said(final["message"]) == (THOUGHT.strip(), SAID)
        assert {*final["types"]} >= {*EVENTS[2:], *LAST}
    off = clients[client].ask("create", capable.url, **WEATHER, thinking={"type": "disabled"}).good()
    assert [block["type"] for block in off["content"]] == ["text"]


@every
@pytest.mark.parametrize("streamed", [False, True])
def test_tools_are_called_and_their_results_are_read(
    clients: Clients, capable: Served, client: str, streamed: bool
) -> None:
    told = clients[client].ask("tools", capable.url, result="sunny", streamed=streamed, **WEATHER, tools=TOOLS).good()
    calls = told["first"]["content"]
    assert [(call["type"], call["name"], call["input"]) for call in calls] == [("tool_use", *one) for one in CALLS]
    assert len({call["id"] for call in calls}) == len(CALLS)
    assert told["first"]["stop_reason"] == "tool_use"
    assert told["then"]["content"][-1] == {**told["then"]["content"][-1], "type": "text", "text": SAID}
    assert told["then"]["stop_reason"] == "end_turn"
    assert told["then"]["usage"]["input_tokens"] > told["first"]["usage"]["input_tokens"]


@every
def test_one_tool_at_a_time(clients: Clients, capable: Served, client: str) -> None:
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    for verb in ("create", "final"):
        told = clients[client].ask(verb, capable.url, **WEATHER, tools=TOOLS, tool_choice=choice).good()
        assert [block["name"] for block in told.get("message", told)["content"]] == [CALLS[0][0]]
    none = clients[client].ask("create", capable.url, **WEATHER, tools=TOOLS, tool_choice={"type": "none"}).good()
    assert none["content"][-1]["text"] == SAID


@every
def test_what_is_beta(clients: Clients, capable: Served, client: str) -> None:
    told = clients[client].ask("beta", capable.url, **WEATHER).good()
    assert told["message"]["content"][-1]["text"] == SAID
    assert told["tokens"] == told["message"]["usage"]["input_tokens"]


@every
def test_errors(clients: Clients, served: Served, client: str) -> None:
    def wrong(verb: str = "create", **body: Any) -> tuple[int, str]:
        told = clients[client].ask(verb, served.url, **{**WHO, "model": served.model, **body}).bad()
        return told["status"], told["message"]

    status, message = wrong(model="nope")
    assert (status, "not_found_error" in message, "`nope` does not exist" in message) == (404, True, True)
    picture = {"type": "base64", "media_type": "image/png", "data": "aGk="}
    image = [{"role": "user", "content": [{"type": "image", "source": picture}]}]
    for verb in ("create", "final"):
        status, message = wrong(verb, messages=image)
        assert (status, "invalid_request_error" in message, "images are not supported" in message) == (400, True, True)
        status, message = wrong(verb, messages=[{"role": "user", "content": "word " * 1200}])
        assert status == 400
        assert "prompt is too long: " in message
        assert "tokens > 511 maximum" in message
