"""What adapter_config.json says. Only what is known to be W + alpha/r * B A is taken: any other field may change the
formula or the base, and so may those that PEFT will have next.

Read from LoraConfig and its layers in PEFT 0.4, 0.7, 0.10, 0.13, 0.15, 0.17, 0.19 and 0.21.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.artifacts.adapter_problems import MERGE, Problem, refuse
from orchestrator.artifacts.json_file import read_json

CONFIG = "adapter_config.json"

Number = TypeVar("Number", int, float)

# Whatever they hold, PEFT's answers are the same. The tables of inits count only while their init runs, a dropout only
# in training, and which modules are targets is told by the tensors.
_WITHOUT_EFFECT = frozenset({
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules",
    "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout", "lora_ga_config",
    "megatron_core", "merge_weights", "peft_version", "qalora_group_size", "revision", "runtime_config",
    # PEFT sets it to false where the module is Linear, and all of the families that builders know are.
    "fan_in_fan_out",
    # ms-swift's: the type that is trained in, and learning rates.
    "lora_dtype", "lorap_emb_lr", "lorap_lr_ratio",
})  # fmt: skip

# These are read below.
_READ = frozenset({
    "alpha_pattern", "bias", "init_lora_weights", "lora_alpha", "modules_to_save", "peft_type", "r", "rank_pattern",
    "target_modules", "task_type", "use_rslora",
})  # fmt: skip

# Inits that leave the base as it is.
_PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")

_SAVING = (
    "save_pretrained(DIR, path_initial_model_for_weight_conversion=INITIAL), INITIAL being the adapter as it was saved "
    "before training."
)
_CONVERT = f"Convert it with PEFT: {_SAVING}"
# PEFT changes the base in the same way where it loads such an adapter, and only then merging gives what was trained.
_MERGE_LOADED = (
    "Load it with PEFT on the base that it was trained on, merge it there (merge_and_unload), and serve that."
)
_INIT_HINTS = {
    "pissa": f"{_CONVERT} Or: {_MERGE_LOADED}",
    "olora": f"{_CONVERT} Or: {_MERGE_LOADED}",
    # PEFT loads it only on the base that its preparation has changed.
    "corda": f"Train it again, and have PEFT convert it at the end: {_SAVING}",
    "lora_ga": f"{_CONVERT} Where there is none, train it again.",
    "loftq": _MERGE_LOADED,
}
_TRAIN = "Train a plain LoRA: PEFT cannot merge this one into its base."
_HINTS = {
    "alora_invocation_tokens": _TRAIN,
    "arrow_config": _TRAIN,
    "lora_bias": "Train it without lora_bias: PEFT merges a bias only into a layer that has one.",
    "use_qalora": _TRAIN,
}

# What LLaMA-Factory calls PEFT's conversion, which it saves below.
_CONVERTED = "pissa_converted"

# A pattern that is a name, and no other regular expression.
_NAME = re.compile(r"\^?[\w.]+")


@dataclass(frozen=True)
class AdapterConfig:
    """A plain LoRA's settings. `saved` are the modules that PEFT was told to train and save as a whole."""

    rank: int
    lora_alpha: float
    rank_stabilized: bool
    target_modules: tuple[str, ...]
    targets_are_names: bool
    base: str
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    saved: tuple[str, ...]

    def rank_of(self, module: str) -> int:
        """The rank of one module's LoRA."""
        return _matching(self.rank_pattern, module, self.rank)

    def alpha_of(self, module: str) -> float:
        """Its alpha so that its weights change by alpha / rank * B A, rank-stabilized or not."""
        return self._effective(_matching(self.alpha_pattern, module, self.lora_alpha), self.rank_of(module))

    @property
    def alpha(self) -> float:
        """The same of modules that no pattern names."""
        return self._effective(self.lora_alpha, self.rank)

    def is_target(self, module: str) -> bool:
        """Whether PEFT makes a LoRA for it. Regular expressions are believed: one that never ends would hang orch."""
        return not self.targets_are_names or any(_matches(name, module) for name in self.target_modules)

    def _effective(self, alpha: float, rank: int) -> float:
        return alpha * math.sqrt(rank) if self.rank_stabilized else alpha


def _matching(pattern: dict[str, Number], module: str, default: Number) -> Number:
    return next((value for name, value in pattern.items() if _matches(name, module)), default)


