"""The dense model families that builders know: their configurations, and the names and shapes of their weights.

Qwen2, Qwen3, Llama, and Mistral without a sliding window. They are one transformer with small differences, and a
Family is the list of those.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.artifacts.json_file import read_json
from orchestrator.artifacts.rope import PLAIN, Rope, number, read_rope
from orchestrator.artifacts.safetensors import Checkpoint
from orchestrator.core.builders import UnknownToBuilder
from orchestrator.errors import SourceError

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
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_ROTATED = _QKV[:2]


@dataclass(frozen=True)
class Family:
    """What tells a family from the others.

    `architecture` is GGUF's word for it. `plain` are the values that a config.json must have where it says anything,
    `left_out` those that it may leave out. `pairs_apart`: its rotary pairs lie half a head apart in the weights, and
    llama.cpp wants them side by side. `ropes` are the ways of scaling positions that llama.cpp knows of it.
    """

    architecture: str
    class_name: str
    ropes: tuple[str, ...]
    plain: Mapping[str, object] = field(default_factory=dict)
    left_out: Mapping[str, object] = field(default_factory=dict)
    biased: tuple[str, ...] = ()
    head_norms: bool = False
    pairs_apart: bool = False
    writes_vocab_size: bool = False


_ROPE_THETA = {"rope_theta": 10000.0}

# By model_type, as config.json says it.
FAMILIES = {
    "qwen2": Family("qwen2", "Qwen2ForCausalLM", (PLAIN, "linear"), biased=_QKV),
    "qwen3": Family(
        "qwen3",
        "Qwen3ForCausalLM",
        (PLAIN, "linear"),
        plain={"attention_bias": False},
        left_out={"head_dim": 128},
        head_norms=True,
    ),
    "llama": Family(
        "llama",
        "LlamaForCausalLM",
        (PLAIN, "linear", "llama3"),
        plain={"mlp_bias": False, "pretraining_tp": 1},
        left_out=_ROPE_THETA,
        pairs_apart=True,
        writes_vocab_size=True,
    ),
    "mistral": Family(
        "llama",
        "MistralForCausalLM",
        (PLAIN, "linear"),
        plain={"sliding_window": None, "attention_bias": False},
        left_out=_ROPE_THETA,
        pairs_apart=True,
        writes_vocab_size=True,
    ),
}
QUANTIZED = ("quantization_config", "compression_config")
_PLAIN = {"use_sliding_window": False, "hidden_act": "silu", "partial_rotary_factor": 1.0}

# llama.cpp's converter gives the vocabulary of CodeLlama special tokens that no file of it names.
_CODE_LLAMA = 32016


@dataclass(frozen=True)
class ModelConfig:
    """What of config.json the builders need; sizes in elements. `biased` are the modules of a layer with a bias,
    `tells_head_dim` is whether the file (or its family) names the head's size."""

    family: Family
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope: Rope
    tie_word_embeddings: bool
    biased: tuple[str, ...] = ()
    tells_head_dim: bool = True


def read_config(directory: Path, quantized: bool = False) -> ModelConfig:
    """The checked config.json of a weights directory; `quantized` for whoever knows how its weights are stored.

    SourceError lists everything wrong with it at once; anything that a builder would silently get wrong
    (quantized weights, unknown scaling of positions, sliding windows, unexpected biases) is refused.
    """
    file = directory / "config.json"
    raw = read_json(file)
    if quantized:
        raw = {name: value for name, value in raw.items() if name not in QUANTIZED}
    family = _family(file, raw)
    problems = _refusals(raw, family)
    sizes = {name: _size(raw, name, problems) for name in _SIZES}
    heads = _heads(raw, family, sizes, problems)
    eps = number(raw, "rms_norm_eps", problems)
    rope = read_rope(raw, family.ropes, family.left_out.get("rope_theta"), problems)
    tied = raw.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        problems.append("tie_word_embeddings is neither true nor false")
    if problems:
        raise SourceError(
            f"{file} cannot be built from: {problems[0]}{' (and more)' if len(problems) > 1 else ''}.",
            "Use the original, unquantized weights of a dense model, or serve these with vLLM; llama.cpp's own tools "
            "make a GGUF file of others: orch build gguf DIR -o FILE --in-container, or --tools LLAMA_CPP",
            "\n".join(problems),
        )
    return ModelConfig(
        family,
        **sizes,
        **heads,
        rms_norm_eps=eps,
        rope=rope,
        tie_word_embeddings=tied,
        biased=family.biased or ((*_QKV, "self_attn.o_proj") if raw.get("attention_bias") else ()),
        tells_head_dim=family.architecture != "qwen2" or raw.get("head_dim") is not None,
    )


