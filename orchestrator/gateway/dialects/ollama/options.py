"""Options of a request: which there are, and of what types, as Ollama says it.

Names of a dialect that an engine's server has others for are its own matter: gateway/servers.py.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.gateway.dialects.ollama import words
from orchestrator.gateway.servers import Sampling

log = logging.getLogger("orchestrator.gateway")

_INTEGERS = (
    *("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "seed", "num_predict", "top_k"),
    *("repeat_last_n", "draft_num_predict"),
)
_FLOATS = ("temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "presence_penalty", "frequency_penalty")
_TRUTHS = ("use_mmap",)
# Ollama knows them and does nothing with them.
_DEPRECATED = (
    *("penalize_newline", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock", "numa"),
    *("mirostat", "mirostat_tau", "mirostat_eta", "tfs_z"),
)
# How a model is loaded. A served one is loaded already.
_AT_LOAD = ("num_batch", "num_gpu", "main_gpu", "num_thread", "use_mmap", "draft_num_predict")
_MOST = 2**63 - 1
_LONGEST_NAME = 100
# What was told once is not told again with each request, nor kept without end.
_MOST_TOLD = 1000
_told: set[str] = set()


def tell(text: str) -> None:
    """A line in the log, once."""
    if text not in _told and len(_told) < _MOST_TOLD:
        _told.add(text)
        log.warning("%s", text)


@dataclass(frozen=True)
class Options:
    """What a request says of them; what it does not say is the engine's own. `context` is how many tokens of it, `keep`
    how many of a prompt that is cut stay at its beginning."""

    sampling: Sampling = field(default_factory=Sampling)
    context: int | None = None
    keep: int | None = None


def options_of(given: Mapping[str, object]) -> Options:
    """The options that Ollama knows, by Go's rules; raises Refusal for a wrong type."""
    known: dict[str, Any] = {}
    for name, value in given.items():
        if name in _INTEGERS:
            known[name] = None if value is None else _integer(name, value)
        elif name in _FLOATS:
            known[name] = None if value is None else _number(name, value)
        elif name == "stop":
            known[name] = () if value is None else _texts(name, value)
        elif name in _TRUTHS:
            if value is not None and not isinstance(value, bool):
                raise _wrong(name, "of type boolean")
        elif name not in _DEPRECATED:
            tell(f"An option that Ollama does not know is ignored: {name[:_LONGEST_NAME]!r}.")
        if name in _AT_LOAD and value is not None:
            tell(f"The option {name} is for loading a model, and a served one is loaded: it is ignored.")
    for name in _AT_LOAD:
        known.pop(name, None)
    context, keep, most = (known.pop(name, None) for name in ("num_ctx", "num_keep", "num_predict"))
    if known.get("seed") == -1:
        del known["seed"]
    limit = most if most is not None and most >= 0 else None
    return Options(Sampling(max_tokens=limit, **known), context or None, keep)


def _wrong(name: str, wanted: str) -> Exception:
    return words.fault(500, f'option "{name}" must be {wanted}')


def _integer(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(name, "of type integer")
    if isinstance(value, float) and not math.isfinite(value):
        return 0
    return max(-_MOST, min(_MOST, int(value)))


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(name, "of type float32")
    return float(value)


def _texts(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _wrong(name, "of type array")
    if not all(isinstance(one, str) for one in value):
        raise _wrong(name, "of an array of strings")
    # Nothing ends an answer at once.
    return tuple(filter(None, value))
