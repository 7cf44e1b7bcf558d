"""GGUF files of every family and type against the bytes of llama.cpp's own converter and quantizer."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from artifact_files import (
    ASSETS,
    GgufContents,
    Reader,
    as_converted,
    edit_json,
    gguf_contents,
    quantizer,
    read_safetensors,
    safetensors_contents,
    write_safetensors,
)
from tiny_models import MODELS, write_model

from orchestrator.artifacts import one_pass
from orchestrator.artifacts.gguf_file import GgufOutputSpec, build_gguf
from orchestrator.artifacts.gguf_types import Quant
from orchestrator.artifacts.nvfp4_checkpoint import Nvfp4OutputSpec
from orchestrator.artifacts.rope import Rope
from orchestrator.artifacts.rope_factors import llama3_factors
from orchestrator.core.progress import silent
from orchestrator.errors import SourceError

pytestmark = pytest.mark.slow

# Bits of the factors that are neither 1 nor the whole factor.
LLAMA_31_FACTORS = [1067093717, 1069995594, 1073852189, 1076654894, 1080806094, 1084767238]
LLAMA_32_FACTORS = [1070816962, 1079161967, 1092266734]
# What llama.cpp's converter takes from the directory's name.
_NAMED = ("general.name", "general.version", "general.basename")


@cache
def oracle(name: str) -> dict[str, Any]:
    return dict(json.loads((ASSETS / "families.json").read_bytes())[name])


@pytest.fixture(scope="module", params=list(MODELS))
def built(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[Quant, GgufContents]]:
    """(name of a tiny model, its GGUF of every type), all made in one pass."""
    directory = tmp_path_factory.mktemp(request.param)
    source = write_model(request.param, directory / "source")
    quants: tuple[Quant, ...] = ("bf16",) if request.param == "llama-smol" else get_args(Quant)
    specs = [GgufOutputSpec(directory / f"{quant}.gguf", quant, quantizer()) for quant in quants]
    one_pass.build(source, specs, silent)
    return request.param, {one.quant: gguf_contents(one.out) for one in specs}


def test_tensors_are_those_of_llama_cpp_byte_for_byte_and_in_order(
    built: tuple[str, dict[Quant, GgufContents]],
) -> None:
    name, files = built
    for quant, found in files.items():
        assert list(found.tensors.items()) == list(oracle(name)[quant]["tensors"].items()), quant


def test_metadata_is_that_of_llama_cpp(built: tuple[str, dict[Quant, GgufContents]]) -> None:
    name, files = built
    for quant, found in files.items():
        expected = {key: value for key, value in oracle(name)[quant]["metadata"].items() if key not in _NAMED}
        assert as_converted(found.metadata, expected) == expected, quant


def test_the_vocabulary_is_that_of_llama_cpp(built: tuple[str, dict[Quant, GgufContents]]) -> None:
    name, files = built
    if MODELS[name].tokenizer == "spm-json":
        # llama.cpp's converter writes one score for all pieces: see test_scores_are_made_anew_from_merges.
        assert oracle(name)["vocabulary"] not in {found.vocabulary for found in files.values()}
    else:
        assert {found.vocabulary for found in files.values()} == {oracle(name)["vocabulary"]}


@pytest.mark.parametrize("name", ["qwen2-tied", "llama-spm"])
def test_nvfp4_is_that_of_llm_compressor(name: str, tmp_path: Path) -> None:
    """The same in all families: q, k and v share a divisor, as gate and up do; biases are copied; no row is moved."""
    source, out = write_model(name, tmp_path / "source"), tmp_path / "nvfp4"
    gguf = GgufOutputSpec(tmp_path / "q8_0.gguf", "q8_0", quantizer())
    # Together with a GGUF, for which Llama's rows are moved.
    one_pass.build(source, [gguf, Nvfp4OutputSpec(out)], silent)
    assert gguf_contents(gguf.out).tensors == oracle(name)["q8_0"]["tensors"]
    found = safetensors_contents(out / "model.safetensors")
    assert found == oracle(name)["nvfp4a16"]
    assert ("model.layers.0.self_attn.q_proj.bias" in found) is (name == "qwen2-tied")
    assert (out / "tokenizer.model").exists() is (name == "llama-spm")


def test_rows_change_places_within_heads_wherever_blocks_end(tmp_path: Path) -> None:
    source = write_model("mistral", tmp_path / "source")
    heads, head_dim, hidden = 4, 96, 2048
    edit_json(source / "config.json", hidden_size=hidden, head_dim=head_dim, num_hidden_layers=1, vocab_size=520)
    rows = {"q_proj": heads * head_dim, "k_proj": heads * head_dim // 2, "v_proj": heads * head_dim // 2}
    random = np.random.default_rng(0)
    tensors = {}
    for name, tensor in read_safetensors(source).items():
        if "layers.1." not in name:
            shape = [rows.get(name.split(".")[-2], tensor.shape[0]), *[hidden] * (tensor.ndim - 1)]
            shape = [hidden, 256] if "down_proj" in name else [hidden, heads * head_dim] if "o_proj" in name else shape
            tensors[name] = random.standard_normal([hidden] if tensor.ndim == 1 else shape, np.float32)
    write_safetensors(source / "model.safetensors", tensors)
    build_gguf(source, tmp_path / "model.gguf", "f16", quantizer(), silent)
    query = tensors["model.layers.0.self_attn.q_proj.weight"]
    assert query.size > one_pass.BLOCK_ITEMS
    # What Hugging Face rotates together lies half a head apart; for llama.cpp it lies side by side.
    order = [head * head_dim + half + pair for head in range(heads) for pair in range(48) for half in (0, 48)]
    found = {tensor.name: tensor.data for tensor in Reader(tmp_path / "model.gguf").tensors}
    assert np.array_equal(found["blk.0.attn_q.weight"], query[order].astype(np.float16))
    value = tensors["model.layers.0.self_attn.v_proj.weight"]
    assert np.array_equal(found["blk.0.attn_v.weight"], value.astype(np.float16))


def test_factors_of_llama_3_are_those_of_the_published_models() -> None:
    """Recorded from llama.cpp's converter (torch) for Llama 3.1 8B and 3.2 1B."""
    for head_dim, factor, expected in ((128, 8.0, LLAMA_31_FACTORS), (64, 32.0, LLAMA_32_FACTORS)):
        found = llama3_factors(Rope(500000.0, "llama3", factor, 1.0, 4.0, 8192.0), head_dim)
        between = found[(found != 1) & (found != factor)]
        assert between.view(np.uint32).tolist() == expected
        assert sorted(found.tolist()) == found.tolist()


def test_f16_that_cannot_hold_the_weights_is_refused(tmp_path: Path) -> None:
    source = write_model("mistral", tmp_path / "source")
    tensors = read_safetensors(source)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = 7e4
    write_safetensors(source / "model.safetensors", tensors)
    with pytest.raises(SourceError, match=r"layers\.1\.mlp\.up_proj\.weight is too large for F16") as caught:
        build_gguf(source, tmp_path / "model.gguf", "f16", quantizer(), silent)
    assert "gguf-bf16" in caught.value.hint
    assert list(tmp_path.iterdir()) == [source]
