"""Directories of weights in the shapes that tools leave them in, each with what it means to transformers.

Each kind is a file of tests/assets/meaning/kinds: the small files as they were written, the weights as edits of those
of a model in tests/assets, and the right values, which `scripts/make-meaning-oracles` has from transformers itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from json_edits import edited
from meaning_weights import write_weights

ASSETS = Path(__file__).parents[1] / "assets"
MEANING = ASSETS / "meaning"
# The kind of which all others tell only what differs.
PLAIN = "plain"
# What every directory is asked: texts, chats (messages, tools, and what else the template is given), raw prompts.
ASKED: dict[str, Any] = json.loads((MEANING / "asked.json").read_bytes())
KINDS: tuple[str, ...] = tuple(sorted(file.stem for file in (MEANING / "kinds").glob("*.json")))


@dataclass(frozen=True)
class Chat:
    """A rendered chat and its tokens; or why there is none."""

    text: str = ""
    ids: tuple[int, ...] = ()
    refusal: str | None = None


@dataclass(frozen=True)
class Tokens:
    """A text's tokens with what the tokenizer adds by itself and without, and those with it decoded both ways."""

    ids: tuple[int, ...]
    bare: tuple[int, ...]
    whole: str
    clean: str


@dataclass(frozen=True)
class Answer:
    """What greedy decoding gives, in float32: `text` without special tokens, `whole` with them. `margins` are the
    distances, in logits, between each token and the next likely one; `refusal` says why there is no answer."""

    prompt: tuple[int, ...] = ()
    ids: tuple[int, ...] = ()
    text: str = ""
    whole: str = ""
    finish: str = ""
    margins: tuple[float, ...] = ()
    refusal: str | None = None

    def firm(self, margin: float = 0.5) -> tuple[int, ...]:
        """The tokens until one that other arithmetic might choose otherwise."""
        thin = (number for number, distance in enumerate(self.margins) if distance < margin)
        return self.ids[: next(thin, len(self.ids))]


@dataclass(frozen=True)
class Right:
    """What a directory means to transformers. A refusal says why it means nothing, and then the rest may be empty."""

    refusal: str | None = None
    tokenizer_refusal: str | None = None
    warnings: tuple[str, ...] = ()
    # Files that transformers reads as weights, and what of them it lacks and leaves.
    weights: tuple[str, ...] = ()
    anew: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    dtype: str = ""
    # Whether one tensor is both; and whose values the head has: "embeddings", "own" or "anew".
    tied: bool = False
    head: str = ""
    # Rows of the embeddings, and tokens that the tokenizer knows.
    rows: int = 0
    tokens: int = 0
    rope: dict[str, Any] = field(default_factory=dict)
    # Where transformers' generate stops; and what config.json and generation_config.json list together, which is what
    # the answers below stop at.
    ends: tuple[int, ...] = ()
    listed: tuple[int, ...] = ()
    bos: str | None = None
    eos: str | None = None
    # Every token that is matched in texts as a whole: "content" and flags, by number.
    added: dict[str, dict[str, Any]] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    templates: dict[str, str] = field(default_factory=dict)
    chats: dict[str, Chat] = field(default_factory=dict)
    texts: dict[str, Tokens] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)


def lay(kind: str, place: Path) -> Path:
    """The directory of weights of a kind, made at `place`."""
    return lay_out(asset(kind), place)


def about(kind: str) -> str:
    """What is special in a kind, and who wrote it."""
    return str(asset(kind)["about"])


def right(kind: str) -> Right:
    """The right values of a kind, by transformers 5."""
    return _right(_told(kind))


def right_in_4(kind: str) -> Right:
    """The same by transformers 4.57, where it has another opinion."""
    return _right(edited(_told(kind), asset(kind).get("transformers_4", {})))


@cache
def asset(kind: str) -> dict[str, Any]:
    """A kind as it is stored."""
    return dict(json.loads((MEANING / "kinds" / f"{kind}.json").read_bytes()))


def lay_out(described: dict[str, Any], place: Path) -> Path:
    """The directory that a description tells of."""
    place.mkdir(parents=True)
    for name, told in described["files"].items():
        file = place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(contents(told))
    write_weights(described["weights"], place, ASSETS)
    return place


def contents(told: Any) -> bytes:
    """The bytes of a described file: text; JSON; a file of tests/assets, edited; a part of a tokenizer.json; zeros."""
    match told:
        case str():
            return told.encode()
        case {"json": value}:
            return _json(value)
        case {"like": file, **changes}:
            source = ASSETS / file
            return _json(edited(json.loads(source.read_bytes()), changes)) if changes else source.read_bytes()
        case {"vocabulary of": file}:
            return json.dumps(_bpe(file)["vocab"], ensure_ascii=False).encode()
        case {"merges of": file}:
            lines = [" ".join(pair) for pair in _bpe(file)["merges"]]
            return "\n".join(["#version: 0.2", *lines, ""]).encode()
        case {"zeros": int(count)}:
            return bytes(count)
    raise ValueError(told)


def _bpe(file: str) -> dict[str, Any]:
    return dict(json.loads((ASSETS / file).read_bytes())["model"])


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _told(kind: str) -> dict[str, Any]:
    """The right values as JSON."""
    told = asset(kind)["right"]
    return told if kind == PLAIN else dict(edited(_told(PLAIN), told))


def _right(told: dict[str, Any]) -> Right:
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in told.items()}
    for name, kind in (("chats", Chat), ("texts", Tokens), ("answers", Answer)):
        values[name] = {key: kind(**_tuples(value)) for key, value in told.get(name, {}).items()}
    return Right(**values)


def _tuples(value: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(item) if isinstance(item, list) else item for name, item in value.items()}
