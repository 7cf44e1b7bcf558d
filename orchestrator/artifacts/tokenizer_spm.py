"""SentencePiece BPE, as Llama 2, TinyLlama and Mistral have it: tokenizer.model, or its translation in tokenizer.json.

llama.cpp merges by the scores of pieces. tokenizer.json has merges instead, and llama.cpp's converter then writes one
score for all pieces, with which text is split wrongly. Here the scores are made anew from the merges.
"""

from __future__ import annotations

import re
from pathlib import Path

from gguf import TokenType

from orchestrator.artifacts.meaning import loses_space
from orchestrator.artifacts.spm_model import read_pieces
from orchestrator.artifacts.tokenizer_files import CONFIG, PIECES, TOKENIZER, TokenizerFiles
from orchestrator.artifacts.vocabulary import Token, Tokenizer, Vocabulary, as_token, expressible, read_special, refuse
from orchestrator.core.meaning import DEFAULT, Meaning
from orchestrator.errors import SourceError

SPACE = "\u2581"

# As llama.cpp's converter scores what SentencePiece does not.
_ADDED_SCORE, _PAD_SCORE = -1000.0, -10000.0
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def read_model(files: TokenizerFiles, vocab_size: int, meaning: Meaning) -> Tokenizer:
    """The tokenizer whose pieces stand in tokenizer.model, with what the other files add to it.

    SourceError if it is no sound SentencePiece model, or one that llama.cpp would split text differently by.
    """
    file = files.directory / PIECES
    vocabulary = Vocabulary(file, vocab_size)
    for number, token in enumerate(read_pieces(file)):
        vocabulary.place(number, token)
    for added in expressible(files):
        # What only the pieces know stays as it is there.
        if files.document or added.id not in vocabulary or vocabulary[added.id].text != added.text:
            vocabulary.put(added.id, as_token(added, _ADDED_SCORE))
    return _tokenizer(files, vocabulary, meaning)


def has_pieces_of(files: TokenizerFiles) -> bool:
    """Whether tokenizer.model has just the pieces of tokenizer.json: then it knows their scores besides."""
    file = files.directory / PIECES
    if not file.is_file():
        return False
    try:
        pieces = {token.text: number for number, token in enumerate(read_pieces(file))}
    except SourceError:
        return False
    return pieces == files.vocabulary


def read_json_spm(files: TokenizerFiles, vocab_size: int, meaning: Meaning) -> Tokenizer:
    """The tokenizer that tokenizer.json translates.

    SourceError if its merges are not those that follow from SentencePiece's scores, or if it treats spaces otherwise.
    """
    file = files.directory / TOKENIZER
    model = files.document["model"]
    _prepends(files)
    if not files.vocabulary:
        refuse(file, "it has no vocabulary")
    vocabulary = Vocabulary(file, vocab_size)
    for text, number in files.vocabulary.items():
        vocabulary.place(number, Token(text, TokenType.BYTE if _BYTE.fullmatch(text) else TokenType.NORMAL))
    for added in expressible(files):
        vocabulary.place_added(added.id, added.text, as_token(added, _ADDED_SCORE))
    normal = [number for number, token in vocabulary if token.kind is TokenType.NORMAL]
    _check_merges(file, [vocabulary[number].text for number in normal], model.get("merges"))
    for rank, number in enumerate(normal):
        vocabulary.change(number, score=-float(rank))
    return _tokenizer(files, vocabulary, meaning)


def _tokenizer(files: TokenizerFiles, vocabulary: Vocabulary, meaning: Meaning) -> Tokenizer:
    padded = vocabulary.padded(_PAD_SCORE)
    return Tokenizer(
        "llama",
        "default",
        tuple(token.text for token in padded),
        tuple(int(token.kind) for token in padded),
        read_special(files, meaning, vocabulary, ()),
        tuple(token.score for token in padded),
        _adds_space(files, meaning),
    )


def _adds_space(files: TokenizerFiles, meaning: Meaning) -> bool:
    """Whether a space is put in front of each part of a text. SourceError for what llama.cpp would do differently with
    spaces.

    transformers 5 makes the tokenizers of Llama's class anew, and then add_prefix_space decides; else tokenizer.json.
    """
    said = files.config.get("add_prefix_space")
    if said is not None and not isinstance(said, bool):
        refuse(files.directory / CONFIG, f"add_prefix_space is {said!r}")
    translated = _prepends(files) if files.document else True
    if not files.made_as_llama(meaning.model_type):
        said = translated
    return said is not False and not loses_space(files, meaning.model_type, meaning.template(DEFAULT))


def _prepends(files: TokenizerFiles) -> bool:
    """Whether tokenizer.json puts a space in front. Spaces become a letter, and nothing else is done with them."""
    file, raw = files.directory / TOKENIZER, files.document
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    normalizer, split = raw.get("normalizer"), raw.get("pre_tokenizer")
    decoder = raw.get("decoder")
    steps = decoder.get("decoders") if isinstance(decoder, dict) else None
    if not isinstance(steps, list) or {"type": "ByteFallback"} not in steps:
        refuse(file, f"decoder {decoder!r}")
    if split is None:
        prepend = {"type": "Prepend", "prepend": SPACE}
        if normalizer == {"type": "Sequence", "normalizers": [prepend, replace]}:
            return True
        if normalizer in (replace, {"type": "Sequence", "normalizers": [replace]}):
            return False
    elif normalizer is None and isinstance(split, dict) and split.get("type") == "Metaspace":
        scheme = split.get("prepend_scheme")
        plain = split.get("replacement") == SPACE and split.get("split") is False
        if plain and scheme in ("first", "always", "never"):
            return bool(scheme != "never")
    return refuse(file, f"normalizer {normalizer!r} with pre-tokenizer {split!r}")


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
