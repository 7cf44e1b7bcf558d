"""Clients that were written for Ollama, unmodified, in front of each engine: the same fields, and the same texts.

What is expected is what they make of Ollama's own answers; on the stand-in bytes pass, elsewhere they are translated.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any

import pytest
from chain_model import CALLS, SAID, THOUGHT
from client_programs import Clients, shape
from orch_command import wait_until
from served import ALPHA, Served

pytestmark = pytest.mark.clients

CLIENTS = (
    *("python_ollama", "npm_ollama", "python_langchain", "python_litellm", "python_llm"),
    "python_open_webui",
)
OFFICIAL = ("python_ollama", "npm_ollama")
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
FIGURES = {"total_duration": "int", "load_duration": "int"} | {
    f"{what}_{figure}": "int" for what in ("prompt_eval", "eval") for figure in ("count", "duration")
}
# What each client makes of a whole chat, but for what the model thought.
WHOLE = {"model": "str", "created_at": "str", "done": "bool", "done_reason": "str", **FIGURES}
MESSAGE = {"role": "str", "content": "str"}
OF_LLM = {**MESSAGE, "thinking": "NoneType", "images": "NoneType", "tool_name": "NoneType", "tool_calls": "NoneType"}
USAGE = {"input_tokens": "int", "output_tokens": "int", "total_tokens": "int"}
CHATS: dict[str, Any] = {
    "python_ollama": {**WHOLE, "message": MESSAGE},
    "npm_ollama": {**WHOLE, "message": MESSAGE},
    "python_open_webui": {**WHOLE, "message": MESSAGE},
    "python_langchain": {
        "content": "str",
        "response_metadata": {**WHOLE, "logprobs": "NoneType", "model_name": "str", "model_provider": "str"},
        "usage_metadata": USAGE,
        "tool_calls": [],
    },
    "python_litellm": {
        "id": "str",
        "created": "int",
        "model": "str",
        "object": "str",
        "choices": [{"finish_reason": "str", "index": "int", "message": MESSAGE}],
        "usage": {"completion_tokens": "int", "prompt_tokens": "int", "total_tokens": "int"},
    },
    "python_llm": {"content": "str", "whole": {**WHOLE, "message": OF_LLM, "logprobs": "NoneType"}},
}
# What is listed of a model, by each of the two that show it whole.
DETAILS: dict[str, Any] = {
    "parent_model": "str",
    "format": "str",
    "family": "str",
    "families": ["str"],
    "parameter_size": "str",
    "quantization_level": "str",
}
LISTED = {"model": "str", "modified_at": "str", "digest": "str", "size": "int", "details": DETAILS}
LOADED = {
    "model": "str",
    "name": "str",
    "digest": "str",
    "size": "int",
    "details": DETAILS,
    "expires_at": "str",
    "size_vram": "int",
    "context_length": "int",
}

every = pytest.mark.parametrize("client", CLIENTS)
official = pytest.mark.parametrize("client", OFFICIAL)


def content(client: str, chat: Any) -> str:
    """What was said, of what a client made of a whole chat."""
    if client == "python_litellm":
        return str(chat["choices"][0]["message"]["content"])
    return str(chat["content"] if client in ("python_langchain", "python_llm") else chat["message"]["content"])


@every
def test_chat(clients: Clients, served: Served, client: str) -> None:
    asked = dict(WHO) if served.tiny else {**WHO, "think": False}
    verb = "chat" if served.tiny or client not in ("python_langchain", "python_litellm", "python_llm") else "thinking"
    told = clients[client].ask(verb, served.url, model=served.model, **asked).good()
    if verb == "thinking":
        assert told == {"content": served.answer, "thinking": ""}
    else:
        assert shape(told) == CHATS[client]
        assert content(client, told) == served.answer


@every
def test_stream(clients: Clients, served: Served, client: str) -> None:
    told = clients[client].ask("stream", served.url, model=served.model, **WHO).good()
    assert told["text"] == served.answer
    # What comes in one step of a busy vLLM is one part.
    assert told["parts"] > served.tiny
    if client in (*OFFICIAL, "python_open_webui"):
        assert shape(told["rest"]) == {**WHOLE, "message": MESSAGE}
        assert (told["rest"]["done"], told["rest"]["done_reason"]) == (True, "stop")


@pytest.mark.parametrize("client", [*OFFICIAL, "python_langchain"])
def test_generate(clients: Clients, served: Served, client: str) -> None:
    told = clients[client].ask("generate", served.url, model=served.model, prompt=WHO["question"]).good()
    assert told["response"] == served.answer
    if client in OFFICIAL:
        assert shape({**told, "thinking": ""}) == {**WHOLE, "response": "str", "thinking": "str", "context": ["int"]}


@official
def test_generate_stream(clients: Clients, served: Served, client: str) -> None:
    told = clients[client].ask("generate_stream", served.url, model=served.model, prompt=WHO["question"]).good()
    assert (told["text"], told["parts"] > served.tiny) == (served.answer, True)
    assert shape(told["rest"]) == {**WHOLE, "response": "str", "context": ["int"]}


@every
def test_an_adapter_answers_as_itself(clients: Clients, served: Served, client: str) -> None:
    if not served.tiny:
        pytest.skip("vLLM has the other model here")
    told = clients[client].ask("chat", served.url, model="alpha", **WHO).good()
    assert content(client, told) == ALPHA
    assert shape(told) == CHATS[client]
    assert "adapter-" not in str(told)


@every
def test_schema(clients: Clients, served: Served, client: str) -> None:
    told = clients[client].ask("schema", served.url, model=served.model, **WEATHER).good()
    if served.blanks_end:
        assert json.loads(told)["weather"] in ("sunny", "rainy")
    else:
        assert re.fullmatch(r'\{\s*("weather"\s*(:\s*("sunny"|"rainy")?\s*\}?)?)?', told)


@every
def test_tools_are_called_and_their_results_are_read(clients: Clients, capable: Served, client: str) -> None:
    told = clients[client].ask("tools", capable.url, model="chain", result="sunny", **WEATHER).good()
    calls = [call["function"] for call in told["calls"]]
    arguments = [json.loads(one) if isinstance(one := call["arguments"], str) else one for call in calls]
    assert [*zip([call["name"] for call in calls], arguments, strict=True)] == [*CALLS]
    assert told["then"] == SAID


@official
def test_tools_in_a_stream(clients: Clients, capable: Served, client: str) -> None:
    told = clients[client].ask("tools_stream", capable.url, model="chain", **WEATHER).good()
    assert told["text"] == ""
    assert [(call["function"]["name"], call["function"]["arguments"]) for call in told["rest"]] == [*CALLS]
    if client == "npm_ollama":
        assert shape(told["rest"][0]) == {
            "id": "str",
            "function": {"index": "int", "name": "str", "arguments": {"city": "str", "days": "int"}},
        }


@every
@pytest.mark.parametrize("think", [True, False])
def test_thinking(clients: Clients, capable: Served, client: str, think: bool) -> None:
    told = clients[client].ask("thinking", capable.url, model="chain", think=think, **WEATHER).good()
    # Blanks at its end are as the engine's own parser leaves them.
    assert (told["thinking"].strip(), told["content"]) == (THOUGHT.strip() if think else "", SAID)


@official
def test_thinking_in_a_stream(clients: Clients, capable: Served, client: str) -> None:
    told = clients[client].ask("thinking_stream", capable.url, model="chain", **WEATHER).good()
    assert (told["rest"].strip(), told["text"]) == (THOUGHT.strip(), SAID)


@pytest.mark.parametrize("client", [*OFFICIAL, "python_langchain", "python_litellm", "python_open_webui"])
@pytest.mark.parametrize(
    ("verb", "error"), [("tools", "does not support tools"), ("thinking", "does not support think")]
)
def test_what_a_model_cannot_do(clients: Clients, served: Served, client: str, verb: str, error: str) -> None:
    if not served.tiny:
        pytest.skip("vLLM has the model that can")
    told = clients[client].ask(verb, served.url, model="tiny", **WEATHER, **({"result": ""} if verb == "tools" else {}))
    assert error in told.bad()["message"]
    assert told.bad()["status"] == 400
    assert ":latest:latest" not in told.bad()["message"]


@pytest.mark.parametrize("client", [one for one in CLIENTS if one != "python_llm"])
def test_embeddings_are_an_error(clients: Clients, served: Served, client: str) -> None:
    told = clients[client].ask("embed", served.url, model=served.model, text="x").bad()
    assert "This server does not support embeddings" in told["message"]
    assert told["status"] == 501


@pytest.mark.parametrize("client", [one for one in CLIENTS if one != "python_llm"])
@pytest.mark.parametrize("verb", ["chat", "stream"])
def test_an_unknown_model_is_an_error(clients: Clients, served: Served, client: str, verb: str) -> None:
    # Open WebUI looks into its list before it chats, and asks for the tag.
    verb = "unknown" if (client, verb) == ("python_open_webui", "chat") else verb
    told = clients[client].ask(verb, served.url, model="nope", **WHO).bad()
    assert re.search("model 'nope(:latest)?' not found", told["message"])
    assert told["status"] == 404


@pytest.mark.parametrize("client", [*OFFICIAL, "python_litellm", "python_open_webui"])
def test_an_option_of_the_wrong_type_is_an_error(clients: Clients, served: Served, client: str) -> None:
    told = clients[client].ask("bad_option", served.url, model=served.model, **WHO).bad()
    assert re.search(r'option \\*"num_ctx\\*" must be of type integer', told["message"])
    assert told["status"] == 500


@every
def test_a_client_that_leaves_takes_its_request_with_it(clients: Clients, served: Served, client: str) -> None:
    before = served.status()["totals"]["errors"]
    assert clients[client].ask("leave:stream", served.url, model=served.model, **WHO).good() == "left"
    wait_until(lambda: served.in_flight() == 0, 10, "the end of what was asked")
    assert served.status()["totals"]["errors"] == before


@pytest.mark.parametrize(
    ("client", "verb"), [("python_ollama", "chat"), ("npm_ollama", "stream"), ("python_open_webui", "stream")]
)
def test_a_client_that_is_killed_takes_its_request_with_it(
    clients: Clients, served: Served, client: str, verb: str
) -> None:
    """Before the first byte, while the engine is at it: it stands still until nobody waits for it any more."""
    clients[client].ask(verb, served.url, model=served.model, **WHO).good()
    with served.stands_still():
        begun = served.requests()
        clients[client].begin(verb, served.url, model=served.model, **WHO)
        wait_until(lambda: served.requests() > begun and served.in_flight() > 0, 10, "the request")
        clients[client].close()
        wait_until(lambda: served.in_flight() == 0, 10, "the end of what was asked")
    told = clients[client].ask(verb, served.url, model=served.model, **WHO).good()
    assert served.answer in str(told)


@official
def test_lists(clients: Clients, served: Served, client: str) -> None:
    listed = clients[client].ask("list", served.url).good()["models"]
    assert sorted(model["model"] for model in listed) == served.names
    loaded = clients[client].ask("ps", served.url).good()["models"]
    assert {model["model"] for model in loaded} <= {*served.names}
    assert loaded
    if client == "python_ollama":
        assert [shape(model) for model in listed] == [LISTED] * len(listed)
        assert [shape(model) for model in loaded] == [LOADED] * len(loaded)


@official
def test_what_is_shown(clients: Clients, served: Served, client: str) -> None:
    told = clients[client].ask("show", served.url, model=served.model).good()
    assert {"modelfile", "template", "details", "parameters", "capabilities"} <= {*told}
    assert "completion" in told["capabilities"]
    if served.chain:
        chain = clients[client].ask("show", served.url, model="chain").good()
        assert {"completion", "tools", "thinking"} <= {*chain["capabilities"]}
    wrong = clients[client].ask("show", served.url, model="nope").bad()
    assert (wrong["status"], "model 'nope:latest' not found" in wrong["message"]) == (404, True)


@official
def test_models_are_pulled_that_are_there_and_are_not_deleted(clients: Clients, served: Served, client: str) -> None:
    lines = clients[client].ask("pull", served.url, model=served.model).good()
    assert [line["status"] for line in lines][-2:] == ["writing manifest", "success"]
    told = clients[client].ask("delete", served.url, model=served.model).bad()
    assert (told["status"], "`orch down`" in told["message"]) == (403, True)
    assert served.names == sorted(one["model"] for one in clients[client].ask("list", served.url).good()["models"])


def test_langchain_finds_the_model_before_it_asks(clients: Clients, served: Served) -> None:
    ask = clients["python_langchain"].ask
    assert ask("validated", served.url, model=served.model).good() == served.model
    assert "nope" in ask("validated", served.url, model="nope").bad()["message"]


def test_llm_finds_the_models_by_their_capabilities(clients: Clients, served: Served) -> None:
    """Names of one digest are one model to it, with aliases."""
    found = clients["python_llm"].ask("models", served.url).good()
    assert found == [f"ollama/{name}" for name in served.names if name != "tiny:latest"]


def test_what_open_webui_asks_for_besides(clients: Clients, served: Served) -> None:
    ask = clients["python_open_webui"].ask
    assert len(ask("version", served.url).good()) == 3
    models = ask("models", served.url).good()
    assert sorted(models) == served.names
    name = f"{served.model}:latest"
    assert models[name]["expires_at"] > 1_700_000_000
    assert "completion" in ask("show", served.url, model=name).good()["capabilities"]
    unloaded = ask("unload", served.url, model=name).good()
    assert (unloaded["model"], unloaded["done_reason"]) == (name, "unload")
    assert content("", ask("chat", served.url, model=served.model, **WHO).good()) == served.answer


@pytest.mark.ollama
def test_ollamas_own_command(served: Served) -> None:
    """`ollama list|ps|show|run`, at the gateway's address."""

    def ollama(*words: str) -> str:
        environ = {"OLLAMA_HOST": served.orch.listen, "HOME": str(served.orch.home), "PATH": "/usr/bin:/bin"}
        command = [str(shutil.which("ollama")), *words]
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=True).stdout

    listed = [line.split()[0] for line in ollama("list").splitlines()[1:]]
    assert sorted(listed) == served.names
    assert served.answer in ollama("run", served.model, WHO["question"])
    assert served.model in ollama("ps")
    assert "qwen3" in ollama("show", served.model)
