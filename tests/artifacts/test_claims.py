"""Checkpoints and GGUF files that claim to be something, and whether they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifact_files import TINY, UNTIED, gguf_model, quantizer, raw_safetensors

from orchestrator.artifacts.claims import check_fp8, check_nvfp4, scheme_of
from orchestrator.artifacts.gguf_claims import check_gguf
from orchestrator.artifacts.gguf_file import build_gguf
from orchestrator.artifacts.gguf_types import Quant
from orchestrator.artifacts.json_file import read_json
from orchestrator.artifacts.nvfp4_checkpoint import build_nvfp4
from orchestrator.core.artifact import Recipe
from orchestrator.core.progress import silent
from orchestrator.core.weights import shape_of
from orchestrator.errors import SourceError

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 48,
    "vocab_size": 10,
    "tie_word_embeddings": False,
}
LINEAR = {
    "self_attn.q_proj": (64, 32),
    "self_attn.k_proj": (32, 32),
    "self_attn.v_proj": (32, 32),
    "self_attn.o_proj": (32, 64),
    "mlp.gate_proj": (48, 32),
    "mlp.up_proj": (48, 32),
    "mlp.down_proj": (32, 48),
}
WEIGHTS = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
INPUTS = {"num_bits": 4, "type": "float", "dynamic": "local", "group_size": 16}
FP8 = {"num_bits": 8, "type": "float", "strategy": "channel"}

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]


def compressed(form: str, weights: dict[str, Any], inputs: dict[str, Any] | None) -> dict[str, Any]:
    group = {"weights": weights, "input_activations": inputs, "format": form}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}


SCHEMES: dict[str, dict[str, Any]] = {
    "nvfp4a16": compressed("nvfp4-pack-quantized", WEIGHTS, None),
    "nvfp4": compressed("nvfp4-pack-quantized", WEIGHTS, INPUTS),
    "modelopt": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    "fp8": compressed("float-quantized", FP8, {"num_bits": 8, "type": "float", "dynamic": True}),
}


def parts(scheme: str, out: int, width: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    scale: tuple[str, tuple[int, ...]] = ("F8_E4M3", (out, width // 16))
    one: tuple[str, tuple[int, ...]] = ("F32", (1,))
    if scheme == "fp8":
        return {"weight": ("F8_E4M3", (out, width)), "weight_scale": ("BF16", (out, 1))}
    if scheme == "modelopt":
        packed = {"weight": ("U8", (out, width // 2)), "weight_scale": scale}
        return packed | {"weight_scale_2": ("F32", ()), "input_scale": ("F32", ())}
    found = {"weight_packed": ("U8", (out, width // 2)), "weight_scale": scale, "weight_global_scale": one}
    return found | ({"input_global_scale": one} if scheme == "nvfp4" else {})


def sound(scheme: str) -> Tensors:
    """All tensors of a tiny model; every number that a scale can be is 1."""
    layout: dict[str, tuple[str, tuple[int, ...]]] = {
        "model.embed_tokens.weight": ("BF16", (10, 32)),
        "lm_head.weight": ("BF16", (10, 32)),
        "model.norm.weight": ("BF16", (32,)),
    }
    for layer in range(2):
        base = f"model.layers.{layer}"
        layout |= {f"{base}.{norm}.weight": ("BF16", (32,)) for norm in ("input_layernorm", "post_attention_layernorm")}
        layout |= {f"{base}.self_attn.{norm}.weight": ("BF16", (16,)) for norm in ("q_norm", "k_norm")}
        for module, sizes in LINEAR.items():
            layout |= {f"{base}.{module}.{part}": kind for part, kind in parts(scheme, *sizes).items()}
    return {name: tensor(*kind) for name, kind in layout.items()}


def tensor(dtype: str, shape: tuple[int, ...], value: float = 1.0) -> tuple[str, tuple[int, ...], bytes]:
    count = int(np.prod(shape))
    bits = {"BF16": b"\x80\x3f", "F32": np.float32(value).tobytes()}
    return dtype, shape, bits.get(dtype, b"\x38") * count


def write(directory: Path, scheme: str, changes: Tensors | dict[str, None] | None = None, **config: Any) -> Path:
    """`changes` replace tensors, or remove those that are None."""
    tensors = {name: kind for name, kind in {**sound(scheme), **(changes or {})}.items() if kind is not None}
    header, data = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    (directory / "model.safetensors").write_bytes(raw_safetensors(header, data))
    told = CONFIG | {"quantization_config": SCHEMES[scheme]} | config
    (directory / "config.json").write_text(json.dumps({key: value for key, value in told.items() if value is not ...}))
    return directory


def refused(directory: Path, recipe: Recipe) -> str:
    with pytest.raises(SourceError) as caught:
        check_fp8(directory) if recipe is Recipe.FP8 else check_nvfp4(directory, recipe)
    assert str(directory) in caught.value.message
    assert caught.value.hint
    return f"{caught.value.message}\n{caught.value.detail}"


@pytest.mark.parametrize(
    ("scheme", "recipe", "form"),
    [
        ("nvfp4a16", Recipe.NVFP4A16, "NVFP4 of compressed-tensors, W4A16"),
        ("nvfp4", Recipe.NVFP4, "NVFP4 of compressed-tensors, W4A4"),
        ("modelopt", Recipe.NVFP4, "NVFP4 of ModelOpt, W4A4"),
        ("fp8", Recipe.FP8, "FP8 of compressed-tensors, dynamic activations"),
    ],
)
def test_a_sound_checkpoint_is_what_it_claims(scheme: str, recipe: Recipe, form: str, tmp_path: Path) -> None:
    write(tmp_path, scheme)
    facts = check_fp8(tmp_path) if recipe is Recipe.FP8 else check_nvfp4(tmp_path, recipe)
    assert (facts.form, facts.architecture) == (form, "Qwen3ForCausalLM")
    assert facts.shape == shape_of(CONFIG)
    assert facts.parameters == 2 * (32 * 64 * 2 + 32 * 32 * 2 + 3 * 32 * 48) + 2 * 320
    assert facts.size < (tmp_path / "model.safetensors").stat().st_size
    others = {Recipe.NVFP4, Recipe.NVFP4A16, Recipe.FP8} - {recipe}
    assert all(f"it is {form}" in refused(tmp_path, other) for other in others)


Q = "model.layers.1.self_attn.q_proj"
WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "a linear weight left out": ("nvfp4a16", {f"{Q}.weight_packed": None}, f"{Q}.weight_packed is missing"),
    "a scale left out": ("nvfp4", {f"{Q}.input_global_scale": None}, "input_global_scale is missing"),
    "quantized to 8 bits after all": ("nvfp4", {f"{Q}.weight_packed": tensor("U8", (64, 32))}, "shape [64, 32]"),
    "scales of another type": ("nvfp4", {f"{Q}.weight_scale": tensor("U8", (64, 2))}, "is U8, not F8_E4M3"),
    "a packed embedding": ("nvfp4", {"model.embed_tokens.weight": tensor("U8", (10, 16))}, "embed_tokens.weight is U8"),
    "a packed head": ("nvfp4", {"lm_head.weight": tensor("F8_E4M3", (10, 32))}, "lm_head.weight is F8_E4M3"),
    "one tensor more": ("nvfp4", {"model.rotary": tensor("F32", (1,))}, "model.rotary does not belong there"),
    "q apart": ("nvfp4", {f"{Q}.weight_global_scale": tensor("F32", (1,), 2.0)}, "weight_global_scale differs"),
    "an input apart": ("nvfp4", {f"{Q}.input_global_scale": tensor("F32", (1,), 2.0)}, "input_global_scale differs"),
    "a scale of 0": ("nvfp4", {f"{Q}.weight_global_scale": tensor("F32", (1,), 0.0)}, "weight_global_scale is 0.0"),
    "a scale of NaN": ("modelopt", {f"{Q}.weight_scale_2": tensor("F32", (), float("nan"))}, "weight_scale_2 is nan"),
    "FP8 in 16 bits": ("fp8", {f"{Q}.weight": tensor("BF16", (64, 32))}, "q_proj.weight is BF16, not F8_E4M3"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_checkpoint_that_is_not_what_its_config_says_is_refused(case: str, tmp_path: Path) -> None:
    scheme, changes, reason = WRONG[case]
    recipe = {"nvfp4a16": Recipe.NVFP4A16, "fp8": Recipe.FP8}.get(scheme, Recipe.NVFP4)
    assert reason in refused(write(tmp_path, scheme, changes), recipe)


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "not quantized": ({"quantization_config": ...}, "it is not quantized"),
    "by GPTQ": ({"quantization_config": {"quant_method": "gptq"}}, "'quant_method': 'gptq'"),
    "by nothing": ({"quantization_config": []}, "in a way that orch does not know: []"),
    "in groups of 32": (
        {"quantization_config": compressed("nvfp4-pack-quantized", WEIGHTS | {"group_size": 32}, INPUTS)},
        "in a way that orch does not know",
    ),
    "with 8-bit activations": (
        {"quantization_config": compressed("nvfp4-pack-quantized", WEIGHTS, INPUTS | {"num_bits": 8})},
        "in a way that orch does not know",
    ),
    "ModelOpt's FP8": ({"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}}, "'FP8'"),
    "no sizes": ({"hidden_size": ...}, "does not give the sizes"),
    "infinite sizes": ({"hidden_size": float("inf")}, "does not give the sizes"),
    "a billion layers": ({"num_hidden_layers": 10**9}, "says 1000000000 layers, and there are 67 tensors"),
    "one layer more": ({"num_hidden_layers": 3}, "model.layers.2.mlp.down_proj.weight_packed is missing"),
    "another width": ({"intermediate_size": 64}, "not [64, 16]"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_says_something_else_is_refused(case: str, tmp_path: Path) -> None:
    config, reason = CONFIGS[case]
    assert reason in refused(write(tmp_path, "nvfp4", **config), Recipe.NVFP4)


def test_modelopts_older_exports_say_it_in_a_file_of_its_own(tmp_path: Path) -> None:
    write(tmp_path, "modelopt", quantization_config=...)
    (tmp_path / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "NVFP4", "group_size": 16}}')
    assert check_nvfp4(tmp_path, Recipe.NVFP4).form == "NVFP4 of ModelOpt, W4A4"


@pytest.mark.parametrize("source", [TINY, UNTIED])
def test_what_we_build_is_what_it_claims(source: Path, tmp_path: Path) -> None:
    build_nvfp4(source, tmp_path, silent)
    facts = check_nvfp4(tmp_path, Recipe.NVFP4A16)
    assert facts.size == sum(file.stat().st_size - header(file) for file in tmp_path.glob("*.safetensors"))
    assert scheme_of(source, read_json(source / "config.json")) is None


def header(file: Path) -> int:
    return 8 + int.from_bytes(file.read_bytes()[:8], "little")


@pytest.mark.parametrize(("source", "quant"), [(TINY, "bf16"), (UNTIED, "q6_k")])
def test_a_gguf_that_we_build_is_what_it_claims(source: Path, quant: Quant, tmp_path: Path) -> None:
    build_gguf(source, tmp_path / "model.gguf", quant, quantizer(), silent)
    facts = check_gguf(tmp_path / "model.gguf", Recipe(f"gguf-{quant}"))
    assert (facts.form, facts.architecture) == (f"GGUF {quant.upper()}", "qwen3")
    assert facts.shape == shape_of(read_json(source / "config.json"))
    with pytest.raises(SourceError, match=f"general.file_type says {quant.upper()}, not Q4_K_M"):
        check_gguf(tmp_path / "model.gguf", Recipe.GGUF_Q4_K_M)


GGUFS: dict[str, tuple[dict[str, Any], str]] = {
    "an adapter": ({"general.type": "adapter"}, "general.type is adapter, not model"),
    "a part of three": ({"split.count": 3}, "one of 3 parts"),
    "another type": ({"general.file_type": 15}, "says Q4_K_M, not Q6_K"),
    "no type": ({"general.file_type": ...}, "says nothing, not Q6_K"),
    "no tokens": ({"tokenizer.ggml.tokens": ...}, "it has no tokenizer"),
    "tokens that are numbers": ({"tokenizer.ggml.tokens": [1, 2]}, "it has no tokenizer"),
    "too few tokens": ({"tokenizer.ggml.tokens": ["a"]}, "it has 1 tokens, and token_embd.weight 4 rows"),
    "no architecture": ({"general.architecture": ...}, "do not give the sizes"),
    "heads for each layer": ({"qwen3.attention.head_count": [4, 4]}, "do not give the sizes"),
    "a billion layers": ({"qwen3.block_count": 10**9}, "say 1000000000 layers, and there are 9 tensors"),
    "one layer more": ({"qwen3.block_count": 2}, "blk.1.attn_q.weight is missing"),
    "another width": (
        {"qwen3.feed_forward_length": 512},
        "blk.0.ffn_up.weight is [256, 256], the keys imply [512, 256]",
    ),
    "a narrower matrix": ({"blk.0.attn_k.weight": ("Q4_K", (128, 256))}, "blk.0.attn_k.weight is Q4_K, which no Q6_K"),
    "a wider matrix": ({"blk.0.attn_k.weight": ("Q8_0", (128, 256))}, "blk.0.attn_k.weight is Q8_0, which no Q6_K"),
    "a quantized norm": ({"output_norm.weight": ("Q8_0", (256,))}, "output_norm.weight is Q8_0"),
    "a narrower end": ({"token_embd.weight": ("Q4_0", (4, 256))}, "token_embd.weight is Q4_0"),
    "no embedding": ({"token_embd.weight": ...}, "do not give the sizes"),
}


@pytest.mark.parametrize("case", GGUFS)
def test_a_gguf_that_is_something_else_is_refused(case: str, tmp_path: Path) -> None:
    changes, reason = GGUFS[case]
    with pytest.raises(SourceError) as caught:
        check_gguf(gguf_model(tmp_path / "model.gguf", **changes), Recipe.GGUF_Q6_K)
    assert reason in f"{caught.value.message}\n{caught.value.detail}"


def test_a_gguf_may_have_what_some_versions_of_llama_cpp_make(tmp_path: Path) -> None:
    path = gguf_model(tmp_path / "model.gguf", **{"token_embd.weight": ("Q8_0", (4, 256)), "general.type": ...})
    assert check_gguf(path, Recipe.GGUF_Q6_K).shape.tied
    mixed = {"blk.0.ffn_down.weight": ("Q6_K", (256, 256)), "general.file_type": 15}
    others = {f"blk.0.{name}.weight": ("Q4_K", shape) for name, shape in
              {"attn_q": (256, 256), "attn_k": (128, 256), "attn_v": (128, 256), "attn_output": (256, 256),
               "ffn_gate": (256, 256), "ffn_up": (256, 256)}.items()}  # fmt: skip
    assert check_gguf(gguf_model(tmp_path / "model.gguf", **mixed, **others), Recipe.GGUF_Q4_K_M).form == "GGUF Q4_K_M"
