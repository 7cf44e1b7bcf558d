"""Tiny models with random weights, one per family and trait, made anew from a seed so that none is committed.

`scripts/make-oracles` feeds the same ones to the reference programs; `tests/assets/families.json` holds what they made.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from artifact_files import ASSETS, TINY, write_safetensors

from orchestrator.artifacts.tokenizer_bpe import LLAMA3_SPLIT, QWEN2_SPLIT

SPM = ASSETS / "spm-tokenizer"
SHARED = {"hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 512, "dtype": "bfloat16"}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Model:
    """What makes a tiny model: its config.json, its tokenizer, the name of that tokenizer's split in llama.cpp."""

    config: dict[str, Any]
    tokenizer: str
    seed: int
    biases: tuple[str, ...] = ()
    dtype: str = "BF16"
    special: dict[str, Any] = field(default_factory=dict)


def _config(kind: str, sizes: tuple[int, int, int, int, int, int], **more: Any) -> dict[str, Any]:
    layers, hidden, wide, heads, kv_heads, vocab = sizes
    names = {
        "qwen2": "Qwen2ForCausalLM",
        "qwen3": "Qwen3ForCausalLM",
        "llama": "LlamaForCausalLM",
        "mistral": "MistralForCausalLM",
    }
    return {
        "architectures": [names[kind]],
        "model_type": kind,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        **SHARED,
        **more,
    }


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_BOS = {"bos_token_id": 1, "eos_token_id": 2}

MODELS = {
    # 352 columns divide by no K-quant's block.
    "qwen2-tied": Model(
        _config("qwen2", (3, 256, 352, 4, 2, 600), rope_theta=1e6, tie_word_embeddings=True, eos_token_id=2),
        "qwen2",
        1,
        _QKV,
    ),
    # Nothing at all divides by 256, and the head is narrow too.
    "qwen2-narrow": Model(
        _config("qwen2", (2, 288, 320, 4, 4, 512), rope_theta=1e4, tie_word_embeddings=False, eos_token_id=2),
        "qwen2",
        2,
        _QKV,
    ),
    "qwen3": Model(
        _config("qwen3", (3, 256, 256, 2, 1, 512), rope_theta=1e6, tie_word_embeddings=False, eos_token_id=2)
        | {"head_dim": 128},
        "qwen2",
        7,
    ),
    # Grouped queries: q and k have different numbers of heads to reorder. Ten layers show all of the type policy.
    "llama-spm": Model(
        _config("llama", (10, 256, 256, 8, 2, 512), rope_theta=1e4, tie_word_embeddings=False, **_BOS), "spm", 3
    ),
    "llama-3": Model(
        _config("llama", (3, 256, 512, 4, 2, 560), rope_theta=5e5, tie_word_embeddings=True, rope_scaling=LLAMA3_ROPE)
        | {"bos_token_id": 0, "eos_token_id": 2},
        "llama-bpe",
        4,
        dtype="F16",
    ),
    # The vocabulary size by which llama.cpp's converter knows models that want no BOS.
    "llama-smol": Model(
        _config(
            "llama",
            (2, 32, 64, 4, 2, 49152),
            rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
            tie_word_embeddings=True,
            attention_bias=True,
            bos_token_id=1,
            eos_token_id=2,
        ),
        "smollm",
        5,
        (*_QKV, "self_attn.o_proj"),
    ),
    # Heads wider than hidden_size / heads, and a SentencePiece tokenizer that is there as tokenizer.json only.
    "mistral": Model(
        _config("mistral", (2, 256, 256, 4, 2, 520), rope_theta=1e4, tie_word_embeddings=False, **_BOS)
        | {"head_dim": 128, "sliding_window": None},
        "spm-json",
        6,
        dtype="F32",
    ),
}


def write_model(name: str, directory: Path) -> Path:
    """The model `name` as a Hugging Face directory."""
    model = MODELS[name]
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(model.config, indent=1))
    write_safetensors(directory / "model.safetensors", random_tensors(model))
    _write_tokenizer(model, directory)
    return directory


def shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Tensor name to shape, in the order in which they are made."""
    config = model.config
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim", hidden // config["num_attention_heads"])
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    layer = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        **(dict.fromkeys(("self_attn.q_norm", "self_attn.k_norm"), (head,)) if config["model_type"] == "qwen3" else {}),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
    }
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for number in range(config["num_hidden_layers"]):
        for module, shape in layer.items():
            found[f"model.layers.{number}.{module}.weight"] = shape
            if module in model.biases:
                found[f"model.layers.{number}.{module}.bias"] = shape[:1]
    found["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (config["vocab_size"], hidden)
    return found


def random_tensors(model: Model) -> dict[str, npt.NDArray[Any]]:
    """Weights of a size at which attention is peaked, so that a wrong order of its rows shows in every token."""
    bits = np.random.PCG64(model.seed)
    tensors: dict[str, npt.NDArray[Any]] = {}
    for name, shape in shapes(model).items():
        values = _random(bits, shape)
        if "norm" in name:
            values = 1 + values / 8
        elif name.endswith(".bias"):
            values = values / 2
        else:
            values = values * _gain(name) / shape[-1] ** 0.5
        tensors[name] = _as(model.dtype, values.astype(np.float32))
    return tensors


def _random(bits: np.random.PCG64, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Roughly normal, of variance 1, from the one stream that numpy promises never to change."""
    count = int(np.prod(shape))
    halves = bits.random_raw(count).view(np.uint32).reshape(*shape, 2).astype(np.float64) / 2**32 - 0.5
    return halves.sum(axis=-1) * 6**0.5


def _gain(name: str) -> float:
    if "q_proj" in name or "k_proj" in name:
        return 2.0
    return 4.0 if "embed_tokens" in name or "lm_head" in name else 1.0


def _as(dtype: str, values: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(np.float16) if dtype == "F16" else values


def write_adapter(base: str, directory: Path) -> Path:
    """A LoRA for all linear modules of a tiny model, as PEFT saves it."""
    model, rank = MODELS[base], 4
    bits = np.random.PCG64(model.seed)
    linear = {name: shape for name, shape in shapes(model).items() if "_proj.weight" in name}
    tensors: dict[str, npt.NDArray[Any]] = {}
    for name, (rows, columns) in linear.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{module}.lora_A.weight"] = _random(bits, (rank, columns)).astype(np.float32)
        tensors[f"{module}.lora_B.weight"] = _random(bits, (rows, rank)).astype(np.float32)
    directory.mkdir(parents=True)
    write_safetensors(directory / "adapter_model.safetensors", tensors)
    targets = sorted({name.split(".")[-2] for name in linear})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": targets, "bias": "none"}
    (directory / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": base}))
    return directory


def _write_tokenizer(model: Model, directory: Path) -> None:
    if model.tokenizer in ("spm", "spm-json"):
        names = ["tokenizer.json", "tokenizer_config.json"] + ["tokenizer.model"] * (model.tokenizer == "spm")
        for name in names:
            shutil.copyfile(SPM / name, directory / name)
        return
    raw = json.loads((TINY / "tokenizer.json").read_bytes())
    # Three special tokens, 256 bytes, and one token for each merge.
    kept = 500
    raw["model"]["vocab"] = {text: number for text, number in raw["model"]["vocab"].items() if number < kept}
    raw["model"]["merges"] = raw["model"]["merges"][: kept - 259]
    raw["pre_tokenizer"] = PRE_TOKENIZERS[model.tokenizer]
    if model.tokenizer == "llama-bpe":
        raw["model"]["ignore_merges"] = True
        # A word that merges do not reach: found only by whom looks words up as a whole first.
        raw["model"]["vocab"]["ZYXWQ"] = kept
        bos = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
        text = {"Sequence": {"id": "A", "type_id": 0}}
        special = {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}
        pair = [
            bos,
            text,
            {"SpecialToken": {"id": "<|endoftext|>", "type_id": 1}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ]
        template = {"type": "TemplateProcessing", "single": [bos, text], "pair": pair, "special_tokens": special}
        raw["post_processor"] = {"type": "Sequence", "processors": [BYTES | {"trim_offsets": False}, template]}
    (directory / "tokenizer.json").write_text(json.dumps(raw, ensure_ascii=False))
    names = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (directory / "tokenizer_config.json").write_text(json.dumps(names))


def _split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT2 = BYTES | {"use_regex": True}
PRE_TOKENIZERS: dict[str, Any] = {
    "gpt-2": GPT2,
    "qwen2": {"type": "Sequence", "pretokenizers": [_split(QWEN2_SPLIT), BYTES]},
    "llama-bpe": {"type": "Sequence", "pretokenizers": [_split(LLAMA3_SPLIT), BYTES]},
    "smollm": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, GPT2]},
}
