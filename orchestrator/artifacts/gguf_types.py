"""Which ggml type each tensor of a dense model gets: the policy of llama.cpp's converter and quantizer.

Its converter makes f16, bf16 and q8_0, the same type for every matrix, and of an NVFP4 checkpoint nvfp4: what is 4-bit
there stays so, embedding and head stay BF16. Its quantizer makes the rest (llama_tensor_get_type in
src/llama-quant.cpp) and spends more bits where errors cost most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

# What each tensor becomes by itself; NVFP4 shares a scale between those that engines fuse (see gguf_nvfp4.py).
Quant = Literal["f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m"]
GgufQuant = Literal[Quant, "nvfp4"]
Shape = tuple[int, ...]

FILE_TYPES: dict[GgufQuant, LlamaFileType] = {
    "f16": LlamaFileType.MOSTLY_F16,
    "bf16": LlamaFileType.MOSTLY_BF16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q6_k": LlamaFileType.MOSTLY_Q6_K,
    "q5_k_m": LlamaFileType.MOSTLY_Q5_K_M,
    "q4_k_m": LlamaFileType.MOSTLY_Q4_K_M,
    "nvfp4": LlamaFileType.MOSTLY_NVFP4,
}

# What the converter writes by itself; the others need a pass of the quantizer over its file.
CONVERTED: frozenset[GgufQuant] = frozenset({"f16", "bf16", "q8_0", "nvfp4"})

MAIN: dict[GgufQuant, GGMLQuantizationType] = {
    "f16": GGMLQuantizationType.F16,
    "bf16": GGMLQuantizationType.BF16,
    "q8_0": GGMLQuantizationType.Q8_0,
    "q6_k": GGMLQuantizationType.Q6_K,
    "q5_k_m": GGMLQuantizationType.Q5_K,
    "q4_k_m": GGMLQuantizationType.Q4_K,
    "nvfp4": GGMLQuantizationType.NVFP4,
}

# Embedding and head.
ENDS = ("token_embd.weight", "output.weight")

# For columns that no block of the wanted type divides.
SMALLER_BLOCKS = {
    GGMLQuantizationType.Q4_K: GGMLQuantizationType.Q5_0,
    GGMLQuantizationType.Q5_K: GGMLQuantizationType.Q5_1,
    GGMLQuantizationType.Q6_K: GGMLQuantizationType.Q8_0,
}

# Every type that needs the quantizer.
QUANTIZED = tuple(
    dict.fromkeys([*(MAIN[quant] for quant in ("q8_0", "q6_k", "q5_k_m", "q4_k_m")), *SMALLER_BLOCKS.values()])
)


@dataclass(frozen=True)
class Attention:
    """What the policy wants to know of a model besides its tensors; `architecture` as in general.architecture."""

    architecture: str
    layers: int
    heads: int
    kv_heads: int

    @property
    def counts_as_70b(self) -> bool:
        """llama.cpp tells its 70B class by the layers; there many heads share one attn_v, which is kept wider."""
        grouped = self.architecture == "llama" and self.heads != self.kv_heads
        return self.layers == 80 and (grouped or self.architecture == "qwen2")


def tensor_types(
    quant: GgufQuant, shapes: Mapping[str, Shape], attention: Attention
) -> dict[str, GGMLQuantizationType]:
    """GGUF tensor name to type, for shapes with the outermost dimension first.

    Vectors (norms, biases, rope factors) are F32. Where llama.cpp's quantizer would stop because columns fit no
    block at all, F16 is taken, as its converter does; beside NVFP4 it is BF16.
    """
    tied = "output.weight" not in shapes
    return {name: _type(quant, name, shape, attention, tied) for name, shape in shapes.items()}


def scale_name(weight: str) -> str:
    """The name of the scale that belongs to an NVFP4 weight: one number, by which llama.cpp multiplies."""
    return f"{weight.removesuffix('.weight')}.scale"


def _type(quant: GgufQuant, name: str, shape: Shape, attention: Attention, tied: bool) -> GGMLQuantizationType:
    if len(shape) < 2:
        return GGMLQuantizationType.F32
    main, columns = MAIN[quant], shape[-1]
    if quant == "nvfp4":
        return main if name not in ENDS and _divides(main, columns) else GGMLQuantizationType.BF16
    if quant in CONVERTED:
        return main if _divides(main, columns) else GGMLQuantizationType.F16
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        wanted = GGMLQuantizationType.Q6_K
    elif name.endswith((".attn_v.weight", ".ffn_down.weight")):
        wanted = _sensitive(quant, name, attention)
    else:
        wanted = main
    return next(kind for kind in _from_wanted(wanted) if _divides(kind, columns))


def _sensitive(quant: GgufQuant, name: str, attention: Attention) -> GGMLQuantizationType:
    """Of the values and of what leaves the feed-forward: Q6_K in some layers, the main type in the others."""
    layer = int(name.split(".")[1])
    if _more_bits(layer, attention.layers):
        return GGMLQuantizationType.Q6_K
    if quant == "q4_k_m" and name.endswith(".attn_v.weight") and attention.counts_as_70b:
        return GGMLQuantizationType.Q5_K
    return MAIN[quant]


def _more_bits(layer: int, layers: int) -> bool:
    """The first eighth, the last eighth, and every third layer between them."""
    first = layers // 8
    return layer < first or layer >= 7 * layers // 8 or (layer - first) % 3 == 2


def _from_wanted(wanted: GGMLQuantizationType) -> list[GGMLQuantizationType]:
    """What is tried in turn."""
    return [wanted, SMALLER_BLOCKS.get(wanted, GGMLQuantizationType.F16), GGMLQuantizationType.F16]


def _divides(kind: GGMLQuantizationType, columns: int) -> bool:
    return columns % GGML_QUANT_SIZES[kind][0] == 0
