from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifact_files import ASSETS, TINY, UNTIED, copy_tiny, edit_json, read_safetensors, write_safetensors

from orchestrator.artifacts.fp8 import dequantize_rows, quantize_rows
from orchestrator.artifacts.fp8_checkpoint import build_fp8
from orchestrator.artifacts.nvfp4 import round_bf16
from orchestrator.artifacts.rows import to_float32
from orchestrator.artifacts.safetensors import Checkpoint
from orchestrator.core.progress import silent
from orchestrator.errors import SourceError


@cache
def oracles() -> dict[str, Any]:
    return dict(json.loads((ASSETS / "oracles-fp8.json").read_bytes()))


@pytest.mark.parametrize(("source", "oracle"), [(TINY, "tiny"), (UNTIED, "untied")])
def test_tensors_are_those_of_llm_compressor_byte_for_byte(source: Path, oracle: str, tmp_path: Path) -> None:
    build_fp8(source, tmp_path, silent)
    original = read_safetensors(source)
    with Checkpoint.open(tmp_path) as checkpoint:
        made = {
            name: f"{tensor.dtype} {list(tensor.shape)} {hashlib.sha256(checkpoint.read(tensor).tobytes()).hexdigest()}"
            for name, tensor in checkpoint.tensors.items()
        }
    copied = {name for name in made if name not in oracles()[oracle]}
    assert {name: made[name] for name in made.keys() - copied} == oracles()[oracle]
    assert made.keys() == original.keys() | {name for name in oracles()[oracle] if name.endswith("_scale")}
    for name in copied:
        assert made[name].split()[-1] == hashlib.sha256(original[name].tobytes()).hexdigest(), name


def test_hard_rows_are_quantized_as_llm_compressor_does() -> None:
    hard = {name: base64.b64decode(text) for name, text in oracles()["hard rows"].items()}
    bits = np.frombuffer(hard["bf16"], np.uint16).reshape(12, 256)
    codes, scales = quantize_rows(to_float32(bits))
    assert codes.tobytes() == hard["codes"]
    assert (scales.view(np.uint32) >> 16).astype(np.uint16).tobytes() == hard["scales"]


def test_the_directory_is_what_vllm_loads(tmp_path: Path) -> None:
    build_fp8(UNTIED, tmp_path, silent)
    config = json.loads((tmp_path / "config.json").read_bytes())
    assert config.pop("quantization_config") == oracles()["quantization_config"]
    assert config == json.loads((UNTIED / "config.json").read_bytes())
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in UNTIED.iterdir()}


def test_what_is_read_back_is_within_half_a_step_of_the_weights() -> None:
    weight = to_float32(read_safetensors(TINY)["model.layers.0.mlp.up_proj.weight"])
    again = dequantize_rows(*quantize_rows(weight))
    # Three mantissa bits: 1/16 of the value; near zero half a step of the subnormals; and bf16's own 1/256.
    step = np.maximum(np.abs(weight) / 16, np.abs(weight).max(axis=1, keepdims=True) / 448 * 2.0**-10)
    assert (np.abs(again - weight) <= step * (1 + 2**-3)).all()
    assert 0.02 < np.linalg.norm(again - weight) / np.linalg.norm(weight) < 0.03


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_wider_weights_are_rounded_to_bf16_first(dtype: type[np.floating], tmp_path: Path) -> None:
    source = copy_tiny(tmp_path / "source")
    name = "model.layers.0.mlp.up_proj.weight"
    wide = np.random.default_rng(3).standard_normal((768, 256)).astype(dtype)
    write_safetensors(source / "model.safetensors", read_safetensors(source) | {name: wide})
    build_fp8(source, tmp_path / "wide", silent)
    codes, _ = quantize_rows(round_bf16(wide.astype(np.float32)))
    assert (read_safetensors(tmp_path / "wide")[name] == codes).all()


def test_nan_is_refused_and_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    source = copy_tiny(tmp_path / "source")
    tensors = read_safetensors(source)
    tensors["model.layers.2.mlp.down_proj.weight"][5, 7] = 0x7FC0
    write_safetensors(source / "model.safetensors", tensors)
    with pytest.raises(SourceError, match="NaN"):
        build_fp8(source, tmp_path / "out", silent)
    assert list((tmp_path / "out").iterdir()) == []
    edit_json(source / "config.json", model_type="other")
    with pytest.raises(SourceError):
        build_fp8(source, tmp_path / "out", silent)
