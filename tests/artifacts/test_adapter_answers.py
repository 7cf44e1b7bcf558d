"""What llama.cpp answers with orch's GGUF of an adapter is what PEFT answers with the adapter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from adapter_files import ADAPTERS, LORA_A, copy_of, peft_oracles, tensors_of, with_tensors
from artifact_files import ASSETS, TINY, quantizer, quantizer_library, read_safetensors
from llamacpp_serving import post, serving

from orchestrator.artifacts.builder import ADAPTER_FILE, Builder
from orchestrator.artifacts.gguf_file import build_gguf
from orchestrator.core.artifact import Recipe
from orchestrator.core.progress import silent

pytestmark = pytest.mark.llamacpp

KINDS = [*sorted(peft_oracles()["answers"]), "saved-embeddings"]


def source_of(kind: str, directory: Path) -> Path:
    if kind == "saved-embeddings":
        copies = dict.fromkeys(
            peft_oracles()["names"]["saved embeddings"], read_safetensors(TINY)["model.embed_tokens.weight"]
        )
        return with_tensors(copy_of(LORA_A, directory), tensors_of(LORA_A) | copies)
    return ASSETS / kind if kind.startswith("lora-") and (ASSETS / kind).is_dir() else ADAPTERS / kind


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with the tiny model and all adapters, each imported and converted as orch does it."""
    home = tmp_path_factory.mktemp("served")
    builder, files = Builder(quantizer_library()), []
    for kind in KINDS:
        stored, work = home / f"{kind}-stored", home / kind
        stored.mkdir()
        work.mkdir()
        builder.build(Recipe.ADAPTER, source_of(kind, home / f"{kind}-source"), stored, silent, TINY)
        builder.build(Recipe.LORA_GGUF, stored, work, silent, TINY)
        files.append(work / ADAPTER_FILE)
    build_gguf(TINY, home / "model.gguf", "f16", quantizer(), silent)
    with serving(home / "model.gguf", *files) as address:
        yield address


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_answers_as_peft(kind: str, served: str) -> None:
    expected = peft_oracles()["answers"][kind if kind in peft_oracles()["answers"] else "lora-a"]
    lora = [{"id": index, "scale": float(one == kind)} for index, one in enumerate(KINDS)]
    for question, tokens in expected.items():
        body = {"prompt": peft_oracles()["prompts"][question], "n_predict": 24, "temperature": 0, "lora": lora}
        found = post(f"{served}/completion", body | {"return_tokens": True})["tokens"]
        assert found == tokens, question
