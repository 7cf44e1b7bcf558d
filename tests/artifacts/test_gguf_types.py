"""The type policy where no file of a test's size shows it; tests on whole files are in test_families."""

from __future__ import annotations

import pytest
from gguf import GGMLQuantizationType, LlamaFileType

from orchestrator.artifacts.gguf_types import FILE_TYPES, Attention, Quant, tensor_types
from orchestrator.core.artifact import Recipe


def values(quant: Quant, attention: Attention) -> str:
    """The type of attn_v in each layer, one digit each."""
    shapes = {f"blk.{layer}.attn_v.weight": (1024, 8192) for layer in range(attention.layers)}
    return "".join(kind.name[1] for kind in tensor_types(quant, shapes, attention).values())


def one(quant: Quant, name: str, columns: int, *others: str) -> GGMLQuantizationType:
    shapes = {name: (64, columns)} | dict.fromkeys(others, (64, columns))
    return tensor_types(quant, shapes, Attention("llama", 16, 8, 2))[name]


def test_every_recipe_of_a_gguf_has_its_file_type() -> None:
    assert set(FILE_TYPES) == {recipe.quant for recipe in Recipe if recipe.quant}
    assert FILE_TYPES["q4_k_m"] is LlamaFileType.MOSTLY_Q4_K_M


def test_more_bits_go_to_the_ends_and_to_every_third_layer_between() -> None:
    assert values("q4_k_m", Attention("llama", 32, 32, 8)) == "6666" + "446" * 8 + "6666"
    assert values("q5_k_m", Attention("qwen3", 36, 32, 8)) == "6666" + "556" * 9 + "66666"
    assert values("q4_k_m", Attention("llama", 4, 8, 8)) == "4466"


@pytest.mark.parametrize(
    ("attention", "plain"),
    [
        (Attention("llama", 80, 64, 8), "5"),
        (Attention("qwen2", 80, 64, 8), "5"),
        (Attention("llama", 80, 64, 64), "4"),
        (Attention("qwen3", 80, 64, 8), "4"),
        (Attention("llama", 79, 64, 8), "4"),
    ],
)
def test_the_shared_values_of_70b_models_are_kept_wider(attention: Attention, plain: str) -> None:
    assert set(values("q4_k_m", attention)) == {plain, "6"}
    assert set(values("q5_k_m", attention)) == {"5", "6"}


@pytest.mark.parametrize(
    ("quant", "columns", "expected"),
    [
        ("q4_k_m", 256, "Q4_K"),
        ("q4_k_m", 320, "Q5_0"),
        ("q4_k_m", 40, "F16"),
        ("q5_k_m", 320, "Q5_1"),
        ("q5_k_m", 40, "F16"),
        ("q6_k", 320, "Q8_0"),
        ("q6_k", 40, "F16"),
        ("q8_0", 320, "Q8_0"),
        ("q8_0", 40, "F16"),
        ("f16", 40, "F16"),
        ("bf16", 40, "BF16"),
    ],
)
def test_columns_that_no_block_divides_fall_back(quant: Quant, columns: int, expected: str) -> None:
    assert one(quant, "blk.3.ffn_up.weight", columns).name == expected


def test_what_is_the_head_is_kept_wider() -> None:
    assert one("q4_k_m", "token_embd.weight", 256).name == "Q6_K"
    assert one("q4_k_m", "token_embd.weight", 256, "output.weight").name == "Q4_K"
    assert one("q4_k_m", "output.weight", 256).name == "Q6_K"
    assert one("q4_k_m", "output.weight", 288).name == "Q8_0"
    assert one("q8_0", "output.weight", 256).name == "Q8_0"


def test_vectors_stay_float32() -> None:
    shapes = {"rope_freqs.weight": (64,), "blk.0.attn_q.bias": (2048,), "output_norm.weight": (2048,)}
    assert set(tensor_types("q4_k_m", shapes, Attention("llama", 1, 8, 8)).values()) == {GGMLQuantizationType.F32}
