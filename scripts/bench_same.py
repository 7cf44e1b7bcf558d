"""Whether two builds hold the same tensors: names, types, shapes and bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

from gguf import GGUFReader

from orchestrator.artifacts.safetensors import Checkpoint

Found = dict[str, tuple[str, tuple[int, ...], str]]


def differences(kind: str, ours: Path, theirs: Path) -> list[str]:
    """A line for each tensor that is not the same in both; empty when all are."""
    read = _gguf if kind == "gguf" else _safetensors
    one, other = read(ours), read(theirs)
    return [
        f"{name}: ours {one.get(name, 'missing')}, theirs {other.get(name, 'missing')}"
        for name in sorted(one.keys() | other.keys())
        if one.get(name) != other.get(name)
    ]


def _gguf(path: Path) -> Found:
    return {
        tensor.name: (
            tensor.tensor_type.name,
            tuple(int(size) for size in tensor.shape),
            hashlib.sha256(tensor.data.data).hexdigest(),
        )
        for tensor in GGUFReader(path).tensors
    }


def _safetensors(directory: Path) -> Found:
    with Checkpoint.open(directory) as checkpoint:
        return {
            tensor.name: (tensor.dtype, tensor.shape, hashlib.sha256(checkpoint.read(tensor).data).hexdigest())
            for tensor in checkpoint.tensors.values()
        }
