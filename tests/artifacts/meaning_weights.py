"""Weights described by what is done to those of a model in tests/assets, step by step: none are stored twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tiny_models import Model, random_tensors

Tensor = npt.NDArray[Any]
Tensors = dict[str, Tensor]

# There is no bfloat16 in numpy: its bits stand as uint16.
_DTYPES: dict[str, str] = {"BF16": "uint16", "F16": "float16", "F32": "float32", "I32": "int32"}
_NAMES = {name: dtype for dtype, name in _DTYPES.items()}


def write_weights(steps: list[list[Any]], directory: Path, assets: Path) -> None:
    """Does the steps in order. `save` writes what there is by then: later steps do not reach it."""
    tensors: Tensors = {}
    for verb, *rest in steps:
        match verb:
            case "take":
                tensors |= {name: value for file in sorted(assets.glob(rest[0])) for name, value in read(file).items()}
            case "random":
                tensors |= _random(rest[0], json.loads((directory / "config.json").read_bytes()))
            case "save":
                _save(tensors, directory / rest[0], rest[1:] or ["*"])
            case "shard":
                _shard(tensors, directory, *rest)
            case "index":
                _index(directory, *rest)
            case _:
                EDITS[verb](tensors, *rest)


def read(file: Path) -> Tensors:
    """All tensors of a safetensors file, in its order."""
    raw = file.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    header.pop("__metadata__", None)
    found: Tensors = {}
    for name, told in header.items():
        begin, end = told["data_offsets"]
        values = np.frombuffer(raw[start + begin : start + end], _DTYPES[told["dtype"]])
        found[name] = values.reshape(told["shape"])
    return found


def _save(tensors: Tensors, file: Path, patterns: list[str]) -> None:
    chosen = {name: value for name, value in tensors.items() if any(fnmatchcase(name, one) for one in patterns)}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, value in chosen.items():
        offsets = [end, end + value.nbytes]
        header[name] = {"dtype": _NAMES[value.dtype.name], "shape": list(value.shape), "data_offsets": offsets}
        end = offsets[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(value.tobytes() for value in chosen.values()))


def _shard(tensors: Tensors, directory: Path, limit: int, stem: str = "model") -> None:
    """Shards of at most `limit` bytes and their index, named as transformers names them."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, value in tensors.items():
        if shards[-1] and size + value.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += value.nbytes
    files = [f"{stem}-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    for file, names in zip(files, shards, strict=True):
        _save(tensors, directory / file, names)
    _index(directory, f"{stem}.safetensors.index.json", *files)


def _index(directory: Path, name: str, *files: str) -> None:
    held = {file: read(directory / file) for file in files}
    where = {tensor: file for file, tensors in held.items() for tensor in tensors}
    size = sum(value.nbytes for tensors in held.values() for value in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
    (directory / name).write_text(json.dumps(index, indent=2) + "\n")


def _copy(tensors: Tensors, name: str, to: str) -> None:
    tensors[to] = tensors[name]


def _drop(tensors: Tensors, pattern: str) -> None:
    for name in [name for name in tensors if fnmatchcase(name, pattern)]:
        del tensors[name]


def _prefix(tensors: Tensors, prefix: str) -> None:
    """Another name for every tensor, as wrappers leave it."""
    named = {prefix + name: value for name, value in tensors.items()}
    tensors.clear()
    tensors |= named


def _sorted(tensors: Tensors) -> None:
    ordered = dict(sorted(tensors.items()))
    tensors.clear()
    tensors |= ordered


def _roll(tensors: Tensors, name: str, rows: int) -> None:
    tensors[name] = np.roll(tensors[name], rows, axis=0)


def _rows(tensors: Tensors, name: str, count: int) -> None:
    """Rows of zeros at the end, or rows cut off there."""
    old = tensors[name]
    new = np.zeros((count, *old.shape[1:]), old.dtype)
    kept = min(count, len(old))
    new[:kept] = old[:kept]
    tensors[name] = new


def _row(tensors: Tensors, name: str, number: int, like: int, factor: float) -> None:
    """Row `number` is row `like`, times a factor: a token in the place of another."""
    new = tensors[name].copy()
    new[number] = as_dtype(as_float(tensors[name][like]) * np.float32(factor), _NAMES[new.dtype.name])
    tensors[name] = new


def _cast(tensors: Tensors, dtype: str, pattern: str = "*") -> None:
    for name, value in tensors.items():
        if fnmatchcase(name, pattern):
            tensors[name] = as_dtype(as_float(value), dtype)


def _merge(tensors: Tensors, adapter: str, scale: float) -> None:
    """What PEFT's merge_and_unload makes: weights and B A scale added in float32, the sum rounded."""
    factors = read(Path(__file__).parents[1] / "assets" / adapter / "adapter_model.safetensors")
    for name, low in factors.items():
        if not name.endswith("lora_A.weight"):
            continue
        target = name.removeprefix("base_model.model.").replace("lora_A.weight", "weight")
        dtype = _NAMES[tensors[target].dtype.name]
        high = factors[name.replace("lora_A", "lora_B")]
        delta = as_float(high) @ as_float(low) * np.float32(scale)
        tensors[target] = as_dtype(as_float(tensors[target]) + delta, dtype)


EDITS: dict[str, Callable[..., None]] = {
    "copy": _copy,
    "drop": _drop,
    "prefix": _prefix,
    "sorted": _sorted,
    "roll": _roll,
    "rows": _rows,
    "row": _row,
    "cast": _cast,
    "merge": _merge,
}


def as_float(values: Tensor) -> npt.NDArray[np.float32]:
    """The values as float32, in which all of the types are exact."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def as_dtype(values: npt.NDArray[np.float32], dtype: str) -> Tensor:
    """Rounded to the nearest, and to even between two."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return values.astype(_DTYPES[dtype])


def _random(seed: int, config: dict[str, Any]) -> Tensors:
    """The weights of a config.json, made anew from a seed."""
    biases = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj") if config["model_type"] == "qwen2" else ()
    return random_tensors(Model(config, "", seed, biases))
