"""Whether a GGUF file is what it claims to be, told from its head."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from orchestrator.artifacts.claims import Facts, refuse
from orchestrator.artifacts.gguf_reader import GgufFile, GgufTensor
from orchestrator.artifacts.gguf_types import ENDS, FILE_TYPES, MAIN, SMALLER_BLOCKS, GgufQuant, scale_name
from orchestrator.core.artifact import Recipe
from orchestrator.core.weights import NO_SECOND_SCALE, Shape, shape_of

_QUANTS: dict[Recipe, GgufQuant] = {recipe: quant for quant in FILE_TYPES for recipe in Recipe if recipe.quant == quant}
_FLOATS = {GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16}
_SENSITIVE = (".attn_v.weight", ".ffn_down.weight")
# What a router of experts chooses by is never quantized.
_ROUTER = ".ffn_gate_inp.weight"
_DENSE = ("llama", "qwen2", "qwen3")


def check_gguf(path: Path, recipe: Recipe) -> Facts:
    """What the GGUF file says of itself; its tensors are not read.

    SourceError with every problem, a line each, if it is no sound file, or no whole model with its tokenizer, or if
    its tensors have other types than llama.cpp gives them in a file of this type.
    """
    quant = _QUANTS[recipe]
    with GgufFile.open(path) as file:
        shape = gguf_shape(file)
        problems = [*_identity_problems(file, quant), *_tokenizer_problems(file)]
        problems += [*_type_problems(file.tensors.values(), quant), *_scale_problems(file)]
        if shape is None:
            problems.append("its keys do not give the sizes of a transformer")
        else:
            problems += _shape_problems(file, shape)
        if problems or shape is None:
            refuse(path, f"{quant.upper()} model", problems)
        return Facts(
            form=f"GGUF {quant.upper()}",
            architecture=str(file.fields["general.architecture"]),
            shape=shape,
            parameters=sum(math.prod(tensor.shape) for tensor in file.tensors.values()),
            size=sum(tensor.size for tensor in file.tensors.values()),
        )


def gguf_shape(file: GgufFile) -> Shape | None:
    """The model's sizes as the keys tell them; None if they do not."""
    architecture = _single(file, "general.architecture")
    embedding = file.tensors.get("token_embd.weight")
    if not isinstance(architecture, str) or embedding is None or len(embedding.shape) != 2:
        return None

    def size(key: str) -> object:
        return _single(file, f"{architecture}.{key}")

    return shape_of(
        {
            "num_hidden_layers": size("block_count"),
            "hidden_size": size("embedding_length"),
            "num_attention_heads": size("attention.head_count"),
            "num_key_value_heads": size("attention.head_count_kv"),
            "head_dim": size("attention.key_length"),
            "intermediate_size": size("feed_forward_length"),
            "vocab_size": embedding.shape[0],
            "tie_word_embeddings": "output.weight" not in file.tensors,
            "max_position_embeddings": size("context_length"),
        }
    )


def _single(file: GgufFile, key: str) -> bool | int | float | str | None:
    """A value that is to be one: of a list, as some models have one for each layer, only that it is one."""
    value = file.fields.get(key)
    if isinstance(value, str) and not value.isprintable():
        return repr(value)
    return "a list" if isinstance(value, list | np.ndarray) else value


def file_type_name(number: object) -> str:
    """llama.cpp's name of a general.file_type, such as Q6_K."""
    names = {int(kind): kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in LlamaFileType}
    return names.get(number, str(number)[:80]) if isinstance(number, int) else "nothing"


def _identity_problems(file: GgufFile, quant: GgufQuant) -> list[str]:
    problems = []
    kind = _single(file, "general.type") or "model"
    if kind != "model":
        problems.append(f"general.type is {str(kind)[:80]}, not model")
    parts = _single(file, "split.count") or 1
    if parts != 1:
        problems.append(f"it is one of {str(parts)[:80]} parts; orch takes only whole GGUF files")
    found = _single(file, "general.file_type")
    if found != FILE_TYPES[quant]:
        problems.append(f"general.file_type says {file_type_name(found)}, not {file_type_name(FILE_TYPES[quant])}")
    return problems


