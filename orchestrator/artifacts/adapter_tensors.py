"""The tensors of an adapter by what they are, whatever wrappers have written before their names.

PEFT's own names are base_model.model.MODULE.lora_A.weight and lora_B.weight; of modules that were saved as a whole
base_model.model.MODULE.weight.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from orchestrator.artifacts.adapter_config import AdapterConfig
from orchestrator.artifacts.adapter_problems import Problem, refuse
from orchestrator.artifacts.safetensors import Checkpoint, Tensor

# torch.compile, DistributedDataParallel and DeepSpeed, FSDP and checkpointed activations put these before a module.
_WRAPPERS = frozenset({"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_PREFIX = "base_model.model."
# Parts of a model with a head, which one without a head has at its root.
_BODY = ("layers", "embed_tokens", "norm")
_HALVES = ("lora_A", "lora_B")
_TOKENS = ("token_adapter", "trainable_tokens_delta", "trainable_tokens_original")
_ONE_SAVE = "Take adapter_config.json and adapter_model.safetensors from one and the same save_pretrained."


class Half(NamedTuple):
    """A or B of a module's LoRA; `adapter` is PEFT's name of the adapter, where the file has kept it."""

    module: str
    letter: str
    tensor: Tensor
    adapter: str = ""

    @property
    def name(self) -> str:
        """PEFT's own name for it."""
        return f"{_PREFIX}{self.module}.lora_{self.letter}.weight"

    @property
    def other(self) -> tuple[str, str]:
        """What it is nothing without."""
        return self.module, "AB"["BA".index(self.letter)]


class Copy(NamedTuple):
    """A tensor of the base, by its name there, that was saved as a whole."""

    name: str
    tensor: Tensor


@dataclass(frozen=True)
class AdapterTensors:
    """What an adapter's file holds, in the order of PEFT's own names."""

    halves: tuple[Half, ...]
    copies: tuple[Copy, ...]

    @property
    def canonical(self) -> bool:
        """Whether it holds nothing but halves, under PEFT's own names."""
        return not self.copies and all(half.name == half.tensor.name for half in self.halves)


def sort_tensors(checkpoint: Checkpoint, config: AdapterConfig) -> AdapterTensors:
    """What the file holds. SourceError, with every reason, where that is no plain LoRA, or not that of this config."""
    halves, copies, problems = [], [], []
    for name, tensor in checkpoint.tensors.items():
        match _meaning(name, tensor):
            case Half() as half:
                halves.append(half)
            case Copy() as copy:
                copies.append(copy)
            case problem:
                problems.append(problem)
    tensors = AdapterTensors(
        tuple(sorted(halves, key=lambda half: half.name)), tuple(sorted(copies, key=lambda copy: copy.name))
    )
    if not problems:
        problems = [*_doubled(tensors), *_contradictions(tensors, config), *_broken(tensors, config)]
    refuse(f"{checkpoint.files[0]}: this adapter cannot be served", problems)
    return tensors


def _meaning(name: str, tensor: Tensor) -> Half | Copy | Problem:
    parts = _unwrapped(name)
    at = next((index for index, part in enumerate(parts) if part.startswith(("lora_", *_TOKENS))), None)
    if at is None:
        return Copy(".".join(_saved_as_a_whole(parts)), tensor)
    module, marker, rest = ".".join(parts[:at]), parts[at], parts[at + 1 :]
    if marker in _HALVES and rest[-1:] == ["weight"] and len(rest) <= 2:
        return Half(module, marker[-1], tensor, *rest[:-1])
    if marker in _HALVES and rest[-1:] == ["bias"]:
        return Problem(f"a bias of a LoRA: {name}", "Train it without lora_bias.")
    if marker.startswith("lora_embedding"):
        return Problem(f"a LoRA of the embeddings, which engines do not all serve: {name}")
    if marker.startswith("lora_magnitude"):
        return Problem(f"a magnitude of DoRA: {name}")
    if marker in _TOKENS:
        return Problem(f"trained rows of the embeddings: {name}")
    return Problem(f"not of a plain LoRA: {name}")


def _unwrapped(name: str) -> list[str]:
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    while parts and parts[0] in ("base_model", "model"):
        parts.pop(0)
    return ["model", *parts] if parts and parts[0] in _BODY else parts


def _saved_as_a_whole(parts: list[str]) -> list[str]:
    """The tensor's name in the base, without what PEFT calls a module's copies."""
    if "modules_to_save" in parts:
        at = parts.index("modules_to_save")
        parts = parts[:at] + parts[at + 1 :][-1:]
    return [part for part in parts if part not in ("base_layer", "original_module")]


def _doubled(tensors: AdapterTensors) -> list[Problem]:
    names = sorted({half.adapter for half in tensors.halves if half.adapter})
    if len(names) > 1:
        hint = "Save one of them: save_pretrained(DIR, selected_adapters=[NAME])."
        return [Problem(f"it holds several adapters: {', '.join(names)}", hint)]
    counts = Counter(half.name for half in tensors.halves)
    return [
        Problem(f"it holds {count} tensors that mean {name}", "Save it again from the unwrapped model.")
        for name, count in counts.items()
        if count > 1
    ]


def _contradictions(tensors: AdapterTensors, config: AdapterConfig) -> list[Problem]:
    modules = dict.fromkeys(half.module for half in tensors.halves)
    problems = [
        Problem(f"target_modules does not name {module}, so that PEFT leaves its tensors out", _ONE_SAVE)
        for module in modules
        if not config.is_target(module)
    ]
    copied = {copy.name.rpartition(".")[0] for copy in tensors.copies}
    problems += [
        Problem(f"modules_to_save names {saved}, which it does not hold", _ONE_SAVE)
        for saved in config.saved
        if not any(module == saved or module.endswith(f".{saved}") for module in copied)
    ]
    return problems


def _broken(tensors: AdapterTensors, config: AdapterConfig) -> list[Problem]:
    problems = []
    if not tensors.halves:
        problems.append(Problem("the adapter holds no tensors of a LoRA", "Save it again with PEFT's save_pretrained."))
    here = {(half.module, half.letter) for half in tensors.halves}
    for half in tensors.halves:
        shape, rank = half.tensor.shape, config.rank_of(half.module)
        if len(shape) != 2 or 0 in shape:
            hint = (
                "DeepSpeed ZeRO-3 or FSDP had the model in shards when it was saved: gather them first "
                "(GatheredParameters, or summon_full_params), and save it again."
            )
            problems.append(Problem(f"{half.tensor.name} is {list(shape)}, no matrix", hint))
        elif shape["AB".index(half.letter)] != rank:
            told = f"{half.tensor.name} is {list(shape)}, and its rank is {rank} by adapter_config.json"
            problems.append(Problem(told, _ONE_SAVE))
        elif half.other not in here:
            hint = "Save it again with PEFT's save_pretrained, or copy the whole file again: pairs are incomplete."
            problems.append(Problem(f"without its other half: {half.tensor.name}", hint))
    return problems
