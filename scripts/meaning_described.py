"""A directory that a tool has saved, in the words of tests/assets/meaning, so that none of its weights are stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from json_edits import edits
from meaning_weights import read
from meanings import ASSETS, contents

BASES = ("tiny-qwen3", "spm-tokenizer")
# Files of optimizers and of arguments, whose contents nothing here reads.
OPAQUE = {".pt", ".pth", ".bin"}
TOKENIZER = "tiny-qwen3/tokenizer.json"


def described(directory: Path, work: Path) -> dict[str, Any]:
    """Every file but the weights and their index, which the steps of the kind make again, without where this was."""
    found: dict[str, Any] = {}
    for file in sorted(directory.rglob("*")):
        name = str(file.relative_to(directory))
        if file.is_file() and file.suffix != ".safetensors" and not name.endswith(".safetensors.index.json"):
            found[name] = _file(file, work)
        elif file.name == "adapter_model.safetensors":
            found[name] = {"like": "lora-a/adapter_model.safetensors"}
    return found


def differing(made: Path, laid: Path) -> tuple[list[str], int]:
    """How the weights' files of two directories differ in layout, and how many values differ in all."""
    told, values = [], 0
    names = {str(file.relative_to(place)) for place in (made, laid) for file in place.rglob("*.safetensors*")}
    for name in sorted(names):
        if not (made / name).exists() or not (laid / name).exists():
            told.append(f"{name} is in one only")
        elif name.endswith(".json"):
            if _where(made / name) != _where(laid / name):
                told.append(f"{name} differs")
        else:
            one, other = read(made / name), read(laid / name)
            if [(k, v.dtype, v.shape) for k, v in one.items()] != [(k, v.dtype, v.shape) for k, v in other.items()]:
                told.append(f"{name}: {_first(list(one), list(other))}")
            values += sum(int((one[k] != other[k]).sum()) for k in one if k in other and one[k].shape == other[k].shape)
    return told, values


def _first(one: list[str], other: list[str]) -> str:
    pairs = zip(one, other, strict=False)
    return (
        f"{len(one)} and {len(other)} tensors; {next((pair for pair in pairs if pair[0] != pair[1]), 'types differ')}"
    )


def _where(index: Path) -> Any:
    return json.loads(index.read_bytes())["weight_map"]


def _file(file: Path, work: Path) -> Any:
    raw = file.read_bytes()
    if file.suffix in OPAQUE:
        return {"zeros": min(len(raw), 64)}
    for base in BASES:
        if (ASSETS / base / file.name).is_file() and (ASSETS / base / file.name).read_bytes() == raw:
            return {"like": f"{base}/{file.name}"}
    if raw == contents({"merges of": TOKENIZER}):
        return {"merges of": TOKENIZER}
    if file.suffix != ".json":
        return raw.decode().replace(str(work), "/models")
    value = json.loads(raw)
    if value == json.loads(contents({"vocabulary of": TOKENIZER})):
        return {"vocabulary of": TOKENIZER}
    forms: list[dict[str, Any]] = [{"json": value}]
    likes = [f"{base}/{file.name}" for base in BASES if (ASSETS / base / file.name).is_file()]
    forms += [{"like": like, **edits(json.loads((ASSETS / like).read_bytes()), value)} for like in likes]
    return min(forms, key=lambda form: len(json.dumps(form)))
