"""Adapters to be changed by tests, and what PEFT has said of adapters (scripts/make-adapter-oracles)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from artifact_files import ASSETS, write_safetensors

from orchestrator.artifacts.safetensors import Checkpoint

ADAPTERS = ASSETS / "adapters"
LORA_A = ASSETS / "lora-a"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

Tensors = Mapping[str, "np.ndarray[Any, Any]"]


@cache
def peft_oracles() -> dict[str, Any]:
    """What PEFT wrote and answered."""
    return dict(json.loads((ADAPTERS / "oracles.json").read_bytes()))


def tensors_of(directory: Path) -> dict[str, np.ndarray[Any, Any]]:
    """All tensors of an adapter, in their shapes."""
    with Checkpoint.open_files((directory / WEIGHTS,)) as checkpoint:
        return {name: checkpoint.read(tensor).reshape(tensor.shape) for name, tensor in checkpoint.tensors.items()}


def copy_of(adapter: Path, directory: Path) -> Path:
    """A writable copy."""
    return Path(shutil.copytree(adapter, directory))


def with_tensors(directory: Path, tensors: Tensors) -> Path:
    """The same directory with these tensors in place of its own."""
    write_safetensors(directory / WEIGHTS, dict(tensors))
    return directory
