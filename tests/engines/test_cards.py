"""What clients are told of a model: from the files of the real tiny model to the cards of its routes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from artifact_files import TINY, quantizer
from fakes.asks import CPU, DAEMON, MadeUpCatalog, MadeUpOrchestrator, adapter, nothing_but, tiny

from orchestrator.app.resolution import resolve_desired
from orchestrator.artifacts.gguf_file import build_gguf
from orchestrator.artifacts.gguf_meaning import read_gguf_meaning
from orchestrator.artifacts.meaning import read_meaning, takes_tools
from orchestrator.core.artifact import Recipe
from orchestrator.core.deployment import Deployment, DeploymentSpec, Desired, to_record
from orchestrator.core.launch import LOCAL
from orchestrator.core.meaning import Meaning
from orchestrator.core.model_card import ModelCard
from orchestrator.core.profile import Profile, Weights
from orchestrator.core.progress import Progress, silent
from orchestrator.core.resolved import Resolved
from orchestrator.core.routes import Backend, Route
from orchestrator.core.weights import WeightsFacts
from orchestrator.drivers.weights import read_shape
from orchestrator.engines.settings import read_settings

ENDS = ("<|im_end|>", "<|endoftext|>")
LLAMA_3 = "{%- if not tools is defined %}{%- set tools = none %}{%- endif %}{%- if tools is not none %}x{%- endif %}"


class Real(MadeUpCatalog):
    """The tiny model's own files, wherever they are said to be."""

    def of_directory(self, weights: Weights, progress: Progress) -> WeightsFacts:
        made = super().of_directory(weights, progress)
        size = (TINY / "model.safetensors").stat().st_size
        return WeightsFacts(made.source, made.key, made.path, None, size, read_shape(TINY))

    def meaning(self, path: Path) -> Meaning:
        return read_meaning(TINY)


def served(engine: str, recipe: Recipe | None = None, profile: Profile | None = None, *adapters: str) -> Resolved:
    profile = profile or tiny()
    orch = MadeUpOrchestrator(CPU, DAEMON)
    orch.catalog = Real()  # type: ignore[assignment]
    spec = DeploymentSpec(profile=profile, engine=engine, target=LOCAL, recipe=recipe)
    desired = Desired(spec=spec, adapters=tuple(adapter(name, profile) for name in adapters))
    return resolve_desired(orch, desired, nothing_but(CPU), to_run=engine != "ollama")[0]


def card(engine: str, recipe: Recipe | None = None, profile: Profile | None = None) -> ModelCard:
    found = served(engine, recipe, profile).deployment.card
    assert found is not None
    return found


def test_the_tiny_model() -> None:
    found = card("llamacpp")
    assert (found.family, found.format, found.quantization, found.parameters) == ("qwen3", "gguf", "Q6_K", 4_197_120)
    assert {name: found.sizes[name] for name in ("num_hidden_layers", "rope_theta", "rms_norm_eps")} == {
        "num_hidden_layers": 4,
        "rope_theta": 10000,
        "rms_norm_eps": 1e-6,
    }
    assert (found.tokenizer, found.context, found.ends, found.on_gpu) == ("gpt2", 512, ENDS, False)
    assert found.template == read_meaning(TINY).template("default")
    # The real artifact has 3,582,903 bytes; until there is one it is estimated from the weights.
    assert abs(found.size - 3_582_903) < 200_000
    assert found.sampling["temperature"] == 1.0
    assert len(bytes.fromhex(found.digest)) == 32
    assert found.key == served("llamacpp").deployment.artifact_key


@pytest.mark.parametrize(
    ("engine", "recipe", "expected"),
    [
        ("vllm", Recipe.WEIGHTS, ("safetensors", "BF16")),
        ("llamacpp", Recipe.GGUF_BF16, ("gguf", "BF16")),
        ("llamacpp", Recipe.GGUF_Q4_K_M, ("gguf", "Q4_K_M")),
        ("ollama", Recipe.GGUF_NVFP4, ("gguf", "NVFP4")),
    ],
)
def test_what_it_is_made_into(engine: str, recipe: Recipe, expected: tuple[str, str]) -> None:
    found = card(engine, recipe)
    assert (found.format, found.quantization) == expected


