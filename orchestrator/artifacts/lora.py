"""PEFT LoRA adapters: what they are, and their conversion to the GGUF adapters of llama.cpp."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

from orchestrator.artifacts import families
from orchestrator.artifacts.disk import host_errors, pwrite_all, replacing, reserve
from orchestrator.artifacts.families import ModelConfig
from orchestrator.artifacts.gguf_file import Output, aligned, places, write_head
from orchestrator.artifacts.json_file import read_json
from orchestrator.artifacts.safetensors import Checkpoint, Tensor, is_finite, read_finite, to_float32
from orchestrator.core.artifact import source_of_files
from orchestrator.core.progress import Progress
from orchestrator.errors import PlanRefused, SourceError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_PARTS = {".lora_A.weight": "lora_a", ".lora_B.weight": "lora_b"}

# Fields that change the mathematics away from W + alpha/r * B A; each is refused unless empty or false.
_VARIANTS = (
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "lora_bias",
    "fan_in_fan_out",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "arrow_config",
    "use_qalora",
    "use_bdlora",
    "monteclora_config",
    "velora_config",
)


@dataclass(frozen=True)
class Adapter:
    """A PEFT LoRA. `alpha` is effective: the weights change by alpha / rank * B A, rank-stabilized or not.

    `sha256` is over names and contents of the two files, so it identifies the adapter.
    """

    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    base: str
    sha256: str

    @property
    def source(self) -> str:
        """The `source` for `artifact_key`."""
        return f"dir:{self.sha256}"


def read_adapter(directory: Path) -> Adapter:
    """The adapter in a PEFT directory.

    SourceError if it is pickled, no LoRA, or a variant that engines would apply wrongly (DoRA, patterns, full
    modules, biases). Whether its tensors fit a base is for `check_fits`.
    """
    file = directory / CONFIG
    raw = read_json(file)
    problems = _refusals(raw)
    rank, alpha, targets = raw.get("r"), raw.get("lora_alpha"), raw.get("target_modules")
    if type(rank) is not int or not 0 < rank <= 4096:
        problems.append(f"r is {rank!r}")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < 1e9:
        problems.append(f"lora_alpha is {alpha!r}")
    if isinstance(targets, str):
        targets = [targets]
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        problems.append(f"target_modules is {targets!r}")
    if problems:
        raise SourceError(
            f"{file}: this adapter cannot be served: {problems[0]}{' (and more)' if len(problems) > 1 else ''}.",
            "Train a plain LoRA (peft_type LORA, bias none), or merge the adapter into its base model.",
            "\n".join(problems),
        )
    assert isinstance(rank, int)
    assert isinstance(alpha, int | float)
    assert isinstance(targets, list)
    _open(directory).close()
    return Adapter(
        rank,
        float(alpha) * math.sqrt(rank) if raw.get("use_rslora") else float(alpha),
        tuple(sorted(targets)),
        str(raw.get("base_model_name_or_path") or ""),
        _digest(directory),
    )


def _refusals(raw: dict[str, Any]) -> list[str]:
    problems = [f"{name} is {raw[name]!r}" for name in _VARIANTS if raw.get(name)]
    if raw.get("peft_type") != "LORA":
        problems.append(f"peft_type is {raw.get('peft_type')!r}, not LORA")
    if raw.get("bias", "none") != "none":
        problems.append(f"bias is {raw['bias']!r}")
    if not isinstance(raw.get("use_rslora", False), bool):
        problems.append(f"use_rslora is {raw['use_rslora']!r}")
    return problems


def _open(directory: Path) -> Checkpoint:
    if not (directory / WEIGHTS).is_file():
        pickled = (directory / "adapter_model.bin").exists()
        raise SourceError(
            f"{directory} has no {WEIGHTS}.",
            "Pickled adapters are never read: save it again with safe_serialization=True."
            if pickled
            else "Point to a directory that PEFT's save_pretrained has written.",
        )
    return Checkpoint.open_files((directory / WEIGHTS,))


def _digest(directory: Path) -> str:
    hashes = {}
    for name in (CONFIG, WEIGHTS):
        with host_errors(f"read {directory / name}"), (directory / name).open("rb") as file:
            hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return source_of_files(hashes).removeprefix("dir:")


def build_lora_gguf(
    adapter_dir: Path, base_config: ModelConfig, out: Path, progress: Progress, name: str | None = None
) -> None:
    """Converts a PEFT directory to a GGUF adapter in F16, which appears at `out` only when it is whole.

    rsLoRA is folded into adapter.lora.alpha. SourceError lists every tensor that does not fit the base.
    """
    adapter = read_adapter(adapter_dir)
    with _open(adapter_dir) as checkpoint, host_errors(f"write {out}"):
        pairs = _check(checkpoint, adapter, base_config)
        with replacing(out) as partial:
            writer = GGUFWriter(partial, base_config.family.architecture)
            writer.add_type(gguf.GGUFType.ADAPTER)
            writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
            if name:
                writer.add_name(name)
            writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, adapter.alpha)
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            outputs = [Output(name, GGMLQuantizationType.F16, tensor.shape, tensor.name) for name, tensor in pairs]
            offset = write_head(writer, outputs)
            _write_data(partial, places(outputs, offset), checkpoint, base_config, progress)


def check_fits(directory: Path, adapter: Adapter, config: ModelConfig) -> None:
    """PlanRefused, with every problem, when the adapter does not belong to weights of this config."""
    with closing(_open(directory)) as checkpoint:
        try:
            _check(checkpoint, adapter, config)
        except SourceError as error:
            raise PlanRefused(error.message, error.hint, error.detail) from error


def _check(checkpoint: Checkpoint, adapter: Adapter, config: ModelConfig) -> list[tuple[str, Tensor]]:
    """(GGUF name, tensor) in the file's order of names; SourceError with every problem, a line each."""
    shapes = {
        name.removesuffix(".weight"): shape
        for name, shape in families.expected_tensors(config).items()
        if len(shape) == 2 and name != "model.embed_tokens.weight"
    }
    problems = []
    pairs = []
    for name, tensor in sorted(checkpoint.tensors.items()):
        module, part = _module(name)
        shape = shapes.get(module)
        if shape is None or not part:
            problems.append(f"no such linear layer in the base: {name}")
            continue
        expected = (adapter.rank, shape[1]) if part == "lora_a" else (shape[0], adapter.rank)
        if tensor.shape != expected or tensor.dtype not in families.FLOATS:
            problems.append(f"{name} is {tensor.dtype} {list(tensor.shape)}, the base needs {list(expected)}")
        pairs.append((f"{families.gguf_name(f'{module}.weight')}.{part}", tensor))
    names = {name for name, _ in pairs}
    other = {"a": "b", "b": "a"}
    problems += [
        f"without its other half: {name}" for name in sorted(names) if name[:-1] + other[name[-1]] not in names
    ]
    if not pairs and not problems:
        problems.append("the adapter holds no tensors")
    if problems:
        raise SourceError(
            f"{checkpoint.files[0]}: {len(problems)} tensors do not fit the base: {problems[0]}"
            f"{' (and more)' if len(problems) > 1 else ''}.",
            f"Use the base that it was trained on{f', {adapter.base}' if adapter.base else ''}.",
            "\n".join(problems),
        )
    return pairs


