"""NVFP4 in a GGUF: the blocks that llama.cpp's converter makes of llm-compressor's checkpoint, and the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from artifact_files import (
    ASSETS,
    TINY,
    UNTIED,
    Reader,
    copy_narrow,
    copy_tiny,
    edit_json,
    gguf_metadata,
    gguf_tensors,
    quantizer,
    quantizer_library,
    read_safetensors,
    write_safetensors,
)
from gguf import GGMLQuantizationType, dequantize
from nvfp4_checkpoints import LAYOUTS, read_tensors, write_checkpoint, write_tensors
from tiny_models import MODELS, write_model

from orchestrator.artifacts import one_pass
from orchestrator.artifacts.builder import Builder
from orchestrator.artifacts.claims import is_nvfp4
from orchestrator.artifacts.families import gguf_name, is_linear
from orchestrator.artifacts.gguf_claims import check_gguf
from orchestrator.artifacts.gguf_file import build_gguf
from orchestrator.artifacts.gguf_nvfp4 import GgufNvfp4OutputSpec
from orchestrator.artifacts.gguf_repack import repacking
from orchestrator.artifacts.inspection import inspect
from orchestrator.artifacts.nvfp4_checkpoint import build_nvfp4, read_nvfp4
from orchestrator.artifacts.quantization_error import compare, relative
from orchestrator.core.artifact import Recipe
from orchestrator.core.progress import silent
from orchestrator.errors import SourceError

pytestmark = pytest.mark.slow

ORACLE = json.loads((ASSETS / "oracles-gguf-nvfp4.json").read_bytes())["gguf/nvfp4"]
# llama-smol has columns that no block divides.
FAMILIES = ("qwen3", "llama-spm", "llama-3", "llama-smol", "mistral")


def build(source: Path, out: Path) -> Path:
    one_pass.build(source, [GgufNvfp4OutputSpec(out, quantizer())], silent)
    return out


def repack(source: Path, out: Path) -> Path:
    with repacking(source) as work:
        work.write(out, quantizer(), silent)
    return out


def values(file: Path) -> dict[str, np.ndarray]:
    """The matrices as gguf reads them, times their scales."""
    tensors = {tensor.name: tensor for tensor in Reader(file).tensors}
    found = {}
    for name, tensor in tensors.items():
        if name.startswith("blk.") and name.endswith(".weight") and len(tensor.shape) == 2:
            scale = tensors.get(name.replace(".weight", ".scale"))
            rows = dequantize(tensor.data, tensor.tensor_type)
            found[name] = rows if scale is None else rows * scale.data
    return found


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(TINY, tmp_path_factory.mktemp("nvfp4") / "model.gguf")


def test_tensors_are_those_of_llama_cpp_byte_for_byte_and_in_order(tiny: Path) -> None:
    expected = {name: (tensor["type"], tensor["sha256"]) for name, tensor in ORACLE["tensors"].items()}
    assert list(gguf_tensors(tiny).items()) == list(expected.items())
    assert gguf_metadata(tiny)["general.file_type"] == ORACLE["file_type"]


def test_it_is_the_same_file_whatever_else_is_made_in_the_one_read(tiny: Path, tmp_path: Path) -> None:
    works = {recipe: tmp_path / recipe.value for recipe in Recipe if recipe.streamed}
    for work in works.values():
        work.mkdir()
    Builder(quantizer_library()).build_together(works, TINY, silent)
    assert (works[Recipe.GGUF_NVFP4] / "model.gguf").read_bytes() == tiny.read_bytes()
    assert Recipe.NVFP4A16 in works


@pytest.mark.parametrize("name", FAMILIES)
def test_its_weights_are_those_of_the_checkpoint_in_each_family(name: str, tmp_path: Path) -> None:
    """The checkpoint's weights as an F16 file, whose order of rows is llama.cpp's, differ by no more than F16 does."""
    source = write_model(name, tmp_path / name)
    build_nvfp4(source, tmp_path / "checkpoint", silent)
    widened = write_model(name, tmp_path / "widened")
    tensors = read_safetensors(source)
    tensors |= {weight: read_nvfp4(tmp_path / "checkpoint", weight) for weight in tensors if is_linear(weight)}
    write_safetensors(widened / "model.safetensors", tensors)
    build_gguf(widened, tmp_path / "f16.gguf", "f16", quantizer(), silent)
    found, expected = values(build(source, tmp_path / "nvfp4.gguf")), values(tmp_path / "f16.gguf")
    assert found.keys() == expected.keys()
    assert len(found) == 7 * MODELS[name].config["num_hidden_layers"]
    for weight, rows in found.items():
        assert np.allclose(rows, expected[weight], rtol=2**-11, atol=2**-24), weight


def test_columns_that_no_block_divides_are_bf16_with_the_very_weights_of_the_checkpoint(tmp_path: Path) -> None:
    build_nvfp4(UNTIED, tmp_path / "checkpoint", silent)
    file = build(UNTIED, tmp_path / "model.gguf")
    kinds = {tensor.name: tensor.tensor_type for tensor in Reader(file).tensors}
    # Of 608 columns.
    assert kinds["blk.0.ffn_down.weight"] is GGMLQuantizationType.BF16
    assert kinds["blk.0.ffn_up.weight"] is GGMLQuantizationType.NVFP4
    found = values(file)
    for weight in read_safetensors(UNTIED):
        if is_linear(weight):
            expected = read_nvfp4(tmp_path / "checkpoint", weight)
            assert np.allclose(found[gguf_name(weight)], expected, rtol=2**-21, atol=0), weight
    assert check_gguf(file, Recipe.GGUF_NVFP4).form == "GGUF NVFP4"


def test_columns_that_are_no_multiple_of_16_are_refused(tmp_path: Path) -> None:
    source = copy_narrow(tmp_path / "source")
    with pytest.raises(SourceError, match=r"down_proj\.weight \[256, 40\]: NVFP4 needs columns divisible by 16"):
        build(source, tmp_path / "model.gguf")
    assert list(tmp_path.iterdir()) == [source]


def test_qwen2_is_refused_because_llama_cpp_would_leave_out_scales(tmp_path: Path) -> None:
    """That it does is held by test_gguf_nvfp4_server.py."""
    source = write_model("qwen2-tied", tmp_path / "source")
    with pytest.raises(SourceError, match="leaves out the second scale of NVFP4 in Qwen2ForCausalLM"):
        build(source, tmp_path / "model.gguf")
    checkpoint = write_checkpoint(source, tmp_path / "checkpoint", "modelopt")
    with pytest.raises(SourceError, match="leaves out the second scale"):
        repack(checkpoint, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint_is_repacked_to_the_file_that_its_weights_make(layout: str, tiny: Path, tmp_path: Path) -> None:
    source = write_checkpoint(TINY, tmp_path / "source", layout)
    assert repack(source, tmp_path / "model.gguf").read_bytes() == tiny.read_bytes()
    work = tmp_path / "work"
    work.mkdir()
    Builder(quantizer_library()).build(Recipe.GGUF_NVFP4, source, work, silent)
    assert (work / "model.gguf").read_bytes() == tiny.read_bytes()


@pytest.mark.parametrize("name", ["llama-spm", "llama-smol"])
def test_rows_and_biases_of_a_repacked_checkpoint_lie_as_those_of_its_weights(name: str, tmp_path: Path) -> None:
    source = write_model(name, tmp_path / name)
    checkpoint = write_checkpoint(source, tmp_path / "checkpoint", "modelopt")
    built = gguf_tensors(build(source, tmp_path / "built.gguf"))
    assert gguf_tensors(repack(checkpoint, tmp_path / "repacked.gguf")) == built


def test_shards_are_repacked_in_the_order_of_their_source(tmp_path: Path) -> None:
    build_nvfp4(UNTIED, tmp_path / "checkpoint", silent)
    repacked = repack(tmp_path / "checkpoint", tmp_path / "repacked.gguf")
    assert repacked.read_bytes() == build(UNTIED, tmp_path / "built.gguf").read_bytes()


def test_scales_of_their_own_in_fused_weights_are_kept(tmp_path: Path) -> None:
    """ModelOpt may give q, k and v a scale each."""
    source = write_checkpoint(TINY, tmp_path / "source", "modelopt")
    tensors = read_tensors(source)
    name = "model.layers.1.self_attn.k_proj.weight_scale_2"
    dtype, shape, data = tensors[name]
    doubled = (np.frombuffer(data, "<f4") * 2).tobytes()
    write_tensors(source / "model.safetensors", tensors | {name: (dtype, shape, doubled)})
    found = {tensor.name: tensor.data.tobytes() for tensor in Reader(repack(source, tmp_path / "x.gguf")).tensors}
    assert found["blk.1.attn_k.scale"] == doubled
    assert found["blk.1.attn_q.scale"] == data


@pytest.mark.parametrize("scale", [0x7F, 0xFF, 0xB8])
def test_scales_that_are_nan_or_negative_are_refused(scale: int, tmp_path: Path) -> None:
    source = write_checkpoint(TINY, tmp_path / "source", "compressed-tensors")
    tensors = read_tensors(source)
    name = "model.layers.1.mlp.up_proj.weight_scale"
    dtype, shape, data = tensors[name]
    write_tensors(source / "model.safetensors", tensors | {name: (dtype, shape, data[:-1] + bytes([scale]))})
    with pytest.raises(SourceError, match=r"up_proj\.weight_scale has scales that are NaN or negative"):
        repack(source, tmp_path / "model.gguf")
    assert list(tmp_path.iterdir()) == [source]


def test_a_checkpoint_without_a_tensor_that_its_family_has_is_refused(tmp_path: Path) -> None:
    source = write_checkpoint(TINY, tmp_path / "source", "modelopt")
    tensors = read_tensors(source)
    del tensors["model.layers.2.self_attn.q_norm.weight"]
    write_tensors(source / "model.safetensors", tensors)
    with pytest.raises(SourceError, match=r"missing: model\.layers\.2\.self_attn\.q_norm\.weight"):
        repack(source, tmp_path / "model.gguf")


def test_a_checkpoint_means_what_its_files_say_as_weights_do(tmp_path: Path) -> None:
    """A template of the profile's takes the place of its own; a head of its own is kept, whatever config.json says."""
    source = write_checkpoint(TINY, tmp_path / "source", "modelopt")
    tensors = read_tensors(source)
    dtype, shape, data = tensors["model.embed_tokens.weight"]
    head = bytes(reversed(data[:64])) + data[64:]
    write_tensors(source / "model.safetensors", tensors | {"lm_head.weight": (dtype, shape, head)})
    with repacking(source, template="{{ messages }}") as work:
        work.write(tmp_path / "model.gguf", quantizer(), silent)
    assert gguf_metadata(tmp_path / "model.gguf")["tokenizer.chat_template"] == "{{ messages }}"
    found = {tensor.name: tensor for tensor in Reader(tmp_path / "model.gguf").tensors}
    assert found["output.weight"].tensor_type is GGMLQuantizationType.BF16
    assert found["output.weight"].data.tobytes() == head