def test_other_artifacts_have_other_digests() -> None:
    cards = [card("llamacpp"), card("llamacpp", Recipe.GGUF_BF16), card("vllm", Recipe.WEIGHTS)]
    assert len({one.digest for one in cards}) == 3
    assert card("ollama").digest == card("llamacpp").digest


def test_what_the_profile_says(tmp_path: Path) -> None:
    # A context is part of what is served; so is a temperature.
    found = card("llamacpp", profile=tiny(serving={"context": 256}, sampling={"temperature": 0.25}))
    assert (found.context, found.sampling["temperature"]) == (256, 0.25)


def test_an_adapter_has_a_small_card() -> None:
    resolved = served("vllm", Recipe.WEIGHTS, None, "a", "b")
    cards = {route.name: route.card for route in resolved.routes}
    assert set(cards) == {"tiny", "tiny:latest", "a", "b"}
    assert cards["tiny"] == cards["tiny:latest"] == resolved.deployment.card
    for one in resolved.deployment.adapters:
        assert cards[one.name] == ModelCard(digest=one.digest, key=one.key, base="tiny")


def test_whose_api_each_engine_has() -> None:
    said = {engine: served(engine, recipe).routes[0].speaks for engine, recipe in
            (("llamacpp", None), ("vllm", Recipe.WEIGHTS), ("ollama", None))}  # fmt: skip
    assert said == {
        "llamacpp": ("openai", "anthropic", "llama-server"),
        "vllm": ("openai", "anthropic", "vllm"),
        "ollama": ("openai", "anthropic", "ollama"),
    }


def test_it_is_recorded_and_what_runs_does_not_bear_it() -> None:
    resolved = served("llamacpp")
    deployment = resolved.deployment
    spec = DeploymentSpec(profile=tiny(), engine="llamacpp", target=LOCAL)
    desired = Desired(spec=spec, resolution=resolved.resolution)
    assert Desired.from_record(json.loads(to_record(desired)), read_settings) == desired
    untold = desired.without_card.resolution
    assert untold is not None
    assert untold.deployment.card is None
    assert untold.deployment.fingerprint == deployment.fingerprint
    as_run = untold.deployment.model_copy({"memory": deployment.memory})
    assert deployment.label == as_run.label
    assert Deployment.from_label(deployment.label) == as_run


def test_a_card_both_ways() -> None:
    """Through the records, the admin socket and the gateway's file numbers stay as they are compared."""
    route = served("llamacpp").routes[0].led_to(Backend("tiny-llamacpp-g1", "http://127.0.0.1:1"))
    again = Route.from_json(json.loads(json.dumps(route.to_json())))
    assert again == route
    assert again.card == route.card
    assert ModelCard(digest="x", sizes={"a": 4}).to_json() == ModelCard(digest="x", sizes={"a": 4.0}).to_json()
    assert ModelCard.from_json({"digest": "x", "later": 1}) == ModelCard(digest="x")
    for wrong in ({}, {"digest": 5}, {"digest": "x", "ends": "y"}, {"digest": "x", "size": "much"}):
        with pytest.raises(ValueError, match=r"digest|ends|size"):
            ModelCard.from_json(wrong)


def test_a_gguf_says_the_same_of_itself(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    build_gguf(TINY, file, "bf16", quantizer(), silent)
    ours, weights = read_gguf_meaning(file), read_meaning(TINY)
    assert ours.sizes == pytest.approx(weights.sizes)
    assert (ours.tokenizer, ours.takes_tools, ours.thinks) == (weights.tokenizer, weights.takes_tools, weights.thinks)


@pytest.mark.parametrize(
    ("templates", "expected"),
    [
        ({"default": "{{ messages }}"}, False),
        ({"default": "{% if tools %}{{ tools | tojson }}{% endif %}"}, True),
        ({"default": LLAMA_3}, True),
        ({"default": "{# tools #}{{ 'tools' }}{% set tools = 1 %}{{ tools }}"}, False),
        ({"default": "{{ messages }}", "tool_use": "{{ tools }}"}, True),
        ({"tool_use": "{{ tools }}"}, False),
        ({"default": "{% if tools"}, False),
        ({}, False),
    ],
)
def test_whether_a_template_heeds_tools(templates: dict[str, str], expected: bool) -> None:
    assert takes_tools(templates) is expected
