"""A gateway with keys, asked as Ollama's clients are told to show one: by their headers, or OLLAMA_API_KEY's."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from client_programs import Clients
from gateway_process import Gateway, key_ring, write_keys
from scripted_engine import TEXT, ScriptedEngine

from orchestrator.core.model_card import ModelCard
from orchestrator.core.routes import LLAMA_SERVER, OPENAI, Backend, Route

pytestmark = [pytest.mark.parts, pytest.mark.clients]

KEY = "sk-orch-0123456789abcdef0123456789abcdef"
CLIENTS = ("python_ollama", "npm_ollama", "python_langchain", "python_litellm", "python_llm", "python_open_webui")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with (
        tempfile.TemporaryDirectory(prefix="gw") as home,
        closing(ScriptedEngine()) as engine,
        closing(Gateway(Path(home))) as gateway,
    ):
        write_keys(Path(home) / "keys", key_ring(KEY))
        gateway.start("--key-file", str(Path(home) / "keys"))
        backends = (Backend(engine.name, engine.url),)
        card = ModelCard(digest="0" * 64, context=4096)
        gateway.admin.set_routes("one", [Route("tiny", "one", backends, (OPENAI, LLAMA_SERVER), card=card)])
        yield f"http://127.0.0.1:{gateway.port}"


@pytest.mark.parametrize("client", CLIENTS)
def test_a_key_is_shown_by_a_header(clients: Clients, url: str, client: str) -> None:
    ask = clients[client].ask
    told = ask("chat", url, model="tiny", question="Count.", headers={"Authorization": f"Bearer {KEY}"})
    assert TEXT in str(told.good())


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("headers", [None, {"Authorization": "Bearer sk-orch-another"}])
def test_without_it_there_is_an_error(clients: Clients, url: str, client: str, headers: dict[str, str] | None) -> None:
    told = clients[client].ask("chat", url, model="tiny", question="Count.", headers=headers).bad()
    # It looks into the list before it asks, and takes what it cannot read for an empty one.
    assert ("Unknown model" if client == "python_llm" else "API key") in told["message"]
