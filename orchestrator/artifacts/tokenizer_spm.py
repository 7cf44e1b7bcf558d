"""SentencePiece BPE, as Llama 2, TinyLlama and Mistral have it: tokenizer.model, or its translation in tokenizer.json.

llama.cpp merges by the scores of pieces. tokenizer.json has merges instead, and llama.cpp's converter then writes one
score for all pieces, with which text is split wrongly. Here the scores are made anew from the merges.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from gguf import TokenType

from orchestrator.artifacts.json_file import read_json
from orchestrator.artifacts.spm_model import read_pieces
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

SPACE = "\u2581"

# As llama.cpp's converter scores what SentencePiece does not.
_ADDED_SCORE, _PAD_SCORE = -1000.0, -10000.0
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def read_model(directory: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer in tokenizer.model, with what added_tokens.json and tokenizer_config.json add to it.

    SourceError if it is no sound SentencePiece model, or one that llama.cpp would split text differently by.
    """
    file = directory / "tokenizer.model"
    vocabulary = Vocabulary(file, vocab_size)
    for number, token in enumerate(read_pieces(file)):
        vocabulary.place(number, token)
    added = directory / "added_tokens.json"
    if added.is_file():
        for text, number in read_json(added).items():
            vocabulary.put(number, Token(text, TokenType.USER_DEFINED, _ADDED_SCORE))
    config = directory / "tokenizer_config.json"
    decoder = read_json(config).get("added_tokens_decoder", {}) if config.is_file() else {}
    if not isinstance(decoder, dict):
        refuse(config, "added_tokens_decoder is not an object")
    for key, entry in decoder.items():
        content = entry.get("content") if isinstance(entry, dict) else None
        if not key.isascii() or not key.isdecimal() or not isinstance(content, str):
            refuse(config, f"added_tokens_decoder has {key!r}: {entry!r}")
        kind = added_kind(content, entry.get("special"))
        vocabulary.put(int(key), Token(written(content, kind), kind, _ADDED_SCORE))
    return _tokenizer(directory, vocabulary)


def is_spm(raw: dict[str, Any]) -> bool:
    """Whether a tokenizer.json is the translation of a SentencePiece model: what no piece covers is told in bytes."""
    model = raw.get("model")
    return isinstance(model, dict) and model.get("type") == "BPE" and model.get("byte_fallback") is True


def read_json_spm(directory: Path, raw: dict[str, Any], vocab_size: int) -> Tokenizer:
    """The tokenizer that `raw`, the directory's tokenizer.json, translates.

    SourceError if its merges are not those that follow from SentencePiece's scores, or if it treats spaces otherwise.
    """
    file = directory / "tokenizer.json"
    model = raw["model"]
    _check_spaces(file, raw)
    if not isinstance(model.get("vocab"), dict) or not model["vocab"]:
        refuse(file, "it has no vocabulary")
    vocabulary = Vocabulary(file, vocab_size)
    for text, number in model["vocab"].items():
        vocabulary.place(number, Token(text, TokenType.BYTE if _BYTE.fullmatch(text) else TokenType.NORMAL))
    for added in added_tokens(file, raw):
        text, number = added["content"], added.get("id")
        kind = added_kind(text, added.get("special"))
        vocabulary.place_added(number, text, Token(written(text, kind), kind, _ADDED_SCORE))
    normal = [number for number, token in vocabulary if token.kind is TokenType.NORMAL]
    _check_merges(file, [vocabulary[number].text for number in normal], model.get("merges"))
    for rank, number in enumerate(normal):
        vocabulary.change(number, score=-float(rank))
    return _tokenizer(directory, vocabulary)


def _tokenizer(directory: Path, vocabulary: Vocabulary) -> Tokenizer:
    padded = vocabulary.padded(_PAD_SCORE)
    return Tokenizer(
        "llama",
        "default",
        tuple(token.text for token in padded),
        tuple(int(token.kind) for token in padded),
        read_special(directory, vocabulary.file, vocabulary.texts, vocabulary.size, merges=False),
        tuple(token.score for token in padded),
    )


def _check_spaces(file: Path, raw: dict[str, Any]) -> None:
    """Spaces become a letter, and one is put in front; all else llama.cpp would do differently."""
    prepended = [
        {"type": "Prepend", "prepend": SPACE},
        {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
    ]
    normalizer, split = raw.get("normalizer"), raw.get("pre_tokenizer")
    older = normalizer == {"type": "Sequence", "normalizers": prepended} and split is None
    newer = (
        normalizer is None
        and isinstance(split, dict)
        and split.get("type") == "Metaspace"
        and split.get("replacement") == SPACE
        and split.get("prepend_scheme") in ("first", "always")
        and split.get("split") is False
    )
    if not older and not newer:
        refuse_kind(file, f"normalizer {normalizer!r} with pre-tokenizer {split!r}")
    decoder = raw.get("decoder")
    steps = decoder.get("decoders") if isinstance(decoder, dict) else None
    if not isinstance(steps, list) or {"type": "ByteFallback"} not in steps:
        refuse_kind(file, f"decoder {decoder!r}")


def _check_merges(file: Path, texts: list[str], merges: object) -> None:
    """SentencePiece joins any two neighbours whose union is a piece, the earliest piece first: so must the merges."""
    ids = {text: number for number, text in enumerate(texts)}
    if not isinstance(merges, list):
        refuse(file, "it has no merges")
    pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in merges]
    joined: set[tuple[str, str]] = set()
    last = 0
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(half, str) for half in pair):
            refuse(file, f"its merges hold {pair!r}")
        left, right = pair
        number = ids.get(left + right)
        if number is None:
            continue
        if number < last:
            refuse(file, f"its merges are not in the order of its pieces: {left + right!r} comes after {texts[last]!r}")
        last = number
        joined.add((left, right))
    for text in texts:
        for cut in range(1, len(text)):
            if text[:cut] in ids and text[cut:] in ids and (text[:cut], text[cut:]) not in joined:
                refuse(file, f"its merges do not join {text[:cut]!r} and {text[cut:]!r}, as SentencePiece would")
