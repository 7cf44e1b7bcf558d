"""LoRA adapters as PEFT saves them: read with suspicion, and compared with the base that they are for."""

from __future__ import annotations

import hashlib
import math
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.artifacts import families
from orchestrator.artifacts.disk import host_errors
from orchestrator.artifacts.families import ModelConfig
from orchestrator.artifacts.json_file import read_json
from orchestrator.artifacts.safetensors import Checkpoint, Tensor
from orchestrator.core.artifact import source_of_files
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
    if directory.is_dir() and not file.exists():
        raise SourceError(
            f"{directory} is not an adapter: it has no {CONFIG}.",
            "An adapter is a directory that PEFT has saved: adapter_config.json and adapter_model.safetensors.",
        )
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
    open_weights(directory).close()
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


def open_weights(directory: Path) -> Checkpoint:
    """The adapter's tensors. SourceError if they are pickled, or are not there."""
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


def check_fits(directory: Path, adapter: Adapter, config: ModelConfig) -> None:
    """PlanRefused, with every problem, when the adapter does not belong to weights of this config."""
    with closing(open_weights(directory)) as checkpoint:
        try:
            fitting_tensors(checkpoint, adapter, config)
        except SourceError as error:
            raise PlanRefused(error.message, error.hint, error.detail) from error


def fitting_tensors(checkpoint: Checkpoint, adapter: Adapter, config: ModelConfig) -> list[tuple[str, Tensor]]:
    """(GGUF name, tensor) in the file's order of names; SourceError with every problem, a line each."""
    shapes = {
        name.removesuffix(".weight"): shape
        for name, shape in families.expected_tensors(config).items()
        if len(shape) == 2 and name != "model.embed_tokens.weight"
    }
    problems = []
    pairs = []
    for name, tensor in sorted(checkpoint.tensors.items()):
        module, part = linear_part(name)
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


def linear_part(name: str) -> tuple[str, str]:
    """(`model.layers.0.self_attn.q_proj`, `lora_a` or `lora_b`), or empty strings."""
    for suffix, part in _PARTS.items():
        if name.startswith(_PREFIX) and name.endswith(suffix):
            return name.removeprefix(_PREFIX).removesuffix(suffix), part
    return "", ""
