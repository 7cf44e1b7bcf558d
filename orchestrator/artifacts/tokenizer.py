"""tokenizer.json to what a GGUF holds: tokens, their types, merges, and the pre-tokenizer's name.

llama.cpp's converter recognizes a pre-tokenizer by hashing the token ids of a test text, so a tokenizer of
one's own is always unknown to it. Here the split regex itself decides; anything else is refused. An NFC
normalizer is let pass, as llama.cpp's converter does: its engine does not normalize.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
from gguf import GGUFWriter, TokenType

from orchestrator.artifacts.json_file import read_json
from orchestrator.errors import SourceError

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_SUPPORTED = "Supported are byte-level BPE tokenizers with the split of GPT-2 or of Qwen2 and Qwen3."


@dataclass(frozen=True)
class Tokenizer:
    """`tokens` and `types` (gguf.TokenType) have one entry per id up to the vocabulary size of the weights."""

    tokens: tuple[str, ...]
    types: tuple[int, ...]
    pre: str
    special: gguf.SpecialVocab

    def add_to(self, writer: GGUFWriter) -> None:
        """Writes the tokenizer.* keys in llama.cpp's order."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        self.special.add_to_gguf(writer, quiet=True)


def read_tokenizer(directory: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer of a Hugging Face directory, padded to `vocab_size` with unused tokens.

    SourceError if its files contradict themselves or describe a tokenizer that GGUF cannot express.
    """
    file = directory / "tokenizer.json"
    raw = read_json(file)
    bpe = _bpe(file, raw)
    tokens: dict[int, tuple[str, int]] = {}
    for text, number in bpe["vocab"].items():
        _place(file, tokens, number, text, TokenType.NORMAL, vocab_size)
    for added in _added(file, raw):
        text, number = added["content"], added.get("id")
        kind = TokenType.CONTROL if added.get("special") or _looks_special(text) else TokenType.USER_DEFINED
        if type(number) is int and tokens.get(number, ("", 0))[0] == text:
            del tokens[number]
        _place(file, tokens, number, text, kind, vocab_size)
    if len({text for text, _ in tokens.values()}) != len(tokens):
        _refuse(file, "one token has two ids")
    padded = [tokens.get(number, (f"[PAD{number}]", TokenType.UNUSED)) for number in range(vocab_size)]
    special = _special(directory, {text for text, _ in tokens.values()}, vocab_size)
    return Tokenizer(
        tuple(text for text, _ in padded), tuple(int(kind) for _, kind in padded), _pre_tokenizer(file, raw), special
    )


def _refuse(file: Path, reason: str) -> None:
    raise SourceError(f"{file} cannot be converted: {reason}.", _SUPPORTED)


def _bpe(file: Path, raw: dict[str, Any]) -> dict[str, Any]:
    bpe = raw.get("model")
    if not isinstance(bpe, dict) or bpe.get("type") != "BPE":
        raise SourceError(f"{file} cannot be converted: it is no BPE tokenizer.", _SUPPORTED)
    plain = (
        "dropout",
        "unk_token",
        "continuing_subword_prefix",
        "end_of_word_suffix",
        "byte_fallback",
        "ignore_merges",
    )
    for name in plain:
        if bpe.get(name):
            _refuse(file, f"BPE with {name}={bpe[name]!r}")
    if not isinstance(bpe.get("vocab"), dict) or not bpe["vocab"]:
        _refuse(file, "it has no vocabulary")
    merges = bpe.get("merges")
    if not isinstance(merges, list) or not merges:
        _refuse(file, "it has no merges")
    normalizer = raw.get("normalizer")
    if normalizer not in (None, {"type": "NFC"}):
        _refuse(file, f"normalizer {normalizer!r}")
    decoder = raw.get("decoder")
    if not isinstance(decoder, dict) or decoder.get("type") != "ByteLevel":
        _refuse(file, f"decoder {decoder!r}")
    return bpe


def _added(file: Path, raw: dict[str, Any]) -> list[dict[str, Any]]:
    added = raw.get("added_tokens") or []
    sound = isinstance(added, list) and all(
        isinstance(token, dict) and isinstance(token.get("content"), str) and token["content"] for token in added
    )
    if not sound:
        _refuse(file, "added_tokens is not a list of tokens")
    for token in added:
        for name in ("single_word", "lstrip", "rstrip"):
            if token.get(name):
                _refuse(file, f"added token {token['content']!r} has {name}, which GGUF cannot express")
    return list(added)


def _place(
    file: Path, tokens: dict[int, tuple[str, int]], number: object, text: str, kind: TokenType, vocab_size: int
) -> None:
    if type(number) is not int or not 0 <= number < vocab_size:
        raise SourceError(
            f"{file}: token {text!r} has id {number!r}, config.json says vocab_size {vocab_size}.",
            "Check that tokenizer.json and config.json belong together.",
        )
    if number in tokens:
        _refuse(file, f"{text!r} and {tokens[number][0]!r} share id {number}")
    try:
        text.encode()
    except UnicodeEncodeError:
        _refuse(file, f"token {number} is not Unicode text")
    tokens[number] = (text, kind)


def _looks_special(text: str) -> bool:
    """Tokens that are control tokens although tokenizer.json does not mark them, such as <|fim_prefix|>."""
    return text in ("<pad>", "<mask>") or (text.startswith("<|") and text.endswith("|>"))


def _pre_tokenizer(file: Path, raw: dict[str, Any]) -> str:
    found = raw.get("pre_tokenizer")
    steps = found.get("pretokenizers") if isinstance(found, dict) and found.get("type") == "Sequence" else [found]
    kept = ("type", "pattern", "behavior", "invert", "add_prefix_space", "use_regex")
    if isinstance(steps, list) and all(isinstance(step, dict) for step in steps):
        plain = [{name: step[name] for name in kept if name in step} for step in steps]
        bytes_only = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
        split = {"type": "Split", "pattern": {"Regex": QWEN2_SPLIT}, "behavior": "Isolated", "invert": False}
        if plain == [split, bytes_only]:
            return "qwen2"
        if plain == [bytes_only | {"use_regex": True}]:
            return "gpt-2"
    raise SourceError(f"{file}: its pre-tokenizer is not known.", _SUPPORTED, str(found)[:500])


def _special(directory: Path, known: set[str], vocab_size: int) -> gguf.SpecialVocab:
    """Merges, special ids and chat template, by gguf's own reading of the directory's files."""
    for name in ("tokenizer_config.json", "config.json", "chat_template.json"):
        if (directory / name).is_file():
            read_json(directory / name)
    file = directory / "tokenizer.json"
    try:
        special = gguf.SpecialVocab(directory, load_merges=True)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise SourceError(f"{directory}: its tokenizer files cannot be read: {error!r}.", _SUPPORTED) from error
    for kind, number in special.special_token_ids.items():
        if type(number) is not int or number >= vocab_size:
            _refuse(file, f"{kind} token {number!r} is outside of the vocabulary")
    for merge in special.merges:
        left, _, right = merge.partition(" ")
        if left not in known or right not in known or left + right not in known:
            _refuse(file, f"merge {merge!r} is not about tokens of the vocabulary")
    if not _is_template(special.chat_template):
        _refuse(file, "chat_template is no text")
    return special


def _is_template(template: object) -> bool:
    """None, one text, or transformers' list of named ones; all of it writable as UTF-8."""
    if isinstance(template, list):
        return all(
            isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str)
            for entry in template
        )
    return template is None or (
        isinstance(template, str) and not any("\ud800" <= char <= "\udfff" for char in template)
    )
