"""What a new engine is asked before any client meets it, and what came of it: values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from orchestrator.core import json_fields as fields


class Probe(StrEnum):
    """What is looked at. TOKENS, of texts and of chats' prompts, are those of the engine before; of ANSWERS it is told
    how many are. The others must be what they should be by themselves; FIRST_TOKEN is a time."""

    TOKENS = "tokens"
    ANSWERS = "answers"
    THINKING = "thinking"
    TOOLS = "tools"
    SCHEMA = "schema"
    STOP = "stop"
    CONTEXT = "context"
    FIRST_TOKEN = "first-token"


@dataclass(frozen=True)
class Proof:
    """One probe: whether it holds, and what there is to say of it."""

    probe: str
    holds: bool
    told: str

    @classmethod
    def from_json(cls, value: object) -> Proof:
        """Read what `asdict` wrote; ValueError says which field is wrong."""
        document = fields.mapping(value, "proof")
        return cls(fields.text(document, "probe"), fields.truth(document, "holds"), fields.text(document, "told"))


@dataclass(frozen=True)
class Proofs:
    """All of one instance."""

    instance: str
    proofs: tuple[Proof, ...]

    @property
    def summary(self) -> str:
        """In a line."""
        good = sum(one.holds for one in self.proofs)
        figures = [one.told for one in self.proofs if one.probe in (Probe.ANSWERS, Probe.FIRST_TOKEN)]
        return "; ".join([f"{good} of {len(self.proofs)} hold", *figures])

    @classmethod
    def from_json(cls, value: object) -> Proofs:
        """Read what `asdict` wrote; ValueError says which field is wrong."""
        document = fields.mapping(value, "proofs")
        listed = fields.listed(document.get("proofs"), "proofs")
        return cls(fields.text(document, "instance"), tuple(map(Proof.from_json, listed)))


@dataclass(frozen=True)
class Before:
    """What the engine that serves said: tokens of texts and prompts by name, as ids or a number, and greedy answers by
    question. What it did not say in time is not in it."""

    instance: str
    tokens: Mapping[str, Any]
    answers: Mapping[str, str]

    @classmethod
    def from_json(cls, value: object) -> Before:
        """Read what `asdict` wrote; ValueError says which field is wrong."""
        document = fields.mapping(value, "answers")
        answers = fields.mapping(document.get("answers"), "answers")
        return cls(
            fields.text(document, "instance"),
            fields.mapping(document.get("tokens"), "tokens"),
            {question: str(answer) for question, answer in answers.items()},
        )
