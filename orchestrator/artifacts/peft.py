"""LoRA adapters as PEFT saves them: read with suspicion, and compared with the base that they are for."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from orchestrator.artifacts import families
from orchestrator.artifacts.adapter_config import CONFIG, AdapterConfig, read_adapter_config
from orchestrator.artifacts.adapter_places import refuse_other_places
from orchestrator.artifacts.adapter_problems import Problem, refuse
from orchestrator.artifacts.adapter_tensors import AdapterTensors, Half, sort_tensors
from orchestrator.artifacts.disk import host_errors
from orchestrator.artifacts.families import ModelConfig
from orchestrator.artifacts.safetensors import Checkpoint
from orchestrator.core.artifact import source_of_files
from orchestrator.errors import PlanRefused, SourceError

WEIGHTS = "adapter_model.safetensors"

_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_EXPERTS = re.compile(r"\.(experts?|shared_experts?|router|gate)(\.|$)")


@dataclass(frozen=True)
class Adapter:
    """A PEFT LoRA. `alpha` is effective: the weights of most modules change by alpha / rank * B A, rank-stabilized or
    not; `config` knows it of each. `rank` is the largest that it
    names, which is what an engine makes room for.

    `sha256` is over names and contents of the two files, so it identifies the adapter.
    """

    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    base: str
    sha256: str
    config: AdapterConfig

    @property
    def source(self) -> str:
        """The `source` for `artifact_key`."""
        return f"dir:{self.sha256}"


def read_adapter(directory: Path) -> Adapter:
    """The adapter in a PEFT directory.

    SourceError if it is pickled, no LoRA, or one that means more than W + alpha / rank * B A. Whether its tensors fit a
    base is for `check_fits`.
    """
    refuse_other_places(directory)
    config = read_adapter_config(directory)
    with open_weights(directory) as checkpoint:
        sort_tensors(checkpoint, config)
    return Adapter(
        max(config.rank, *config.rank_pattern.values()) if config.rank_pattern else config.rank,
        config.alpha,
        config.target_modules,
        config.base,
        _digest(directory),
        config,
    )


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


def check_fits(directory: Path, adapter: Adapter, base: Path) -> None:
    """PlanRefused, with every problem, when the adapter does not belong to the weights in `base`, or has trained
    more of them than a LoRA tells."""
    try:
        refuse_misfit(directory, adapter, base)
    except SourceError as error:
        raise PlanRefused(error.message, error.hint, error.detail) from error


def refuse_misfit(directory: Path, adapter: Adapter, base: Path) -> None:
    """The same as a SourceError."""
    with open_weights(directory) as checkpoint:
        tensors = fitting_tensors(checkpoint, adapter, families.read_config(base))
        if tensors.copies:
            # Few adapters carry any, and numpy costs more than all else of a look at one.
            from orchestrator.artifacts.adapter_copies import refuse_changed_copies

            refuse_changed_copies(checkpoint, tensors.copies, base)


def fitting_tensors(checkpoint: Checkpoint, adapter: Adapter, base: ModelConfig) -> AdapterTensors:
    """What the file holds. SourceError with every problem, a line each, where it is not for weights of this config."""
    tensors = sort_tensors(checkpoint, adapter.config)
    expected = families.expected_tensors(base)
    misfits = [problem for half in tensors.halves if (problem := _misfit(half, expected, base, adapter)) is not None]
    refuse(f"{checkpoint.files[0]}: {len(misfits)} tensors do not fit the base", misfits)
    return tensors


def _misfit(half: Half, expected: dict[str, tuple[int, ...]], base: ModelConfig, adapter: Adapter) -> Problem | None:
    shape = expected.get(f"{half.module}.weight", ())
    if len(shape) != 2 or half.module == "model.embed_tokens":
        return _no_such_layer(half, base, adapter)
    name, rank = half.tensor.name, adapter.config.rank_of(half.module)
    needed = (rank, shape[1]) if half.letter == "A" else (shape[0], rank)
    told = f"{name} is {half.tensor.dtype} {list(half.tensor.shape)}, the base needs {list(needed)}"
    if half.tensor.shape != needed:
        return Problem(told, f"The base has other sizes: use the one that it was trained on{_named(adapter)}.")
    if half.tensor.dtype not in families.FLOATS:
        return Problem(told, f"Save it again as one of {', '.join(families.FLOATS)}.")
    return None


def _no_such_layer(half: Half, base: ModelConfig, adapter: Adapter) -> Problem:
    layer = _LAYER.match(half.module)
    if layer is not None and int(layer[1]) >= base.num_hidden_layers:
        hint = f"The base has {base.num_hidden_layers} layers: use the one that it was trained on{_named(adapter)}."
    elif half.module == "lm_head":
        hint = (
            "The base's head is its embedding, and has no LoRA of its own: merge the adapter with PEFT into a base "
            "whose tie_word_embeddings is false, or train it without lm_head."
        )
    elif half.module == "model.embed_tokens":
        hint = (
            "Engines do not all serve a LoRA of the embeddings: merge it with PEFT, or train it without embed_tokens."
        )
    elif _EXPERTS.search(half.module):
        hint = f"It was trained on a mixture of experts, and the base is dense: use its own base{_named(adapter)}."
    else:
        hint = f"It was trained on a model of another kind: use that as the base{_named(adapter)}."
    return Problem(f"no such linear layer in the base: {half.tensor.name}", hint)


def _named(adapter: Adapter) -> str:
    return f", {adapter.base}" if adapter.base else ""
