from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from artifact_files import (
    TINY,
    UNTIED,
    copy_narrow,
    copy_tiny,
    oracles,
    read_safetensors,
    write_safetensors,
)

from orchestrator.artifacts.nvfp4 import E2M1, E4M3, dequantize_rows, global_scale, quantize_rows, round_bf16, to_e4m3
from orchestrator.artifacts.nvfp4_checkpoint import build_nvfp4, read_nvfp4
from orchestrator.artifacts.rows import to_float32
from orchestrator.artifacts.safetensors import Checkpoint
from orchestrator.core.progress import silent
from orchestrator.errors import HostError, Interrupted, SourceError

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("source", "oracle"), [(TINY, "nvfp4a16"), (UNTIED, "untied/nvfp4a16")])
def test_tensors_are_those_of_llm_compressor_byte_for_byte(source: Path, oracle: str, tmp_path: Path) -> None:
    build_nvfp4(source, tmp_path, silent)
    expected = oracles()[oracle]["tensors"]
    with Checkpoint.open(tmp_path) as checkpoint:
        assert checkpoint.tensors.keys() == expected.keys()
        for name, tensor in checkpoint.tensors.items():
            assert tensor.dtype == expected[name]["dtype"], name
            assert list(tensor.shape) == expected[name].get("shape", list(tensor.shape)), name
            assert hashlib.sha256(checkpoint.read(tensor).tobytes()).hexdigest() == expected[name]["sha256"], name


def test_the_directory_is_what_vllm_loads(tmp_path: Path) -> None:
    build_nvfp4(TINY, tmp_path, silent)
    config = json.loads((tmp_path / "config.json").read_bytes())
    assert config.pop("quantization_config") == oracles()["nvfp4a16"]["quantization_config"]
    assert config == json.loads((TINY / "config.json").read_bytes())
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in TINY.iterdir()}
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / name).read_bytes() == (TINY / name).read_bytes()


def test_shards_follow_the_source_and_the_index_names_every_tensor(tmp_path: Path) -> None:
    build_nvfp4(UNTIED, tmp_path, silent)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_bytes())
    assert set(index["weight_map"].values()) == {file.name for file in UNTIED.glob("*.safetensors")}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in read_safetensors(tmp_path).values())


def test_layers_that_vllm_fuses_share_a_divisor_even_across_shards(tmp_path: Path) -> None:
    build_nvfp4(UNTIED, tmp_path, silent)
    tensors = read_safetensors(tmp_path)
    for layer in range(4):
        for group in (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")):
            names = [f"model.layers.{layer}.{module}.weight_global_scale" for module in group]
            assert len({tensors[name].item() for name in names}) == 1


def test_what_is_read_back_is_close_to_the_weights(tmp_path: Path) -> None:
    build_nvfp4(TINY, tmp_path, silent)
    original = read_safetensors(TINY)
    errors = []
    for name, bits in original.items():
        if "_proj" in name:
            weight = to_float32(bits)
            errors.append(np.linalg.norm(read_nvfp4(tmp_path, name) - weight) / np.linalg.norm(weight))
    assert len(errors) == 28
    assert min(errors) > 0.0935
    assert max(errors) < 0.0965


def test_reading_back_what_is_not_nvfp4_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no NVFP4 tensors"):
        read_nvfp4(TINY, "model.layers.0.mlp.up_proj.weight")


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_wider_weights_are_rounded_to_bf16_first(dtype: type[np.floating], tmp_path: Path) -> None:
    source = copy_tiny(tmp_path / "source")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors = read_safetensors(source)
    wide = np.random.default_rng(3).standard_normal((768, 256)).astype(dtype)
    write_safetensors(source / "model.safetensors", tensors | {name: wide})
    build_nvfp4(source, tmp_path / "wide", silent)
    bits = (round_bf16(wide.astype(np.float32)).view(np.uint32) >> 16).astype(np.uint16)
    write_safetensors(source / "model.safetensors", tensors | {name: bits})
    build_nvfp4(source, tmp_path / "rounded", silent)
    assert np.array_equal(read_nvfp4(tmp_path / "wide", name), read_nvfp4(tmp_path / "rounded", name))


def test_e4m3_is_the_nearest_value_and_ties_go_to_the_even_code() -> None:
    table = E4M3[:127].astype(np.float64)
    assert table[[0, 1, 8, 0x38, 0x7E]].tolist() == [0, 2**-9, 2**-6, 1, 448]
    middles = ((table[1:] + table[:-1]) / 2).astype(np.float32)
    beside = [np.nextafter(middles, np.float32(0)), np.nextafter(middles, np.float32(500))]
    values = np.unique(np.concatenate([table.astype(np.float32), middles, *beside, np.float32([449, 1000])]))
    distance = np.abs(values.astype(np.float64)[:, None] - table[None, :])
    nearest = distance == distance.min(axis=1, keepdims=True)
    expected = [next((c for c in np.flatnonzero(row) if c % 2 == 0), np.flatnonzero(row)[0]) for row in nearest]
    assert to_e4m3(values).tolist() == expected


def test_bf16_rounds_to_nearest_and_ties_to_even() -> None:
    bits = np.array([0x3F800000, 0x3F807FFF, 0x3F808000, 0x3F808001, 0x3F818000, 0xBF818000, 0], np.uint32)
    rounded = (round_bf16(bits.view(np.float32)).view(np.uint32) >> 16).tolist()
    assert rounded == [0x3F80, 0x3F80, 0x3F80, 0x3F81, 0x3F82, 0xBF82, 0]


def test_codes_are_the_nearest_values_and_ties_go_to_the_even_code() -> None:
    # With 6 in every block and a divisor of 1 the scale is exactly 1, so values are their own ratios.
    ties = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]
    rows = np.array([[6, *ties, -6, *(-tie for tie in ties)]], np.float32)
    packed, scales = quantize_rows(rows, np.float32(1))
    assert E4M3[scales].tolist() == [[1.0]]
    assert dequantize_rows(packed, scales, np.float32(1)).tolist() == [
        [6, 0, 1, 1, 2, 2, 4, 4, -6, -0.0, -1, -1, -2, -2, -4, -4]
    ]
    assert packed[0].tolist() == [0x07, 0x22, 0x44, 0x66, 0x8F, 0xAA, 0xCC, 0xEE]


