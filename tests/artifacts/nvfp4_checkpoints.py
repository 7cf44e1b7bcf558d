"""Checkpoints that are NVFP4 already, in the layouts in which they are published, with the same weights in each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from artifact_files import raw_safetensors

from orchestrator.artifacts.nvfp4_checkpoint import build_nvfp4
from orchestrator.artifacts.safetensors import Checkpoint
from orchestrator.core.progress import silent

# Tensor name to (dtype, shape, bytes).
Tensors = dict[str, tuple[str, list[int], bytes]]

_MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head", "model.embed_tokens"]}
LAYOUTS = ("compressed-tensors", "compressed-tensors-w4a4", "modelopt", "modelopt-older")


def write_checkpoint(source: Path, directory: Path, layout: str) -> Path:
    """The weights in `source` as NVFP4, in one of LAYOUTS: compressed-tensors without and with scales of activations;
    ModelOpt, whose config.json says so, or only a file of its own."""
    build_nvfp4(source, directory, silent)
    if layout == "compressed-tensors":
        return directory
    config = json.loads((directory / "config.json").read_bytes())
    tensors = read_tensors(directory)
    for file in directory.glob("model*.safetensors*"):
        file.unlink()
    if layout == "compressed-tensors-w4a4":
        group = config["quantization_config"]["config_groups"]["NVFP4A16"]
        group["input_activations"] = {"num_bits": 4, "type": "float", "dynamic": "local", "group_size": 16}
        layers = [name for name in tensors if name.endswith(".weight_global_scale")]
        tensors |= {name.replace("weight_", "input_"): f32(3.0) for name in layers}
    else:
        tensors = _as_modelopt(tensors)
        del config["quantization_config"]
        if layout == "modelopt":
            config["quantization_config"] = _MODELOPT
        else:
            text = json.dumps({"quantization": {"quant_algo": "NVFP4", "group_size": 16}})
            (directory / "hf_quant_config.json").write_text(text)
    write_tensors(directory / "model.safetensors", tensors)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def _as_modelopt(tensors: Tensors) -> Tensors:
    made: Tensors = {}
    for name, (dtype, shape, data) in tensors.items():
        if name.endswith("_packed"):
            made[name.removesuffix("_packed")] = dtype, shape, data
        elif name.endswith("_global_scale"):
            weight = name.removesuffix("_global_scale")
            # A factor here, where the other is a divisor.
            made[f"{weight}_scale_2"] = "F32", [], (np.float32(1) / np.frombuffer(data, "<f4")).tobytes()
            made[weight.removesuffix("weight") + "input_scale"] = "F32", [], f32(0.5)[2]
        else:
            made[name] = dtype, shape, data
    layer = "model.layers.0.self_attn"
    return made | {f"{layer}.k_proj.k_scale": f32(1.0), f"{layer}.v_proj.v_scale": f32(1.0)}


def f32(value: float) -> tuple[str, list[int], bytes]:
    """One number, as a tensor."""
    return "F32", [1], np.float32(value).tobytes()


def read_tensors(directory: Path) -> Tensors:
    """All tensors of a directory."""
    with Checkpoint.open(directory) as checkpoint:
        return {
            name: (tensor.dtype, list(tensor.shape), checkpoint.read(tensor).tobytes())
            for name, tensor in checkpoint.tensors.items()
        }


def write_tensors(path: Path, tensors: Tensors) -> None:
    """One file of them."""
    header: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    path.write_bytes(raw_safetensors(header, b"".join(data for _, _, data in tensors.values())))