def _matches(name: str, module: str) -> bool:
    if name.startswith("^"):
        return module == name[1:]
    return module == name or module.endswith(f".{name}")


def read_adapter_config(directory: Path) -> AdapterConfig:
    """The settings of a PEFT directory; SourceError, with every reason, where they are not a plain LoRA's."""
    file = directory / CONFIG
    raw = read_json(file)
    problems = [*_unknown(raw), *_variants(raw, directory / _CONVERTED), *_malformed(raw)]
    refuse(f"{file}: this adapter cannot be served", problems)
    targets = raw["target_modules"]
    return AdapterConfig(
        raw["r"],
        float(raw["lora_alpha"]),
        bool(raw.get("use_rslora")),
        (targets,) if isinstance(targets, str) else tuple(sorted(targets)),
        isinstance(targets, list),
        str(raw.get("base_model_name_or_path") or ""),
        raw.get("rank_pattern") or {},
        raw.get("alpha_pattern") or {},
        tuple(raw.get("modules_to_save") or ()),
    )


def _unknown(raw: dict[str, Any]) -> list[Problem]:
    """Fields that are set and are not known to be without effect."""
    return [
        Problem(f"{name} is {_shown(value)}", _HINTS.get(name, MERGE))
        for name, value in raw.items()
        if value and name not in _WITHOUT_EFFECT | _READ
    ]


def _variants(raw: dict[str, Any], converted: Path) -> list[Problem]:
    """Values that make it something else than a plain LoRA for a model that answers in text; `converted` is where it
    may lie as one."""
    problems = []
    if raw.get("peft_type") != "LORA":
        problems.append(Problem(f"peft_type is {_shown(raw.get('peft_type'))}, not LORA"))
    if raw.get("bias", "none") != "none":
        problems.append(Problem(f"bias is {_shown(raw['bias'])}: biases of the base are trained too"))
    task = raw.get("task_type")
    if task not in (None, "", "CAUSAL_LM"):
        hint = "Serve an adapter that was trained for CAUSAL_LM; orch has no task but answering in text."
        problems.append(Problem(f"task_type is {_shown(task)}", hint))
    init = raw.get("init_lora_weights", True)
    plain = init.lower() if isinstance(init, str) else init
    if plain not in _PLAIN_INITS:
        kind = next((kind for kind in _INIT_HINTS if str(plain).startswith(kind)), None)
        base = "it was trained on a base that this init had changed" if kind else "what that does is not known"
        hint = _INIT_HINTS[kind] if kind else MERGE
        if kind and (converted / CONFIG).is_file():
            hint = f"It has been saved converted too: name {converted}."
        problems.append(Problem(f"init_lora_weights is {_shown(init)}: {base}", hint))
    return problems


def _malformed(raw: dict[str, Any]) -> list[Problem]:
    """Values that PEFT never writes."""
    alphas, ranks = raw.get("alpha_pattern") or {}, raw.get("rank_pattern") or {}
    targets, saved = raw.get("target_modules"), raw.get("modules_to_save")
    wrong = [
        name
        for name, right in (
            ("use_rslora", isinstance(raw.get("use_rslora", False), bool | None)),
            ("r", _is_rank(raw.get("r"))),
            ("lora_alpha", _is_alpha(raw.get("lora_alpha"))),
            ("target_modules", isinstance(targets, str) or _are_names(targets)),
            ("modules_to_save", saved is None or _are_names(saved)),
            ("rank_pattern", isinstance(ranks, dict) and all(map(_is_rank, ranks.values()))),
            ("alpha_pattern", isinstance(alphas, dict) and all(map(_is_alpha, alphas.values()))),
        )
        if not right
    ]
    hint = "Save it again with PEFT's save_pretrained."
    problems = [Problem(f"{name} is {_shown(raw.get(name))}", hint) for name in wrong]
    if not problems:
        problems = [
            Problem(f"{field} has {_shown(key)}, a regular expression", "Write the modules' names there, one by one.")
            for field, pattern in (("rank_pattern", ranks), ("alpha_pattern", alphas))
            for key in pattern
            if not _NAME.fullmatch(key)
        ]
    return problems


def _is_rank(value: object) -> bool:
    return type(value) is int and 0 < value <= 4096


def _is_alpha(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
