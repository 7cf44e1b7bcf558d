"""Byte-level BPE in tokenizer.json, as GPT-2, Qwen2, Llama 3 and SmolLM have it.

llama.cpp's converter recognizes a pre-tokenizer by hashing the token ids of a test text, so a tokenizer of
one's own is always unknown to it. Here the split regex itself decides; anything else is refused. An NFC
normalizer is let pass, as llama.cpp's converter does: its engine does not normalize.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import TokenType

from orchestrator.artifacts.tokenizer_files import PIECES, TOKENIZER, TokenizerFiles
from orchestrator.artifacts.vocabulary import (
    Token,
    Tokenizer,
    Vocabulary,
    as_token,
    expressible,
    read_special,
    refuse,
    refuse_kind,
)
from orchestrator.core.meaning import Meaning
from orchestrator.errors import SourceError

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


def read_bpe(files: TokenizerFiles, vocab_size: int, meaning: Meaning) -> Tokenizer:
    """The tokenizer of these files, for weights of this meaning.

    SourceError if they contradict themselves or describe a tokenizer that GGUF cannot express.
    """
    file, raw = files.directory / TOKENIZER, files.document
    bpe = _checked(file, raw)
    vocabulary = Vocabulary(file, vocab_size)
    for text, number in bpe["vocab"].items():
        vocabulary.place(number, Token(text, TokenType.NORMAL))
    for added in expressible(files):
        vocabulary.place_added(added.id, added.text, as_token(added))
    pre = _pre_tokenizer(file, raw, bool(bpe.get("ignore_merges")))
    _check_class(files, meaning.model_type, pre)
    padded = vocabulary.padded()
    return Tokenizer(
        "gpt2",
        pre,
        tuple(token.text for token in padded),
        tuple(int(token.kind) for token in padded),
        read_special(files, meaning, vocabulary, _merges(file, bpe["merges"])),
    )


def _merges(file: Path, merges: list[Any]) -> tuple[str, ...]:
    """As "left right", whose own spaces are told as llama.cpp reads them."""
    found = []
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(half, str) for half in pair):
            refuse(file, f"its merges hold {merge!r}")
        found.append(" ".join(half.replace(" ", chr(ord(" ") + 256)) for half in pair))
    return tuple(found)


# transformers 5 makes the tokenizers of these classes anew of the vocabulary, with the split of the class. Where none
# is named the kind of model has one, and of qwen2 whatever is named.
_SPLIT_OF_CLASS = {"Qwen2Tokenizer": "qwen2", "GPT2Tokenizer": "gpt-2"}
_CLASS_OF_MODEL = {"qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer"}


def _check_class(files: TokenizerFiles, model_type: str, pre: str) -> None:
    said = files.config.get("tokenizer_class")
    name = _CLASS_OF_MODEL.get(model_type) if said is None or model_type == "qwen2" else str(said)
    expected = _SPLIT_OF_CLASS.get(str(name).removesuffix("Fast"), pre)
    if expected != pre:
        hint = 'With "tokenizer_class": "PreTrainedTokenizerFast" in tokenizer_config.json, tokenizer.json counts.'
        raise SourceError(
            f"{files.directory / TOKENIZER} splits text as {pre} does, {name} of transformers 5 as {expected} does.",
            hint
            if model_type != "qwen2"
            else "vLLM reads it as transformers 5 does: serve it there, with recipe weights.",
        )


def _checked(file: Path, raw: Mapping[str, Any]) -> dict[str, Any]:
    bpe = raw.get("model")
    if not isinstance(bpe, dict) or bpe.get("type") != "BPE":
        refuse(file, "it is not a BPE tokenizer")
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
        refuse(file, f"normalizer {normalizer!r}")
    decoder = raw.get("decoder")
    if not isinstance(decoder, dict) or decoder.get("type") != "ByteLevel":
        refuse(file, f"decoder {decoder!r}")
    return bpe


def _pre_tokenizer(file: Path, raw: Mapping[str, Any], whole_words: bool) -> str:
    found = raw.get("pre_tokenizer")
    steps = found.get("pretokenizers") if isinstance(found, dict) and found.get("type") == "Sequence" else [found]
    telling: list[dict[str, Any]] = []
    if isinstance(steps, list) and all(isinstance(step, dict) for step in steps):
        telling = [{name: step[name] for name in _TELLING if name in step} for step in steps]
    name = next((name for name, (expected, _) in _PRE_TOKENIZERS.items() if expected == telling), "")
    if not name:
        # llama.cpp's converter knows more of them, each by what it makes of a text, and refuses others. Where there is
        # a tokenizer.model beside it, it would take that one.
        known_to_others = not (file.parent / PIECES).exists()
        (refuse_kind if known_to_others else refuse)(file, f"its pre-tokenizer is not known: {str(found)[:300]}")
    if whole_words is not _PRE_TOKENIZERS[name][1]:
        refuse(file, f"ignore_merges={whole_words} with the split that llama.cpp calls {name}")
    return name
