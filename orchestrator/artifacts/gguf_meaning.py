"""What a GGUF file says of how to use it: its template, its ends, its added tokens, its defaults of sampling."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from gguf import TokenType

from orchestrator.artifacts.gguf_reader import GgufFile
from orchestrator.artifacts.meaning import LLAMA_CPP_ENDS, takes_tools, thinks_by_itself
from orchestrator.core.meaning import DEFAULT, NO_TEMPLATE, SIZES, AddedToken, ChatTemplate, End, Meaning

_TEMPLATE = "tokenizer.chat_template"
_ENDS = ("eos", "eot", "eom")
_SAMPLING = {
    "temperature": "temp",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repeat_penalty": "penalty_repeat",
}
_SIZES = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
_ADDED = (TokenType.CONTROL, TokenType.USER_DEFINED)


def read_gguf_meaning(path: Path) -> Meaning:
    """The meaning of a GGUF file, of which only the head is read. SourceError if it is none."""
    with GgufFile.open(path) as file:
        fields = file.fields
        tied = "output.weight" not in file.tensors
    tokens, kinds = _texts(fields), fields.get("tokenizer.ggml.token_type")
    types = [int(kind) for kind in kinds] if isinstance(kinds, list | np.ndarray) else []
    ends = _ends(fields, tokens)
    templates = _templates(fields)
    return Meaning(
        architecture=str(fields.get("general.architecture") or ""),
        files=(path.name,),
        vocabulary=_digest(tokens, types),
        tied=tied,
        added=tuple(
            AddedToken(id=number, text=tokens[number], special=kind == TokenType.CONTROL)
            for number, kind in enumerate(types[: len(tokens)])
            if kind in _ADDED
        ),
        templates=templates,
        template_source=_TEMPLATE if templates else "",
        thinks=thinks_by_itself(next((one.text for one in templates if one.name == DEFAULT), "")),
        takes_tools=takes_tools({one.name: one.text for one in templates}),
        sizes=_sizes(fields, len(tokens)),
        tokenizer=str(fields.get("tokenizer.ggml.model") or ""),
        ends=ends,
        ends_by_text=tuple(sorted(LLAMA_CPP_ENDS.intersection(tokens))),
        sampling={
            ours: fields[f"general.sampling.{theirs}"]
            for ours, theirs in _SAMPLING.items()
            if isinstance(fields.get(f"general.sampling.{theirs}"), int | float)
        },
        remarks=_remarks(tokens, ends, templates),
    )


def _texts(fields: Any) -> list[str]:
    found = fields.get("tokenizer.ggml.tokens")
    return [str(text) for text in found] if isinstance(found, list) else []


def _sizes(fields: Any, tokens: int) -> dict[str, float]:
    """What describes the architecture, by the names of config.json."""
    architecture = fields.get("general.architecture")
    found = {name: fields.get(f"{architecture}.{key}") for name, key in _SIZES.items()}
    found["vocab_size"] = tokens
    return {name: float(found[name]) for name in SIZES if type(found.get(name)) in (int, float)}


def _ends(fields: Any, tokens: list[str]) -> tuple[End, ...]:
    found: dict[int, str] = {}
    for name in _ENDS:
        number = fields.get(f"tokenizer.ggml.{name}_token_id")
        if isinstance(number, int) and 0 <= number < len(tokens):
            found.setdefault(number, name)
    return tuple(End(id=number, text=tokens[number], said_by=(name,)) for number, name in found.items())


def _templates(fields: Any) -> tuple[ChatTemplate, ...]:
    texts = {key: value for key, value in fields.items() if key.startswith(_TEMPLATE) and isinstance(value, str)}
    named = {key.removeprefix(f"{_TEMPLATE}.") if key != _TEMPLATE else DEFAULT: text for key, text in texts.items()}
    return tuple(
        ChatTemplate(name=name, text=named[name]) for name in sorted(named, key=lambda name: (name != DEFAULT, name))
    )


def _digest(tokens: list[str], types: list[int]) -> str:
    """Comparable between GGUF files only: they write some tokens in other letters than a tokenizer.json does."""
    if not tokens:
        return ""
    return hashlib.sha256("\0".join([*tokens, *map(str, types)]).encode("utf-8", "surrogatepass")).hexdigest()


def _remarks(tokens: list[str], ends: tuple[End, ...], templates: tuple[ChatTemplate, ...]) -> tuple[str, ...]:
    found = []
    if not any(template.name == DEFAULT for template in templates):
        found.append(f"it has no chat template: completions are served, and {NO_TEMPLATE}")
    listed = {end.text for end in ends}
    added = sorted(LLAMA_CPP_ENDS.intersection(tokens) - listed)
    if added:
        found.append(f"llama.cpp and Ollama also end an answer at {', '.join(added)}")
    return tuple(found)
