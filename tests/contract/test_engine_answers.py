"""The fake engines against what real ones answered: status and the words that orch reads, recorded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes.asks import CPU, adapter, resolved, tiny
from fakes.engine import EngineServer, OllamaStore

from orchestrator.core.deployment import DeploymentSpec, Desired

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


BLOB, ABSENT = f"sha256:{'b' * 64}", f"sha256:{'0' * 64}"
# Ollama 0.33: method, path, content, status, words; an error after the first line of a stream comes under 200.
OLLAMA: list[tuple[str, str, dict[str, Any] | Path | None, int, str]] = [
    ("HEAD", f"/api/blobs/{BLOB}", None, 404, ""),
    ("POST", f"/api/blobs/{BLOB}", Path("model.gguf"), 201, ""),
    ("POST", f"/api/blobs/{BLOB}", Path("model.gguf"), 200, ""),
    ("HEAD", f"/api/blobs/{BLOB}", None, 200, ""),
    ("POST", "/api/create", {"model": "tiny", "files": {"model.gguf": ABSENT}}, 200, '"error": "open '),
    ("POST", "/api/create", {"model": "tiny", "files": {"model.gguf": BLOB}}, 200, '{"status": "success"}'),
    ("POST", "/api/create", {"model": "x", "from": "nope", "adapters": {"a": BLOB}}, 200, '"error": "pull model'),
    ("POST", "/api/create", {"model": "x:v1", "from": "tiny", "adapters": {"a": BLOB}}, 200, "success"),
    ("POST", CHAT, {"model": "tiny"}, 200, "tiny"),
    ("POST", CHAT, {"model": "tiny:latest"}, 200, "tiny"),
    ("POST", CHAT, {"model": "x:v1"}, 200, "x:v1"),
    ("POST", CHAT, {"model": "x"}, 404, "model 'x' not found"),
    ("DELETE", "/api/delete", {"model": "x:v1"}, 200, ""),
    ("DELETE", "/api/delete", {"model": "x:v1"}, 404, "model 'x:v1' not found"),
    ("POST", CHAT, {"model": "x:v1"}, 404, "not found"),
    ("POST", "/api/nope", {"model": "tiny"}, 404, "404 page not found"),
]


def server(engine: str, *adapters: str) -> EngineServer:
    profile = tiny()
    spec = DeploymentSpec(profile=profile, engine=engine, target="local")
    fitted = tuple(adapter(name, profile) for name in adapters)
    host = replace(CPU, programs={"ollama": "/usr/bin/ollama"})
    made = resolved(Desired(spec=spec, adapters=fitted), host).deployment
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


def test_ollama() -> None:
    engine = server("ollama")
    for method, path, content, status, words in OLLAMA:
        reply = engine.send(method, path, content)
        assert reply is not None
        assert reply.status == status, (method, path, content)
        assert words in reply.text
    assert engine.get("/api/tags").json == {"models": [{"name": "tiny:latest"}]}


def test_ollama_tells_what_is_loaded_once_it_was_asked() -> None:
    engine = server("ollama")
    assert engine.get("/api/ps").json == {"models": []}
    engine.kept.models["tiny:latest"] = ()
    engine.post(CHAT, {"model": "tiny"})
    (loaded,) = engine.get("/api/ps").json["models"]
    assert (loaded["name"], loaded["size_vram"]) == ("tiny:latest", 0)


@pytest.mark.parametrize("engine", ["vllm", "llamacpp", "ollama"])
def test_what_is_not_known_is_not_found(engine: str) -> None:
    assert server(engine).get("/nope").status == 404