def refuse_other_class(file: Path, raw: Mapping[str, object]) -> None:
    """SourceError where config.json has the model_type of one family and the class of another: transformers goes by the
    first, vLLM by the second."""
    family, named = FAMILIES.get(str(raw.get("model_type"))), raw.get("architectures")
    others = [one.class_name for one in FAMILIES.values() if one is not family]
    if family is not None and isinstance(named, list) and any(name in others for name in named):
        raise SourceError(
            f"{file} says model_type {raw.get('model_type')!r} and architectures {named!r}: different models.",
            f'If it is the first, its architectures are ["{family.class_name}"]; else correct model_type.',
        )


def _family(file: Path, raw: Mapping[str, object]) -> Family:
    refuse_other_class(file, raw)
    family = FAMILIES.get(str(raw.get("model_type")))
    if family is None or raw.get("architectures") != [family.class_name]:
        known = ", ".join(one.class_name for one in FAMILIES.values())
        raise UnknownToBuilder(
            f"{file}: {raw.get('architectures')!r} of model_type {raw.get('model_type')!r} is not supported.",
            f"Builders know dense Qwen2, Qwen3, Llama and Mistral ({known}). Of other models, "
            "llama.cpp's own tools make a GGUF file: orch build gguf DIR -o FILE --in-container, or --tools LLAMA_CPP",
            _named(raw),
        )
    return family


def unknown_architecture(directory: Path) -> str:
    """What the config.json of a weights directory says that it is, if that is none of the families; nothing where it is
    one, or cannot be read."""
    try:
        file = directory / "config.json"
        _family(file, read_json(file))
    except UnknownToBuilder as error:
        return error.what
    except SourceError:
        return ""
    return ""


def _named(raw: Mapping[str, object]) -> str:
    """The architecture as people know it."""
    names = raw.get("architectures")
    if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
        return ", ".join(names)
    return f"model_type {raw.get('model_type')!r}"


_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
)


def _heads(raw: dict[str, Any], family: Family, sizes: dict[str, int], problems: list[str]) -> dict[str, int]:
    """head_dim and num_key_value_heads; Llama's first configurations have neither."""
    found = {name: value for name, value in raw.items() if value is not None or "head_dim" in family.left_out}
    hidden, count = sizes["hidden_size"], sizes["num_attention_heads"]
    implied: dict[str, object] = dict(family.left_out)
    if "head_dim" not in implied | found and hidden and count:
        if hidden % count:
            problems.append("hidden_size is not a multiple of num_attention_heads")
        implied["head_dim"] = hidden // count
    if family.pairs_apart and count:
        implied["num_key_value_heads"] = count
    heads = {name: _size(implied | found, name, problems) for name in ("num_key_value_heads", "head_dim")}
    if not problems and count % heads["num_key_value_heads"]:
        problems.append("num_attention_heads is not a multiple of num_key_value_heads")
    if heads["head_dim"] % 2:
        problems.append(f"head_dim is {heads['head_dim']}, which is odd")
    return heads


def _size(raw: Mapping[str, object], name: str, problems: list[str]) -> int:
    value = raw.get(name)
    if type(value) is not int or not 0 < value < 2**31:
        problems.append(f"{name} is {value!r}, not a positive size")
        return 0
    return value