def _module(name: str) -> tuple[str, str]:
    """(`model.layers.0.self_attn.q_proj`, `lora_a` or `lora_b`), or empty strings."""
    for suffix, part in _PARTS.items():
        if name.startswith(_PREFIX) and name.endswith(suffix):
            return name.removeprefix(_PREFIX).removesuffix(suffix), part
    return "", ""


def _write_data(
    path: Path,
    outputs: Mapping[str, tuple[Output, int]],
    checkpoint: Checkpoint,
    config: ModelConfig,
    progress: Progress,
) -> None:
    """Adapters are small: tensor by tensor, without threads."""
    tensors = [checkpoint.tensors[output.source] for output, _ in outputs.values()]
    total, done = sum(tensor.size for tensor in tensors), 0
    descriptor = os.open(path, os.O_WRONLY)
    try:
        reserve(descriptor, max(offset + aligned(output.size) for output, offset in outputs.values()))
        progress("converting", 0, total)
        for tensor, (_, offset) in zip(tensors, outputs.values(), strict=True):
            with np.errstate(over="ignore"):
                half = to_float32(read_finite(checkpoint, tensor, 0, tensor.rows)).astype(np.float16)
            if not is_finite(half):
                raise SourceError(f"{tensor.file}: {tensor.name} is too large for F16.")
            module, part = _module(tensor.name)
            # B's rows are the base's: where those have another order in GGUF, so have these.
            if part == "lora_b" and families.is_reordered(config, f"{module}.weight"):
                half = families.pairs_together(half, config.head_dim)
            pwrite_all(descriptor, half.data, offset)
            done += tensor.size
            progress("converting", done, total)
    finally:
        os.close(descriptor)
