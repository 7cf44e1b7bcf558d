"""The fake engines against what real ones answered: status and the words that orch reads, recorded."""

from __future__ import annotations

from typing import Any

import pytest
from fakes.asks import CPU, adapter, resolved, tiny
from fakes.engine import EngineServer, OllamaStore

from orchestrator.core.deployment import Desired, Wish

CHAT = "/v1/chat/completions"
LOAD = "/v1/load_lora_adapter"
UNLOAD = "/v1/unload_lora_adapter"

# vLLM 0.32.0, started with adapter a: path, body, status, words.
VLLM: list[tuple[str, dict[str, Any], int, str]] = [
    (CHAT, {"model": "tiny"}, 200, "tiny"),
    (CHAT, {"model": "nope"}, 404, "The model `nope` does not exist."),
    (LOAD, {"lora_name": "b", "lora_path": "/b"}, 200, ""),
    (LOAD, {"lora_name": "b", "lora_path": "/b"}, 400, "loaded"),
    (LOAD, {"lora_name": "b", "lora_path": "/b/2", "load_inplace": True}, 200, ""),
    (CHAT, {"model": "b"}, 200, "b"),
    (UNLOAD, {"lora_name": "b"}, 200, ""),
    (UNLOAD, {"lora_name": "b"}, 404, "cannot be found"),
    (CHAT, {"model": "b"}, 404, "does not exist"),
    (CHAT, {"model": "a"}, 200, "a"),
]


def server(engine: str, *adapters: str) -> EngineServer:
    profile = tiny()
    wish = Wish(profile=profile, engine=engine, target="local")
    fitted = tuple(adapter(name, profile) for name in adapters)
    host = CPU.__class__(**{**vars(CPU), "ollama": "/usr/bin/ollama"})
    made = resolved(Desired(wish=wish, adapters=fitted), host).deployment
    return EngineServer(made, dict(made.written), OllamaStore())


def test_vllm() -> None:
    engine = server("vllm", "a")
    for path, body, status, words in VLLM:
        reply = engine.post(path, body)
        assert reply.status == status, (path, body)
        assert words in reply.text


def test_llamacpp_answers_to_any_name() -> None:
    assert server("llamacpp").post(CHAT, {"model": "nope"}).status == 200
    assert server("llamacpp").post(LOAD, {"lora_name": "a", "lora_path": "/a"}).status == 404


def test_ollama_has_nothing_before_its_import() -> None:
    engine = server("ollama")
    assert (engine.get("/api/version").status, engine.get("/api/tags").json) == (200, {"models": []})
    assert engine.post(CHAT, {"model": "tiny"}).status == 404


@pytest.mark.parametrize("engine", ["vllm", "llamacpp", "ollama"])
def test_what_is_not_known_is_not_found(engine: str) -> None:
    assert server(engine).get("/nope").status == 404
