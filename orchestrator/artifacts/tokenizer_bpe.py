"""Byte-level BPE in tokenizer.json, as GPT-2, Qwen2, Llama 3 and SmolLM have it.

llama.cpp's converter recognizes a pre-tokenizer by hashing the token ids of a test text, so a tokenizer of
one's own is always unknown to it. Here the split regex itself decides; anything else is refused. An NFC
normalizer is let pass, as llama.cpp's converter does: its engine does not normalize.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gguf import TokenType

from orchestrator.artifacts.vocabulary import (
    Token,
    Tokenizer,
    Vocabulary,
    added_kind,
    added_tokens,
    read_special,
    refuse,
    refuse_kind,
    written,
)

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = QWEN2_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def _split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
_GPT2 = _BYTES | {"use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}
# llama.cpp's name for each, and whether it then takes whole words from the vocabulary before it merges.
_PRE_TOKENIZERS: dict[str, tuple[list[dict[str, Any]], bool]] = {
    "qwen2": ([_split(QWEN2_SPLIT), _BYTES], False),
    "gpt-2": ([_GPT2], False),
    "llama-bpe": ([_split(LLAMA3_SPLIT), _BYTES], True),
    "smollm": ([_DIGITS, _GPT2], False),
}
_TELLING = ("type", "pattern", "behavior", "invert", "add_prefix_space", "use_regex", "individual_digits")
_ABSENT = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")


def read_bpe(directory: Path, raw: dict[str, Any], vocab_size: int) -> Tokenizer:
    """The tokenizer that `raw`, the directory's tokenizer.json, describes.

    SourceError if its files contradict themselves or describe a tokenizer that GGUF cannot express.
    """
    file = directory / "tokenizer.json"
    bpe = _checked(file, raw)
    vocabulary = Vocabulary(file, vocab_size)
    for text, number in bpe["vocab"].items():
        vocabulary.place(number, Token(text, TokenType.NORMAL))
    for added in added_tokens(file, raw):
        text, number = added["content"], added.get("id")
        kind = added_kind(text, added.get("special"))
        vocabulary.place_added(number, text, Token(written(text, kind), kind))
    padded = vocabulary.padded()
    return Tokenizer(
        "gpt2",
        _pre_tokenizer(file, raw, bool(bpe.get("ignore_merges"))),
        tuple(token.text for token in padded),
        tuple(int(token.kind) for token in padded),
        read_special(directory, file, vocabulary.texts, vocab_size, merges=True),
    )


def _checked(file: Path, raw: dict[str, Any]) -> dict[str, Any]:
    bpe = raw.get("model")
    if not isinstance(bpe, dict) or bpe.get("type") != "BPE":
        refuse_kind(file, "it is not a BPE tokenizer")
    for name in _ABSENT:
        if bpe.get(name):
            refuse(file, f"BPE with {name}={bpe[name]!r}")
    if not isinstance(bpe.get("vocab"), dict) or not bpe["vocab"]:
        refuse(file, "it has no vocabulary")
    merges = bpe.get("merges")
    if not isinstance(merges, list) or not merges:
        refuse(file, "it has no merges")
    normalizer = raw.get("normalizer")
    if normalizer not in (None, {"type": "NFC"}):
        refuse_kind(file, f"normalizer {normalizer!r}")
    decoder = raw.get("decoder")
    if not isinstance(decoder, dict) or decoder.get("type") != "ByteLevel":
        refuse_kind(file, f"decoder {decoder!r}")
    return bpe


def _pre_tokenizer(file: Path, raw: dict[str, Any], whole_words: bool) -> str:
    found = raw.get("pre_tokenizer")
    steps = found.get("pretokenizers") if isinstance(found, dict) and found.get("type") == "Sequence" else [found]
    telling: list[dict[str, Any]] = []
    if isinstance(steps, list) and all(isinstance(step, dict) for step in steps):
        telling = [{name: step[name] for name in _TELLING if name in step} for step in steps]
    name = next((name for name, (expected, _) in _PRE_TOKENIZERS.items() if expected == telling), "")
    if not name:
        refuse_kind(file, f"its pre-tokenizer is not known: {str(found)[:300]}")
    if whole_words is not _PRE_TOKENIZERS[name][1]:
        refuse_kind(file, f"ignore_merges={whole_words} with the split that llama.cpp calls {name}")
    return name