def _refusals(raw: dict[str, Any], family: Family) -> list[str]:
    """What makes the weights something else than a plain dense model of this family."""
    problems = [f"the weights are quantized already ({name})" for name in QUANTIZED if raw.get(name) is not None]
    plain = {**_PLAIN, **family.plain}
    problems += [f"{name} is {raw[name]!r}" for name, value in plain.items() if raw.get(name, value) != value]
    if not isinstance(raw.get("attention_bias", False), bool):
        problems.append("attention_bias is neither true nor false")
    layers = raw.get("layer_types")
    if layers is not None and (not isinstance(layers, list) or any(kind != "full_attention" for kind in layers)):
        problems.append("layer_types has others than full_attention")
    if family.architecture == "llama" and raw.get("vocab_size") == _CODE_LLAMA:
        problems.append(f"vocab_size is {_CODE_LLAMA}: CodeLlama's tokens for filling in are named by no file")
    return problems


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name to shape of every tensor that the weights must hold; linear weights are [out, in]."""
    expected: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, config.hidden_size)}
    layer = _layer(config)
    for index in range(config.num_hidden_layers):
        for module, shape in layer.items():
            expected[f"model.layers.{index}.{module}.weight"] = shape
            if module in config.biased:
                expected[f"model.layers.{index}.{module}.bias"] = shape[:1]
    expected["model.norm.weight"] = (config.hidden_size,)
    if not config.tie_word_embeddings:
        expected[HEAD] = (config.vocab_size, config.hidden_size)
    return expected


def _layer(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The modules of one layer with the shapes of their weights."""
    hidden, wide = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    norms = dict.fromkeys(("input_layernorm", "post_attention_layernorm"), (hidden,))
    if config.family.head_norms:
        norms |= dict.fromkeys(("self_attn.q_norm", "self_attn.k_norm"), (config.head_dim,))
    return norms | {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
    }


def check(checkpoint: Checkpoint, config: ModelConfig) -> None:
    """SourceError with every missing, unexpected, wrong-shaped or non-float tensor, a line each.

    A head that tied weights carry anyway is for `head_is_own` to judge.
    """
    expected = expected_tensors(config)
    found = checkpoint.tensors
    problems = [f"missing: {name} {list(shape)}" for name, shape in expected.items() if name not in found]
    extra = found.keys() - expected.keys()
    if config.tie_word_embeddings:
        extra.discard(HEAD)
    # Saved by early Llama checkpoints; it follows from the configuration.
    extra = {name for name in extra if not name.endswith(".rotary_emb.inv_freq")}
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
            f"{checkpoint.files[0].parent} does not fit its config.json: {problems[0]}"
            f"{f' (and {len(problems) - 1} more)' if len(problems) > 1 else ''}.",
            _way_out(checkpoint, config),
            "\n".join(problems),
        )


def _way_out(checkpoint: Checkpoint, config: ModelConfig) -> str:
    """What to do about tensors that do not fit, by what they look like."""
    found = checkpoint.tensors
    embedding, head = found.get("model.embed_tokens.weight"), found.get(HEAD)
    if embedding is not None and embedding.rows != config.vocab_size:
        return (
            f"The embedding has {embedding.rows} rows: is that vocab_size in config.json? Where tokens were added, "
            "save the model again with transformers, which writes both."
        )
    if head is None and embedding is not None and not config.tie_word_embeddings:
        return (
            'If it was trained with the embedding as its head, config.json has to say "tie_word_embeddings": true; '
            "else its head is lost."
        )
    if embedding is None and head is not None:
        return "Save the model again with transformers: only its head is there, and that is the embedding as well."
    wrapped = next((name for name in found if name.startswith(_WRAPPERS)), "")
    if wrapped:
        return f"The names are those of a wrapper ({wrapped}): save the model that it wraps."
    return "Check that config.json belongs to these weights, or download both again."


# torch.compile, DDP and FSDP, PEFT.
_WRAPPERS = ("_orig_mod.", "module.", "base_model.model.")


def is_linear(name: str) -> bool:
    """Whether the tensor is the matrix of a layer's linear module; the head and the embedding are none."""
    layer = _LAYER.fullmatch(name.removesuffix(".weight"))
    return layer is not None and layer[2] in LINEAR


def gguf_name(name: str) -> str:
    """The GGUF name of a Hugging Face tensor: `model.layers.0.mlp.up_proj.weight` is `blk.0.ffn_up.weight`."""
    module, _, part = name.rpartition(".")
    layer = _LAYER.fullmatch(module)
    if layer is None:
        return f"{_TOP[module]}.{part}"
    return f"blk.{layer[1]}.{(LINEAR | _NORMS)[layer[2]]}.{part}"


def is_reordered(config: ModelConfig, name: str) -> bool:
    """Whether the rows of this tensor (or the elements of this bias) have another order in GGUF."""
    return config.family.pairs_apart and name.rpartition(".")[0].endswith(_ROTATED)