def test_only_what_is_nvfp4_is_taken_for_it(tmp_path: Path) -> None:
    assert is_nvfp4(write_checkpoint(TINY, tmp_path / "nvfp4", "modelopt-older"))
    other = copy_tiny(tmp_path / "other")
    assert not is_nvfp4(other)
    edit_json(other / "config.json", quantization_config={"quant_method": "awq", "bits": 4})
    assert not is_nvfp4(other)
    assert not is_nvfp4(tmp_path)


def test_what_is_not_quantized_is_not_repacked(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="it is not quantized"):
        repack(TINY, tmp_path / "model.gguf")


def test_a_file_without_second_scales_is_not_what_it_should_be(tiny: Path, tmp_path: Path) -> None:
    """As ggml's own quantizer makes them."""
    other = tmp_path / "other.gguf"
    other.write_bytes(tiny.read_bytes().replace(b"blk.0.attn_q.scale", b"blk.0.attn_q.stale"))
    with pytest.raises(SourceError, match=r"attn_q\.weight is NVFP4 without blk\.0\.attn_q\.scale"):
        check_gguf(other, Recipe.GGUF_NVFP4)
    assert check_gguf(tiny, Recipe.GGUF_NVFP4).architecture == "qwen3"
    qwen2 = tmp_path / "qwen2.gguf"
    qwen2.write_bytes(tiny.read_bytes().replace(b"qwen3", b"qwen2"))
    with pytest.raises(SourceError, match="leaves out the second scale of NVFP4 in qwen2"):
        check_gguf(qwen2, Recipe.GGUF_NVFP4)
    with pytest.raises(SourceError, match=r"general\.file_type says NVFP4, not Q6_K"):
        check_gguf(tiny, Recipe.GGUF_Q6_K)


