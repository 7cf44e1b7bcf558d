"""What a new engine is asked before any client meets it, and what came of it: values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from orchestrator.core import json_fields as fields


class Probe(StrEnum):
    """What is looked at. TOKENS, of texts and of chats' prompts, are those of the engine before; of ANSWERS, and of
    those of ADAPTERS, it is told how many are. The others must be what they should be by themselves; FIRST_TOKEN is a
    time."""

    TOKENS = "tokens"
    ANSWERS = "answers"
    ADAPTERS = "adapters"
    THINKING = "thinking"
    TOOLS = "tools"
    SCHEMA = "schema"
    STOP = "stop"
    CONTEXT = "context"
    FIRST_TOKEN = "first-token"


_FIGURES = (Probe.ANSWERS, Probe.ADAPTERS, Probe.FIRST_TOKEN)


@dataclass(frozen=True)
class Proof:
    """One probe: whether it holds, and what there is to say of it; of a time how many seconds it was."""

    probe: str
    holds: bool
    told: str
    seconds: float = 0.0

    @classmethod
    def from_json(cls, value: object) -> Proof:
        """Read what `asdict` wrote; ValueError says which field is wrong."""
        document = fields.mapping(value, "proof")
        told = fields.text(document, "probe"), fields.truth(document, "holds"), fields.text(document, "told")
        return cls(*told, fields.number(document, "seconds", 0.0))


@dataclass(frozen=True)
class Proofs:
    """All of one instance, but for those that were `skipped`."""

    instance: str
    proofs: tuple[Proof, ...]
    skipped: tuple[str, ...] = ()

    @property
    def first_token_s(self) -> float:
        """After how many seconds its first token came; 0 where nobody has asked."""
        return next((one.seconds for one in self.proofs if one.probe == Probe.FIRST_TOKEN), 0.0)

    @property
    def summary(self) -> str:
        """In a line."""
        good = sum(one.holds for one in self.proofs)
        figures = [one.told for one in self.proofs if one.probe in _FIGURES]
        skipped = f" ({', '.join(self.skipped)} skipped)" if self.skipped else ""
        return "; ".join([f"{good} of {len(self.proofs)} hold{skipped}", *figures])

    @classmethod
    def from_json(cls, value: object) -> Proofs:
        """Read what `asdict` wrote; ValueError says which field is wrong."""
        document = fields.mapping(value, "proofs")
        listed = fields.listed(document.get("proofs"), "proofs")
        skipped = fields.texts(document, "skipped") if "skipped" in document else ()
        return cls(fields.text(document, "instance"), tuple(map(Proof.from_json, listed)), skipped)


@dataclass(frozen=True)
class Before:
    """What the engine that serves said: tokens of texts and prompts by name, as ids or a number, greedy answers by
    question, and those of adapters by their digest. What it did not say in time is not in it."""

    instance: str
    tokens: Mapping[str, Any]
    answers: Mapping[str, str]
    adapters: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: object) -> Before:
        """Read what `asdict` wrote; ValueError says which field is wrong."""
        document = fields.mapping(value, "answers")
        answers = fields.mapping(document.get("answers"), "answers")
        adapters = fields.mapping(document.get("adapters", {}), "adapters")
        return cls(
            fields.text(document, "instance"),
            fields.mapping(document.get("tokens"), "tokens"),
            {question: str(answer) for question, answer in answers.items()},
            {digest: str(answer) for digest, answer in adapters.items()},
        )