def _tokenizer_problems(file: GgufFile) -> list[str]:
    tokens, model = file.fields.get("tokenizer.ggml.tokens"), file.fields.get("tokenizer.ggml.model")
    embedding = file.tensors.get("token_embd.weight")
    if not isinstance(tokens, list) or not tokens or not isinstance(model, str):
        return ["it has no tokenizer"]
    if embedding is not None and embedding.rows != len(tokens):
        return [f"it has {len(tokens)} tokens, and token_embd.weight {embedding.rows} rows"]
    return []


def _type_problems(tensors: Iterable[GgufTensor], quant: GgufQuant) -> list[str]:
    return [
        f"{tensor.name} is {tensor.dtype}, which no {quant.upper()} file has there"
        for tensor in tensors
        if not _is_plausible(tensor, quant)
    ]


def _scale_problems(file: GgufFile) -> list[str]:
    """NVFP4 without its second scale comes from ggml's own quantizer, and is much further from the weights; and not
    every architecture has it used."""
    problems = []
    architecture = _single(file, "general.architecture")
    if architecture in NO_SECOND_SCALE and any(scale_name(name) in file.tensors for name in file.tensors):
        problems.append(f"llama.cpp leaves out the second scale of NVFP4 in {architecture}: answers would be wrong")
    for tensor in file.tensors.values():
        if tensor.kind is GGMLQuantizationType.NVFP4:
            name = scale_name(tensor.name)
            scale = file.tensors.get(name)
            if scale is None:
                problems.append(f"{tensor.name} is NVFP4 without {name}: ggml's own quantizer made it of other weights")
            # One for each expert, where there are several.
            elif scale.kind is not GGMLQuantizationType.F32 or math.prod(scale.shape) != math.prod(tensor.shape[:-2]):
                problems.append(f"{name} is {scale.dtype} {list(scale.shape)}, not one F32")
    return problems


def _is_plausible(tensor: GgufTensor, quant: GgufQuant) -> bool:
    """Whether llama.cpp, in any of its versions, could have given this type. Many keep the two ends wider than it."""
    kind, main = tensor.kind, MAIN[quant]
    if len(tensor.shape) < 2 or tensor.name.endswith(_ROUTER):
        return kind in _FLOATS
    if kind is main:
        return True
    if tensor.row_items % GGML_QUANT_SIZES[main][0]:
        wider = GGMLQuantizationType.BF16 if quant == "nvfp4" else GGMLQuantizationType.Q8_0
        return kind in {GGMLQuantizationType.F16, wider, SMALLER_BLOCKS.get(main)}
    if tensor.name in ENDS:
        return _bits(kind) >= _bits(main)
    mixed = quant.endswith("_m") and tensor.name.endswith(_SENSITIVE)
    return mixed and kind in {GGMLQuantizationType.Q5_K, GGMLQuantizationType.Q6_K}


def _bits(kind: GGMLQuantizationType) -> float:
    items, size = GGML_QUANT_SIZES[kind]
    return 8 * size / items


def _shape_problems(file: GgufFile, shape: Shape) -> list[str]:
    """Of the dense architectures that orch knows: which matrices are missing or have other sizes than the keys say."""
    architecture = _single(file, "general.architecture")
    if architecture not in _DENSE or _single(file, f"{architecture}.expert_count"):
        return []
    if shape.layers > len(file.tensors):
        return [f"its keys say {shape.layers} layers, and there are {len(file.tensors)} tensors"]
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layer = {
        "attn_q": (queries, shape.hidden),
        "attn_k": (keys, shape.hidden),
        "attn_v": (keys, shape.hidden),
        "attn_output": (shape.hidden, queries),
        "ffn_gate": (shape.intermediate, shape.hidden),
        "ffn_up": (shape.intermediate, shape.hidden),
        "ffn_down": (shape.hidden, shape.intermediate),
    }
    wanted = {name: (shape.vocab, shape.hidden) for name in ENDS if name in file.tensors}
    wanted |= {f"blk.{n}.{name}.weight": size for n in range(shape.layers) for name, size in layer.items()}
    problems = []
    for name, size in wanted.items():
        found = file.tensors.get(name)
        if found is None:
            problems.append(f"{name} is missing")
        elif found.shape != size:
            problems.append(f"{name} is {list(found.shape)}, the keys imply {list(size)}")
    return problems