def test_every_value_that_nvfp4_can_express_survives() -> None:
    rows = np.concatenate([E2M1, E2M1 * np.float32(0.5)]).reshape(1, 32)
    packed, scales = quantize_rows(rows, np.float32(1))
    assert np.array_equal(dequantize_rows(packed, scales, np.float32(1)), rows)


def test_a_layer_of_zeros_reads_back_as_zeros(tmp_path: Path) -> None:
    assert global_scale(0.0) == 1
    assert global_scale(1e-40) == 1
    source = copy_tiny(tmp_path / "source")
    name = "model.layers.0.mlp.down_proj.weight"
    tensors = read_safetensors(source)
    tensors[name][:] = 0
    write_safetensors(source / "model.safetensors", tensors)
    build_nvfp4(source, tmp_path / "out", silent)
    assert not read_nvfp4(tmp_path / "out", name).any()


def test_columns_not_divisible_by_a_block_are_refused(tmp_path: Path) -> None:
    source = copy_narrow(tmp_path / "source")
    with pytest.raises(SourceError, match="divisible by 16") as caught:
        build_nvfp4(source, tmp_path / "out", silent)
    assert len(caught.value.detail.splitlines()) == 4


@pytest.mark.parametrize("name", ["model.layers.2.mlp.up_proj.weight", "model.embed_tokens.weight"])
def test_nan_is_refused_by_tensor_name(name: str, tmp_path: Path) -> None:
    source = copy_tiny(tmp_path / "source")
    tensors = read_safetensors(source)
    tensors[name][1, 1] = 0x7FC0
    write_safetensors(source / "model.safetensors", tensors)
    with pytest.raises(SourceError, match=f"{name} contains NaN"):
        build_nvfp4(source, tmp_path / "out", silent)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("share", [0, 0.5, 0.9])
def test_an_interrupted_build_does_not_look_finished_and_can_be_repeated(share: float, tmp_path: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if done >= total * share:
            raise Interrupted

    build_nvfp4(UNTIED, tmp_path / "whole", silent)
    build_nvfp4(UNTIED, tmp_path / "out", silent)
    with pytest.raises(Interrupted):
        build_nvfp4(UNTIED, tmp_path / "out", stop)
    assert not (tmp_path / "out" / "config.json").exists()
    assert not [file for file in (tmp_path / "out").iterdir() if file.name.startswith(".")]
    build_nvfp4(UNTIED, tmp_path / "out", silent)
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes()


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}
    build_nvfp4(UNTIED, tmp_path, lambda what, done, total: seen.setdefault(what, []).append((done, total)))
    for steps in seen.values():
        assert steps == sorted(steps)
        assert steps[-1][0] == steps[-1][1]
    assert len(seen) == 1


def test_a_full_disk_is_a_host_error(tmp_path: Path) -> None:
    (tmp_path / ".model.safetensors.part").symlink_to("/dev/full")
    with pytest.raises(HostError, match="No space left"):
        build_nvfp4(TINY, tmp_path, silent)
    assert list(tmp_path.iterdir()) == []
