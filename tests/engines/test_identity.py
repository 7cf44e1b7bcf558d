"""Who answers: recorded bodies against deployments."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes.asks import CPU, adapter, resolved, tiny

from orchestrator.core.deployment import Deployment, DeploymentSpec, Desired
from orchestrator.engines import ENGINES

RECORDED = Path(__file__).parent / "recorded"
HOST = replace(CPU, programs={"ollama": "/usr/bin/ollama"})


def body(name: str) -> Any:
    return json.loads((RECORDED / name).read_text())


def deployment(engine: str, served: str, model_path: str) -> Deployment:
    names = {"name": served, "public_names": [f"public/{served}"]} if engine == "ollama" else {"public_names": [served]}
    spec = DeploymentSpec(profile=tiny(**names), engine=engine, target="local")
    return resolved(Desired(spec=spec), HOST).deployment.model_copy(update={"model_path": model_path})


@pytest.mark.parametrize(
    ("engine", "file", "served", "path"),
    [
        ("vllm", "vllm_models.json", "tiny", "/models/tiny-qwen3"),
        ("vllm", "vllm_models_two_adapters.json", "tiny", "/models/tiny-qwen3"),
        ("llamacpp", "llamacpp_props.json", "tiny", "/models/tiny-qwen3-q6_k.gguf"),
        # There it has the profile's name: not every public one is one that Ollama takes.
        ("ollama", "ollama_tags.json", "plain", "/anything"),
    ],
)
def test_its_own_model_is_recognised(engine: str, file: str, served: str, path: str) -> None:
    assert ENGINES[engine].recognises(deployment(engine, served, path), body(file))


@pytest.mark.parametrize(
    ("engine", "file", "served", "path"),
    [
        ("vllm", "vllm_models.json", "tiny", "/models/another"),
        ("vllm", "vllm_models.json", "another", "/models/tiny-qwen3"),
        # The name of an adapter, with its path, is not the base.
        ("vllm", "vllm_models_two_adapters.json", "a", "/models/tiny-qwen3"),
        ("llamacpp", "llamacpp_props.json", "tiny", "/models/another.gguf"),
        ("ollama", "ollama_tags.json", "tiny-from", "/anything"),
        ("ollama", "ollama_tags.json", "another", "/anything"),
    ],
)
def test_a_stranger_is_not(engine: str, file: str, served: str, path: str) -> None:
    assert not ENGINES[engine].recognises(deployment(engine, served, path), body(file))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("reply", [None, [], {}, "text", {"data": 3}, {"data": [None]}, {"models": None}])
def test_no_reply_of_another_kind_is_taken_for_it(engine: str, reply: Any) -> None:
    sheet, wanted = ENGINES[engine], deployment(engine, "tiny", "/models/tiny-qwen3")
    assert not sheet.recognises(wanted, reply)
    assert not sheet.loaded(wanted, reply)


def test_vllm_tells_its_adapters() -> None:
    sheet, wanted = ENGINES["vllm"], deployment("vllm", "tiny", "/models/tiny-qwen3")
    assert sheet.loaded(wanted, body("vllm_models.json")) == ()
    shown = sheet.loaded(wanted, body("vllm_models_two_adapters.json"))
    assert shown == (("a", "/models/lora-a"), ("b", "/models/lora-b"))


def test_llamacpp_does_not() -> None:
    wanted = deployment("llamacpp", "tiny", "/models/tiny-qwen3-q6_k.gguf")
    assert ENGINES["llamacpp"].loaded(wanted, body("llamacpp_props.json")) is None


def test_ollama_tells_those_of_its_own_that_are_models_there() -> None:
    """An adapter is a model by its name and bytes: another version is another model, and so is its twin."""
    sheet, profile = ENGINES["ollama"], tiny()
    a, b = adapter("a", profile), adapter("b", profile)
    wanted = deployment("ollama", "tiny", "/m.gguf").model_copy(update={"adapters": (a, b)})
    assert sheet.loaded(wanted, body("ollama_tags.json")) == ()
    names = ["tiny:latest", f"{sheet.upstream(wanted, b)}:latest", "adapter-000000000000:latest"]
    assert sheet.loaded(wanted, {"models": [{"name": name} for name in names]}) == (("b", b.path),)
    assert sheet.upstream(wanted, None) == "tiny"
    same_bytes = a.model_copy(update={"name": "twin"})
    assert len({sheet.upstream(wanted, one) for one in (a, adapter("a@2", profile), same_bytes)}) == 3