def test_inspection_counts_weights_and_not_their_scales(tiny: Path) -> None:
    found = inspect(tiny)
    assert (found.file_type, found.types) == ("NVFP4", {"NVFP4": 28, "F32": 45, "BF16": 1})
    assert found.parameters == 4_197_120
    # 4.5 bits, and 28 scales of 4 bytes in the layers.
    sizes = {part.part: part.size for part in found.parts}
    linear = 4_197_120 - 4096 * 256 - 2816
    assert sizes["attention"] + sizes["feed-forward"] == linear * 36 // 64 + 28 * 4


def test_its_error_is_that_of_the_checkpoint(tiny: Path, tmp_path: Path) -> None:
    build_nvfp4(TINY, tmp_path / "checkpoint", silent)
    found, expected = compare(tiny, TINY, silent), compare(tmp_path / "checkpoint", TINY, silent)
    assert relative(found) == pytest.approx(relative(expected), rel=1e-6)
    assert {one.kind for one in found} == {"NVFP4", "BF16"}
    assert 0.09 < relative([one for one in found if one.kind == "NVFP4"]) < 0.1


def test_one_quantization_is_told_from_others() -> None:
    assert Recipe.GGUF_NVFP4.same_weights(Recipe.NVFP4A16)
    assert Recipe.NVFP4.same_weights(Recipe.GGUF_NVFP4)
    assert Recipe.GGUF_Q6_K.same_weights(Recipe.GGUF_Q6_K)
    assert not Recipe.GGUF_NVFP4.same_weights(Recipe.GGUF_Q6_K)
    assert not Recipe.GGUF_Q6_K.same_weights(Recipe.GGUF_BF16)
