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
    edit_json,
    gguf_model,
    quantizer,
    read_safetensors,
    write_safetensors,
)
from gguf import dequantize
from tiny_models import write_model

from orchestrator.artifacts.fp8_checkpoint import build_fp8
from orchestrator.artifacts.gguf_file import build_gguf
from orchestrator.artifacts.gguf_reader import GgufFile
from orchestrator.artifacts.inspection import Inspection, inspect, part_of
from orchestrator.artifacts.nvfp4_checkpoint import build_nvfp4
from orchestrator.artifacts.quantization_error import TensorError, compare, relative, sqnr
from orchestrator.artifacts.rows import to_float32
from orchestrator.core.progress import silent
from orchestrator.errors import SourceError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny weights as all that a test here needs."""
    directory = tmp_path_factory.mktemp("made")
    build_gguf(TINY, directory / "q4.gguf", "q4_k_m", quantizer(), silent)
    build_nvfp4(TINY, directory / "nvfp4", silent)
    build_fp8(TINY, directory / "fp8", silent)
    return directory


def sizes(found: Inspection) -> dict[str, tuple[int, int]]:
    return {part.part: (part.parameters, part.size) for part in found.parts}


def test_a_gguf_tells_what_it_holds(made: Path) -> None:
    found = inspect(made / "q4.gguf")
    assert (found.form, found.file_type, found.architecture) == ("GGUF, version 3", "Q4_K_M", "qwen3")
    assert (found.context, found.tokenizer, found.chat_template) == (2048, "gpt2/gpt-2, 4,096 tokens", True)
    assert found.types == {"Q4_K": 24, "F32": 17, "Q6_K": 5}
    assert found.parameters == 4_197_120
    assert sizes(found)["embedding"] == (4096 * 256, 4096 * 210)
    assert sizes(found)["norms"] == (2816, 4 * 2816)
    assert found.bits == pytest.approx(8 * found.size / 4_197_120)


@pytest.mark.parametrize(
    ("name", "form", "file_type", "bits"),
    [
        ("nvfp4", "NVFP4 of compressed-tensors, W4A16", "nvfp4a16", 4.5),
        ("fp8", "FP8 of compressed-tensors, dynamic activations", "fp8", 8.05),
    ],
)
def test_quantized_weights_are_counted_as_the_model_has_them(
    made: Path, name: str, form: str, file_type: str, bits: float
) -> None:
    found, plain = inspect(made / name), inspect(TINY)
    assert (plain.form, plain.file_type, plain.bits) == ("safetensors", "BF16", 16)
    assert (found.form, found.file_type, found.architecture) == (form, file_type, "Qwen3ForCausalLM")
    assert (found.context, found.tokenizer, found.chat_template) == (2048, "tokenizer.json", True)
    assert {part: counts[0] for part, counts in sizes(found).items()} == {
        part: counts[0] for part, counts in sizes(plain).items()
    }
    assert {part.part: part.bits for part in found.parts}["feed-forward"] == pytest.approx(bits, abs=0.01)


def test_a_directory_with_one_gguf_is_that_file(tmp_path: Path) -> None:
    gguf_model(tmp_path / "model.gguf")
    assert inspect(tmp_path).architecture == "qwen3"
    gguf_model(tmp_path / "second.gguf")
    with pytest.raises(SourceError, match="has 2 GGUF files"):
        inspect(tmp_path)


def test_one_shard_and_an_adapter_can_be_looked_at() -> None:
    shard = inspect(UNTIED / "model-00001-of-00003.safetensors")
    assert 0 < shard.parameters < inspect(UNTIED).parameters
    adapter = inspect(ASSETS / "lora-a")
    assert (adapter.form, [part.part for part in adapter.parts]) == ("LoRA adapter", ["attention"])


def test_what_says_nothing_is_shown_as_far_as_it_goes(tmp_path: Path) -> None:
    names = ("general.architecture", "general.file_type", "tokenizer.ggml.model", "tokenizer.ggml.tokens")
    found = inspect(gguf_model(tmp_path / "bare.gguf", **dict.fromkeys(names, ...)))
    assert (found.architecture, found.file_type, found.tokenizer, found.context) == ("", "", "", 0)
    assert found.parameters == 1 * 4 * 256 + 256 + 256 * 256 * 5 + 2 * 128 * 256


def test_a_text_that_would_move_the_cursor_is_shown_as_what_it_is(tmp_path: Path) -> None:
    found = inspect(gguf_model(tmp_path / "odd.gguf", **{"general.architecture": "\x1b[2Jqwen3"}))
    assert found.architecture == r"'\x1b[2Jqwen3'"


def test_damage_is_an_error_that_names_it(made: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes((made / "q4.gguf").read_bytes()[:-1000])
    with pytest.raises(SourceError, match="the file has"):
        inspect(tmp_path / "cut.gguf")


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("blk.0.attn_norm.weight", "norms"),
        ("blk.0.attn_q_norm.weight", "norms"),
        ("blk.0.attn_output.weight", "attention"),
        ("output.weight", "head"),
        ("output_norm.weight", "norms"),
        ("rope_freqs.weight", "other"),
        ("model.layers.3.self_attn.q_proj.weight_packed", "attention"),
        ("model.layers.3.input_layernorm.weight", "norms"),
        ("model.layers.3.mlp.up_proj.weight_scale", "feed-forward"),
        ("lm_head.weight", "head"),
        ("model.embed_tokens.weight", "embedding"),
    ],
)
def test_parts_are_told_by_names_of_both_worlds(name: str, part: str) -> None:
    assert part_of(name) == part


def by_part(errors: list[TensorError], part: str) -> list[float]:
    return [relative([error]) for error in errors if error.part == part]


def test_the_error_of_a_gguf_is_that_of_its_dequantized_tensors(made: Path) -> None:
    errors = compare(made / "q4.gguf", TINY, silent)
    weights = read_safetensors(TINY)
    theirs = {tensor.name: tensor for tensor in Reader(made / "q4.gguf").tensors}
    for layer, (name, part) in enumerate([("attn_q", "self_attn.q_proj"), ("ffn_down", "mlp.down_proj")]):
        stored, source = (
            theirs[f"blk.{layer}.{name}.weight"],
            to_float32(weights[f"model.layers.{layer}.{part}.weight"]),
        )
        expected = np.linalg.norm(dequantize(stored.data, stored.tensor_type) - source) / np.linalg.norm(source)
        assert by_part(errors, part.split(".")[1])[layer] == pytest.approx(float(expected), rel=1e-5)
    assert [error.part for error in errors][:3] == ["embed_tokens", "q_proj", "k_proj"]
    assert [error.layer for error in errors] == [None] + [layer for layer in range(4) for _ in range(7)]


def test_the_error_of_nvfp4_and_fp8_is_as_known(made: Path) -> None:
    nvfp4 = compare(made / "nvfp4", TINY, silent)
    linear = [error for error in nvfp4 if error.layer is not None]
    assert all(0.09 < relative([error]) < 0.1 for error in linear)
    assert 20 < sqnr(relative(linear)) < 21
    assert by_part(nvfp4, "embed_tokens") == [0]
    fp8 = [error for error in compare(made / "fp8", TINY, silent) if error.layer is not None]
    assert all(0.02 < relative([error]) < 0.03 for error in fp8)


def test_modelopts_names_give_the_same_error(made: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((made / "nvfp4" / name).read_bytes())
    edit_json(tmp_path / "config.json", quantization_config={"quant_method": "modelopt", "quant_algo": "W4A16_NVFP4"})
    rename_as_modelopt(made / "nvfp4", tmp_path)
    ours, theirs = compare(made / "nvfp4", TINY, silent), compare(tmp_path, TINY, silent)
    assert [relative([e]) for e in theirs] == pytest.approx([relative([e]) for e in ours], rel=1e-5)


def rename_as_modelopt(source: Path, out: Path) -> None:
    """Other names, and factors for divisors. The scales are bytes here as there; only their type's name is put back."""
    tensors = {}
    for name, tensor in read_safetensors(source).items():
        if name.endswith("_global_scale"):
            tensors[name.replace("weight_global_scale", "weight_scale_2")] = np.float32(1) / tensor
        else:
            tensors[name.removesuffix("_packed")] = tensor
    write_safetensors(out / "model.safetensors", tensors)
    raw = (out / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    for name, entry in header.items():
        if name.endswith("weight_scale"):
            entry["dtype"] = "F8_E4M3"
    text = json.dumps(header).encode()
    (out / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def test_rows_that_llama_cpp_reorders_are_compared_in_its_order(tmp_path: Path) -> None:
    source = write_model("llama-spm", tmp_path / "source")
    build_gguf(source, tmp_path / "bf16.gguf", "bf16", quantizer(), silent)
    errors = compare(tmp_path / "bf16.gguf", source, silent)
    assert len(errors) == 7 * 10 + 2
    assert all(error.difference == 0 < error.source for error in errors)


def test_an_artifact_of_another_model_is_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"embed_tokens\.weight is"):
        compare(made / "q4.gguf", UNTIED, silent)
    with pytest.raises(SourceError, match=r"has no model\.layers\.1"):
        compare(one_layer(tmp_path / "other"), TINY, silent)


def one_layer(directory: Path) -> Path:
    """The first layer of the tiny weights."""
    directory.mkdir()
    (directory / "config.json").write_bytes((TINY / "config.json").read_bytes())
    tensors = {
        name: tensor for name, tensor in read_safetensors(TINY).items() if ".layers." not in name or ".0." in name
    }
    write_safetensors(directory / "model.safetensors", tensors)
    return directory


def test_what_nothing_dequantizes_is_not_compared(tmp_path: Path) -> None:
    odd = gguf_model(tmp_path / "odd.gguf", **{"token_embd.weight": ("Q8_1", (4096, 256))})
    with pytest.raises(SourceError, match=r"token_embd\.weight is Q8_1, which cannot be compared"):
        compare(odd, TINY, silent)


def test_damaged_scales_are_an_error(made: Path, tmp_path: Path) -> None:
    raw = bytearray((made / "q4.gguf").read_bytes())
    with GgufFile.open(made / "q4.gguf") as file:
        at = file.tensors["blk.0.attn_q.weight"].offset
    # The scale of the first block is a half: here infinite.
    raw[at : at + 2] = b"\x00\x7c"
    (tmp_path / "damaged.gguf").write_bytes(raw)
    with pytest.raises(SourceError, match=r"layers\.0\.self_attn\.q_proj\.weight contains NaN or Inf"):
        compare(tmp_path / "damaged.gguf", TINY, silent)
