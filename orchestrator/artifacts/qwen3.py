"""The dense Qwen3 architecture: its configuration, and the names and shapes that its weights must have."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.artifacts.json_file import read_json
from orchestrator.artifacts.safetensors import Checkpoint
from orchestrator.errors import SourceError

ARCHITECTURE = "Qwen3ForCausalLM"
FLOATS = ("BF16", "F16", "F32")
HEAD = "lm_head.weight"

# In a layer: Hugging Face module, GGUF name.
LINEAR = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_NORMS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
}
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Qwen3Config:
    """What of config.json the builders need; sizes in elements."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool


def read_config(directory: Path) -> Qwen3Config:
    """The checked config.json of a weights directory.

    SourceError lists everything wrong with it at once; anything that a builder would silently get wrong
    (quantized weights, scaled rope, sliding windows, biases) is refused.
    """
    file = directory / "config.json"
    raw = read_json(file)
    if raw.get("architectures") != [ARCHITECTURE] or raw.get("model_type") != "qwen3":
        raise SourceError(
            f"{file}: {raw.get('architectures')!r} of model_type {raw.get('model_type')!r} is not supported.",
            f"Builders know dense Qwen3 ({ARCHITECTURE}, such as Qwen/Qwen3-8B). Of other models, "
            "llama.cpp's own tools make a GGUF file: orch build gguf DIR -o FILE --in-container",
        )
    problems = _refusals(raw)
    sizes = {name: _size(raw, name, problems) for name in _SIZES}
    sizes["head_dim"] = _size({"head_dim": 128} | raw, "head_dim", problems)
    if not problems and sizes["num_attention_heads"] % sizes["num_key_value_heads"]:
        problems.append("num_attention_heads is no multiple of num_key_value_heads")
    eps = _number(raw, "rms_norm_eps", problems)
    rope = raw.get("rope_parameters") or {}
    theta = _number(rope | raw, "rope_theta", problems)
    if rope.get("rope_theta", theta) != theta:
        problems.append(f"rope_theta is {theta}, in rope_parameters {rope['rope_theta']}")
    tied = raw.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        problems.append("tie_word_embeddings is neither true nor false")
    if problems:
        raise SourceError(
            f"{file} cannot be built from: {problems[0]}{' (and more)' if len(problems) > 1 else ''}.",
            "Use the original, unquantized weights of a dense Qwen3.",
            "\n".join(problems),
        )
    return Qwen3Config(**sizes, rms_norm_eps=eps, rope_theta=theta, tie_word_embeddings=tied)


_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
)


def _size(raw: dict[str, Any], name: str, problems: list[str]) -> int:
    value = raw.get(name)
    if type(value) is not int or not 0 < value < 2**31:
        problems.append(f"{name} is {value!r}, not a positive size")
        return 0
    return value


def _number(raw: dict[str, Any], name: str, problems: list[str]) -> float:
    value = raw.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
        problems.append(f"{name} is {value!r}, not a positive number")
        return 0.0
    return float(value)


def _refusals(raw: dict[str, Any]) -> list[str]:
    """What makes the weights something else than a plain dense Qwen3."""
    problems = [
        f"the weights are quantized already ({name})"
        for name in ("quantization_config", "compression_config")
        if raw.get(name) is not None
    ]
    for name in ("rope_scaling", "rope_parameters"):
        rope = raw.get(name)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            problems.append(f"{name} is not an object")
            raw[name] = None
        elif rope.get("rope_type", rope.get("type", "default")) != "default" or (
            rope.keys() - {"rope_type", "type", "rope_theta"}
        ):
            problems.append(f"{name} asks for scaled positions: {rope!r}")
    plain = {"attention_bias": False, "use_sliding_window": False, "hidden_act": "silu", "partial_rotary_factor": 1.0}
    problems += [f"{name} is {raw[name]!r}" for name, value in plain.items() if raw.get(name, value) != value]
    layers = raw.get("layer_types")
    if layers is not None and (not isinstance(layers, list) or any(kind != "full_attention" for kind in layers)):
        problems.append("layer_types holds others than full_attention")
    return problems


def expected_tensors(config: Qwen3Config) -> dict[str, tuple[int, ...]]:
    """Name to shape of every tensor that the weights must hold; linear weights are [out, in]."""
    hidden, wide = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
        "self_attn.q_norm": (config.head_dim,),
        "self_attn.k_norm": (config.head_dim,),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
    }
    expected: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for number in range(config.num_hidden_layers):
        expected |= {f"model.layers.{number}.{module}.weight": shape for module, shape in layer.items()}
    expected["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        expected[HEAD] = (config.vocab_size, hidden)
    return expected


def check(checkpoint: Checkpoint, config: Qwen3Config) -> None:
    """SourceError with every missing, unexpected, wrong-shaped or non-float tensor, a line each.

    A head that tied weights carry anyway is a copy of the embedding and is let pass.
    """
    expected = expected_tensors(config)
    found = checkpoint.tensors
    problems = [f"missing: {name} {list(shape)}" for name, shape in expected.items() if name not in found]
    extra = found.keys() - expected.keys()
    if config.tie_word_embeddings:
        extra.discard(HEAD)
    problems += [f"unexpected: {name} {list(found[name].shape)}" for name in sorted(extra)]
    for name, shape in expected.items():
        if name not in found:
            continue
        if found[name].shape != shape:
            problems.append(f"wrong shape: {name} is {list(found[name].shape)}, config.json implies {list(shape)}")
        if found[name].dtype not in FLOATS:
            problems.append(f"wrong type: {name} is {found[name].dtype}, not one of {', '.join(FLOATS)}")
    if problems:
        raise SourceError(
            f"{checkpoint.files[0].parent}: {len(problems)} tensors do not fit config.json: {problems[0]}"
            f"{' (and more)' if len(problems) > 1 else ''}.",
            "Check that config.json belongs to these weights, or download both again.",
            "\n".join(problems),
        )


def gguf_name(name: str) -> str:
    """The GGUF name of a Hugging Face tensor of this architecture."""
    module = name.removesuffix(".weight")
    layer = _LAYER.fullmatch(module)
    if layer is None:
        return f"{_TOP[module]}.weight"
    return f"blk.{layer[1]}.{(LINEAR | _NORMS)[layer[2]]}.weight"
