"""An Ollama behind the gateway: its own lists and descriptions, under the public names."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from gateway_process import Gateway
from ollama_bench import Command, Files, Json, Server

from orchestrator.core.model_card import ModelCard
from orchestrator.core.routes import ANTHROPIC, OLLAMA, OPENAI, Backend, Route

ADAPTER, LOST = "adapter-2627701e43b9", "adapter-000000000000"


@pytest.fixture(scope="module")
def behind(ollama: Command, files: Files, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With the models that orch makes there: a profile's, and an adapter's."""
    with ollama.serve(tmp_path_factory.mktemp("behind") / "home") as started:
        started.create("prof", files={"tiny.gguf": started.upload(files.tiny)}, parameters={"num_ctx": 512})
        lora = started.upload(files.lora_a)
        started.create(ADAPTER, **{"from": "prof"}, adapters={"adapter.gguf": lora})
        yield started


@pytest.fixture(scope="module")
def gateway(behind: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    made = Gateway(tmp_path_factory.mktemp("g"))
    at = (Backend("prof-ollama-g1", str(behind.client.base_url).rstrip("/")),)
    speaks = (OPENAI, ANTHROPIC, OLLAMA)
    card = ModelCard(digest="0" * 64, size=1)
    try:
        made.start()
        made.admin.set_routes(
            "prof",
            [
                Route("Tiny", "prof", at, speaks, "prof", card=card),
                Route("alias:v2", "prof", at, speaks, "prof", card=card),
                Route("alpha", "prof", at, speaks, ADAPTER, card=ModelCard(digest="1" * 64, base="Tiny")),
                Route("lost", "prof", at, speaks, LOST, card=ModelCard(digest="2" * 64, base="Tiny")),
            ],
        )
        yield made
    finally:
        made.close()


def answer(gateway: Gateway, path: str, body: Json | None = None) -> Json:
    status, _, data = gateway.ask(path, body, "GET" if body is None else "POST")
    assert status == 200, data
    found = json.loads(data)
    assert not {name for name in (ADAPTER, LOST, "prof:latest") if name.encode() in data}
    assert isinstance(found, dict)
    return found


def without(entry: Json, *names: str) -> Json:
    return {key: value for key, value in entry.items() if key not in names}


def test_its_tags(behind: Server, gateway: Gateway) -> None:
    own = {entry["name"]: entry for entry in behind.client.get("/api/tags").json()["models"]}
    found = {entry["name"]: entry for entry in answer(gateway, "/api/tags")["models"]}
    assert set(found) == {"Tiny:latest", "alias:v2", "alpha:latest", "lost:latest"}
    pairs = (("Tiny:latest", "prof:latest"), ("alias:v2", "prof:latest"), ("alpha:latest", f"{ADAPTER}:latest"))
    for ours, theirs in pairs:
        assert list(found[ours]) == list(own[theirs])
        assert found[ours]["model"] == ours
        named = ("name", "model", "details")
        assert without(found[ours], *named) == without(own[theirs], *named)
        assert without(found[ours]["details"], "parent_model") == without(own[theirs]["details"], "parent_model")
    assert own[f"{ADAPTER}:latest"]["details"]["parent_model"] == "prof:latest"
    assert found["alpha:latest"]["details"]["parent_model"] == "Tiny:latest"


def test_what_it_has_loaded(behind: Server, gateway: Gateway) -> None:
    behind.says(ADAPTER)
    own = {entry["name"]: entry for entry in behind.ps()}
    found = {entry["name"]: entry for entry in answer(gateway, "/api/ps")["models"]}
    assert set(own) == {f"{ADAPTER}:latest"}
    assert set(found) == {"alpha:latest"}
    assert without(found["alpha:latest"], "name", "model") == without(own[f"{ADAPTER}:latest"], "name", "model")


@pytest.mark.parametrize(("name", "upstream"), [("tiny", "prof"), ("alpha", ADAPTER)])
def test_its_descriptions(behind: Server, gateway: Gateway, name: str, upstream: str) -> None:
    own, found = behind.post("/api/show", model=upstream).json(), answer(gateway, "/api/show", {"model": name})
    assert list(found) == list(own)
    assert without(found, "modelfile", "details") == without(own, "modelfile", "details")
    public = {"tiny": "Tiny"}.get(name, name)
    assert found["modelfile"] == own["modelfile"].replace(f"{upstream}:latest", f"{public}:latest")
    assert f"# FROM {public}:latest" in found["modelfile"]
    parent = {"tiny": "", "alpha": "Tiny:latest"}[name]
    assert found["details"] == {**own["details"], "parent_model": parent}


def test_what_it_has_lost_is_described_all_the_same(gateway: Gateway) -> None:
    found = {entry["name"]: entry for entry in answer(gateway, "/api/tags")["models"]}
    assert (found["lost:latest"]["digest"], found["lost:latest"]["size"]) == ("2" * 64, 1)
    assert answer(gateway, "/api/show", {"model": "lost"})["details"]["parent_model"] == "Tiny:latest"


def test_tokens_are_counted_for_anthropics_clients(behind: Server, gateway: Gateway) -> None:
    """As many as it says that it read; and where it would not read them all, as many as there are."""
    for text, more in (("Who are you?", {}), ("word " * 1200, {"truncate": False})):
        asked = {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": text}]}
        told = behind.post("/api/chat", model="prof", stream=False, options={"num_predict": 1}, **asked, **more).json()
        own = told.get("prompt_eval_count") or json.loads(told["error"])["error"]["n_prompt_tokens"]
        body: Json = {"model": "Tiny", "system": "Be kind.", "messages": [{"role": "user", "content": text}]}
        # What was read already counts, too.
        for _ in range(2):
            assert answer(gateway, "/v1/messages/count_tokens", body) == {"input_tokens": own}
