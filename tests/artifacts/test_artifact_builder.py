from __future__ import annotations

from pathlib import Path

import pytest
from artifact_files import ASSETS, TINY, copy_tiny, edit_json, expected_gguf, gguf_tensors, quantizer_library

from orchestrator.artifacts.builder import Builder
from orchestrator.artifacts.store import Store
from orchestrator.core.artifact import Recipe, artifact_key
from orchestrator.core.progress import silent
from orchestrator.errors import HostError, PlanRefused

pytestmark = pytest.mark.slow

BUILDER = Builder(quantizer_library())


@pytest.mark.parametrize(
    ("recipe", "source", "name", "oracle"),
    [
        (Recipe.GGUF_Q6_K, TINY, "model.gguf", "gguf/q6_k"),
        (Recipe.GGUF_BF16, TINY, "model.gguf", "gguf/bf16"),
        (Recipe.LORA_GGUF, ASSETS / "lora-b", "adapter.gguf", "gguf-lora/lora-b"),
    ],
)
def test_a_recipe_is_built_into_the_store(recipe: Recipe, source: Path, name: str, oracle: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    key = artifact_key(recipe, "dir:1")
    with store.building(key) as turn:
        BUILDER.build(recipe, source, turn.work, silent, base=TINY)
        turn.finish(recipe, "dir:1", BUILDER.versions(recipe))
    assert [manifest.key for manifest in store.all()] == [key]
    assert [file.path for file in store.all()[0].files] == [name]
    assert gguf_tensors(store.path(key) / name) == expected_gguf(oracle)


def test_nvfp4_is_a_directory(tmp_path: Path) -> None:
    BUILDER.build(Recipe.NVFP4A16, TINY, tmp_path, silent)
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in TINY.iterdir()}


def test_an_adapter_is_stored_as_it_is(tmp_path: Path) -> None:
    source = ASSETS / "lora-a"
    BUILDER.build(Recipe.ADAPTER, source, tmp_path, silent)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {
        file.name: file.read_bytes() for file in source.iterdir()
    }


def test_an_adapter_is_checked_against_its_base(tmp_path: Path) -> None:
    assert BUILDER.adapter(ASSETS / "lora-a", TINY) == BUILDER.adapter(ASSETS / "lora-a", None)
    other = copy_tiny(tmp_path / "other")
    edit_json(other / "config.json", num_hidden_layers=2)
    with pytest.raises(PlanRefused, match="16 tensors do not fit"):
        BUILDER.adapter(ASSETS / "lora-a", other)


def test_versions_say_what_made_the_bytes() -> None:
    assert BUILDER.versions(Recipe.GGUF_Q6_K).keys() == {"format", "numpy", "gguf", "ggml"}
    assert BUILDER.versions(Recipe.NVFP4A16).keys() == {"format", "numpy"}


def test_weights_are_not_built(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing is built for weights"):
        BUILDER.build(Recipe.WEIGHTS, TINY, tmp_path, silent)


def test_an_adapter_needs_its_base(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="for a base"):
        BUILDER.build(Recipe.LORA_GGUF, ASSETS / "lora-a", tmp_path, silent)


def test_nvfp4_does_not_need_the_quantizer(tmp_path: Path) -> None:
    builder = Builder(tmp_path / "none.so")
    (tmp_path / "work").mkdir()
    builder.build(Recipe.NVFP4A16, TINY, tmp_path / "work", silent)
    with pytest.raises(HostError, match="cannot be loaded"):
        builder.build(Recipe.GGUF_Q6_K, TINY, tmp_path / "work", silent)
