"""What 4-bit activations are calibrated with: which texts, how many, how long; and what that will take. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.core.environment import EnvironmentSpec
from orchestrator.core.weights import Shape
from orchestrator.errors import SourceError

# Measured on a CPU with 0.8 GB of weights: 0.5 GB for Python with torch, 0.9 to 1.2 times the weights; pages of files
# are not counted.
_ITSELF = 10**9
_OVER_WEIGHTS = 1.2
# One core, to observe and pack a weight, measured there; and what a core computes: ASSUMPTION.
_SECONDS_PER_WEIGHT = 2.5e-7
_OPERATIONS_PER_S = 5e10


@dataclass(frozen=True)
class Calibration:
    """The first `samples` texts of the JSONL file at `path`, whose SHA-256 is `digest`, of each at most `tokens`
    tokens; `environment` is the one that the program runs in."""

    path: str
    digest: str
    samples: int
    tokens: int
    environment: EnvironmentSpec

    def source(self, weights: str) -> str:
        """The `source` of what is made of weights with it: their own, and the texts that its scales depend on."""
        return f"{weights} with {self.samples} x {self.tokens} of {self.digest}"


@dataclass(frozen=True)
class CalibrationCost:
    """`memory` in bytes, and how long it takes one core, in seconds."""

    memory: int
    core_s: float


def cost(weights: int, shape: Shape | None, texts: int, tokens: int) -> CalibrationCost:
    """What calibrating weights of so many bytes takes, with so many texts: all of them are in memory, and every layer
    runs twice over every token, to observe it and to go on with what it gives."""
    parameters = shape.layer_parameters if shape is not None else weights / 2
    operations = 2 * 2 * parameters * texts * tokens
    core_s = parameters * _SECONDS_PER_WEIGHT + operations / _OPERATIONS_PER_S
    return CalibrationCost(int(_ITSELF + _OVER_WEIGHTS * weights), core_s)


def parse_texts(text: str, where: str, samples: int) -> list[dict[str, Any]]:
    """The first `samples` texts of a JSONL file: {"text": ...}, or {"messages": [{"role", "content"}, ...]} each.

    SourceError with the line's number for anything else, and when there is none at all.
    """
    found: list[dict[str, Any]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        if len(found) == samples:
            break
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise _bad(where, number, f"is not JSON: {error}") from error
        if not _is_sample(entry):
            raise _bad(where, number, "is neither a text nor a chat")
        found.append(entry)
    if not found:
        raise SourceError(f"{where} holds no calibration texts.", _HINT)
    return found


_HINT = 'A JSON object a line: {"text": "..."}, or {"messages": [{"role": "user", "content": "..."}, ...]}.'


def _bad(where: str, number: int, what: str) -> SourceError:
    return SourceError(f"{where}: line {number} {what}.", _HINT)


def _is_sample(entry: Any) -> bool:
    if not isinstance(entry, Mapping):
        return False
    messages = entry.get("messages")
    if messages is None:
        return isinstance(entry.get("text"), str) and bool(entry["text"].strip())
    return isinstance(messages, list) and bool(messages) and all(_is_message(message) for message in messages)


def _is_message(message: Any) -> bool:
    return isinstance(message, Mapping) and all(isinstance(message.get(name), str) for name in ("role", "content"))
