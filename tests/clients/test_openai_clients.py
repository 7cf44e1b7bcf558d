"""Clients that were written for OpenAI's API, unmodified, in front of each engine and during migrations between them:
the same fields, and the same texts."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
from chain_model import CALLS, SAID, THOUGHT
from client_programs import Client, Clients, shape
from orch_command import wait_until, with_environments
from served import ALPHA, Served
from stand_in_orch import OnStandIn

pytestmark = pytest.mark.clients

OFFICIAL = ("python_openai", "npm_openai")
# They tell what a model thought.
THOUGHTFUL = ("python_litellm_openai", "python_pydantic_ai", "npm_ai")
CALLING = (*OFFICIAL, "python_langchain_openai", *THOUGHTFUL, "python_llm_openai")
CLIENTS = (*CALLING, "python_instructor")
ENGINES = (
    pytest.param("llamacpp", marks=pytest.mark.llamacpp),
    pytest.param("stand-in", marks=pytest.mark.llamacpp),
    pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.long]),
    # With the model that has an adapter, and no tools.
    pytest.param("vllm-tiny", marks=[pytest.mark.vllm, pytest.mark.long]),
    pytest.param("ollama", marks=pytest.mark.ollama),
)
WHO = {"question": "Who are you?"}
WEATHER = {"question": "How is the weather?"}
# What OpenAI documents of an answer; engines add what they like.
COMPLETION: dict[str, Any] = {
    "id": "str",
    "object": "str",
    "created": "int",
    "model": "str",
    "choices": [{"index": "int", "finish_reason": "str", "message": {"role": "str", "content": "str"}}],
    "usage": {"prompt_tokens": "int", "completion_tokens": "int", "total_tokens": "int"},
}

every = pytest.mark.parametrize("client", CLIENTS)
official = pytest.mark.parametrize("client", OFFICIAL)
calling = pytest.mark.parametrize("client", CALLING)
thoughtful = pytest.mark.parametrize("client", THOUGHTFUL)


def documented(told: Any, wanted: Any) -> Any:
    """Of a shape what is wanted of it."""
    if isinstance(wanted, dict) and isinstance(told, dict):
        return {key: documented(told.get(key), inner) for key, inner in wanted.items()}
    return [documented(told[0], wanted[0])] if isinstance(wanted, list) and told else told


@functools.cache
def counted(served: Served, model: str) -> list[int]:
    """The tokens of a question and of its answer, as the engine tells whoever asks."""
    usage = served.orch.chat(model, WHO["question"]).json()["usage"]
    return [usage["prompt_tokens"], usage["completion_tokens"]]


def is_whole(served: Served, told: dict[str, Any], model: str, said: str) -> None:
    """What is told of an answer is all of it, as the engine says it."""
    if "whole" in told:
        assert documented(shape(told["whole"]), COMPLETION) == COMPLETION
    tokens = counted(served, model)
    # Blanks where an engine's parser parts answer and thoughts are its own.
    found = {**without_its_own(told), "content": told["content"].strip()}
    assert found == {"model": model, "content": said, "finish": "stop", "tokens": tokens}


@every
def test_chat(clients: Clients, served: Served, client: str) -> None:
    told = clients[client].ask("chat", served.url, model=served.model, **WHO).good()
    is_whole(served, told, served.model, served.answer)


@every
def test_stream(clients: Clients, served: Served, client: str) -> None:
    told = clients[client].ask("stream", served.url, model=served.model, **WHO).good()
    assert told["text"].strip() == served.answer
    # What comes in one step of a busy vLLM is one part.
    assert told["parts"] > served.tiny
    if client in OFFICIAL:
        assert told["rest"] == "stop"
    elif client != "python_instructor":
        is_whole(served, told["rest"], served.model, served.answer)


@official
def test_what_its_own_helper_makes_of_a_stream(clients: Clients, served: Served, client: str) -> None:
    told = clients[client].ask("final", served.url, model=served.model, **WHO).good()
    is_whole(served, told, served.model, served.answer)


@every
def test_an_adapter_answers_as_itself(clients: Clients, served: Served, client: str) -> None:
    if not served.tiny:
        pytest.skip("vLLM has the other model here")
    told = clients[client].ask("chat", served.url, model="alpha", **WHO).good()
    is_whole(served, told, "alpha", ALPHA)


@every
def test_schema(clients: Clients, served: Served, client: str) -> None:
    if not served.blanks_end:
        pytest.skip("this model fills in blanks for ever on vLLM, and the other one does not")
    told = clients[client].ask("schema", served.url, model=served.model, **WEATHER).good()
    assert told in ({"weather": "sunny"}, {"weather": "rainy"})


@calling
@pytest.mark.parametrize("streamed", [False, True])
def test_tools_are_called_and_their_results_are_read(
    clients: Clients, capable: Served, client: str, streamed: bool
) -> None:
    asked = {"model": "chain", "result": "sunny", "streamed": streamed, **WEATHER}
    told = clients[client].ask("tools", capable.url, **asked).good()
    assert [(name, given) for name, given in told["calls"]] == [*CALLS]
    assert told["then"].strip() == SAID


@calling
def test_tools_to_a_model_that_takes_none_are_an_error(clients: Clients, served: Served, client: str) -> None:
    if not served.tiny:
        pytest.skip("vLLM has the model that takes them")
    asked = {"model": "tiny", "result": "sunny", "streamed": False, **WEATHER}
    told = clients[client].ask("tools", served.url, **asked).bad()
    assert (told["status"], "tool" in told["message"]) == (400, True)


@pytest.mark.parametrize("client", ["python_instructor", "python_pydantic_ai"])
def test_a_class_by_a_tool_that_has_to_be_called(clients: Clients, served: Served, client: str) -> None:
    """What they do where nobody says how; Ollama has no such thing."""
    if served.orch.engine == "vllm":
        pytest.skip("vLLM's grammar for it lets no tags through, and what its model says without them has no end")
    name, given = CALLS[0]
    # The model would go on calling.
    asked = {"model": "chain" if served.chain else "tiny", "name": name, "stop": "\n<tool_call>\n", **WEATHER}
    told = clients[client].ask("by_tool", served.url, **asked)
    if served.orch.engine == "ollama":
        assert "`tool_choice`: the engine of this model leaves that to it" in told.bad()["message"]
    else:
        assert told.good() == given


@thoughtful
def test_thinking(clients: Clients, capable: Served, client: str) -> None:
    told = clients[client].ask("thinking", capable.url, model="chain", **WEATHER).good()
    # Blanks around it are as the engine's own parser leaves them.
    assert (told["thinking"].strip(), told["content"].strip()) == (THOUGHT.strip(), SAID)


@thoughtful
def test_thinking_in_a_stream(clients: Clients, capable: Served, client: str) -> None:
    told = clients[client].ask("thinking_stream", capable.url, model="chain", **WEATHER).good()
    assert (told["rest"].strip(), told["text"].strip()) == (THOUGHT.strip(), SAID)


@every
@pytest.mark.parametrize("verb", ["chat", "stream"])
def test_an_unknown_model_is_an_error(clients: Clients, served: Served, client: str, verb: str) -> None:
    told = clients[client].ask(verb, served.url, model="nope", **WHO).bad()
    assert "The model `nope` does not exist. Valid names: " in told["message"]
    assert told["status"] == 404


@every
def test_a_client_that_leaves_takes_its_request_with_it(clients: Clients, served: Served, client: str) -> None:
    before = served.status()["totals"]["errors"]
    assert clients[client].ask("leave:stream", served.url, model=served.model, **WHO).good() == "left"
    wait_until(lambda: served.in_flight() == 0, 10, "the end of what was asked")
    assert served.status()["totals"]["errors"] == before


@official
def test_lists(clients: Clients, served: Served, client: str) -> None:
    listed = clients[client].ask("list", served.url).good()
    assert {name if ":" in name else f"{name}:latest" for name in listed} == {*served.names}


@pytest.mark.parametrize(
    "engines",
    [
        pytest.param(("llamacpp", "ollama"), marks=pytest.mark.long, id="there and back"),
        pytest.param(
            ("vllm", "ollama", "llamacpp", "vllm", "llamacpp", "ollama"),
            marks=[pytest.mark.vllm, pytest.mark.long],
            id="each pair",
        ),
    ],
)
def test_all_of_them_go_on_through_migrations(
    clients: Clients, served: Served, environments: Any, engines: tuple[str, ...]
) -> None:
    """They ask over and over, each of them each engine, and what they make of it is what it was before."""
    if not isinstance(served.orch, OnStandIn):
        pytest.skip("it begins on the stand-in for Ollama")
    if "vllm" in engines:
        with_environments(served.orch, environments)
    errors = served.status()["totals"]["errors"]
    before: dict[str, Any] = {}
    moves: list[str] = []
    # How many moves there had been when the last whole round of each client began.
    asked = dict.fromkeys(CLIENTS, -1)
    over = Event()

    def go_on(client: str) -> None:
        while not over.wait(0.5):
            begun = len(moves)
            told = round_of(clients[client], served.url)
            assert told == before.setdefault(client, told)
            asked[client] = begun

    with ThreadPoolExecutor(len(CLIENTS)) as pool:
        going = [pool.submit(go_on, client) for client in CLIENTS]

        def all_have_asked() -> bool:
            return min(asked.values()) == len(moves) or any(one.done() for one in going)

        try:
            wait_until(all_have_asked, 120, "a round of each client")
            for engine in engines:
                served.orch.run("migrate", "--to", engine)
                moves.append(engine)
                wait_until(all_have_asked, 120, "a round of each client")
        finally:
            over.set()
        for one in going:
            one.result()
    # A client that tries again does not hide it.
    assert served.status()["totals"]["errors"] == errors


def round_of(client: Client, url: str) -> list[Any]:
    """What a client makes of the questions of one round, without what is another one each time."""
    told, streamed = (client.ask(verb, url, model="tiny", **WHO).good() for verb in ("chat", "stream"))
    unknown = client.ask("chat", url, model="nope", **WHO).bad()
    rest = streamed["rest"]
    return [without_its_own(told), streamed["text"], without_its_own(rest), unknown["status"], unknown["message"]]


def without_its_own(told: Any) -> Any:
    """An answer but for the object of the engine's."""
    return {name: value for name, value in told.items() if name != "whole"} if isinstance(told, dict) else told
