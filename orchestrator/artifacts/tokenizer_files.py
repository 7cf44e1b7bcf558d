"""A tokenizer's files as transformers 5 reads them together: what is added to the vocabulary, and which tokens have a
name.

tokenizer.json has the vocabulary, or in its place vocab.json or tokenizer.model. What tokenizer_config.json lists in
`added_tokens_decoder` is added to it; where that list is missing, special_tokens_map.json and added_tokens.json of
older versions are read in its place. A token with a name (eos_token) is special, whatever the lists say
(transformers/tokenization_utils_base.py, `_from_pretrained`, and tokenization_utils_tokenizers.py, `__init__`; all of
it seen with transformers 5.24).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.artifacts.json_file import read_json
from orchestrator.errors import SourceError

TOKENIZER = "tokenizer.json"
PIECES = "tokenizer.model"
SLOW = "vocab.json"
CONFIG = "tokenizer_config.json"
NAMED_SUFFIX = "_token"
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


@dataclass(frozen=True)
class Added:
    """A token beside the vocabulary that was learnt; `flags` are those of its flags that are set."""

    id: int
    text: str
    special: bool
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class TokenizerFiles:
    """`document` is tokenizer.json, empty where there is none; `config` tokenizer_config.json; `named` the texts of the
    tokens that have a name there, by its first part: bos, eos, pad. `vocabulary` are the learnt tokens with their ids,
    empty where none of its files lists them by text."""

    directory: Path
    document: Mapping[str, Any]
    config: Mapping[str, Any]
    named: Mapping[str, str]
    vocabulary: Mapping[str, int]
    added: tuple[Added, ...]

    @property
    def is_spm(self) -> bool:
        """Whether it is a SentencePiece model, or the translation of one: what no piece covers is told in bytes."""
        if not self.document:
            return (self.directory / PIECES).is_file()
        model = self.document.get("model")
        return isinstance(model, dict) and model.get("type") == "BPE" and model.get("byte_fallback") is True

    def made_as_llama(self, model_type: str) -> bool:
        """Whether transformers 5 makes it anew as the tokenizer of Llama: of Mistral's it never does."""
        name = str(self.config.get("tokenizer_class", "")).removesuffix("Fast")
        return not self.document or (name == "LlamaTokenizer" and model_type != "mistral")

    def space_in_front(self, model_type: str) -> str:
        """Of what a SentencePiece tokenizer puts a space in front: "never", the "first" part of a text, "always" of all
        parts between special tokens, or "even" of those that begin with one, as llama.cpp does."""
        if self.made_as_llama(model_type):
            # transformers/convert_slow_tokenizer.py, `_get_prepend_scheme`.
            spaces = self.config.get("add_prefix_space") is not False
            return ("always" if self.config.get("legacy") else "first") if spaces else "never"
        split = self.document.get("pre_tokenizer")
        return str(split.get("prepend_scheme")) if isinstance(split, dict) else "even"

    @property
    def ids(self) -> dict[str, int]:
        """All tokens with their ids."""
        return {**self.vocabulary, **{token.text: token.id for token in self.added}}

    @property
    def digest(self) -> str:
        """A SHA-256 over all tokens and what becomes of them; empty without a vocabulary."""
        if not self.vocabulary:
            return ""
        kinds = {token.id: "special" if token.special else "added" for token in self.added}
        digest = hashlib.sha256()
        for text, number in sorted(self.ids.items(), key=lambda item: (str(item[1]), item[0])):
            digest.update(f"{number}\0{kinds.get(number, '')}\0{text}\0".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


def read_tokenizer_files(directory: Path) -> TokenizerFiles:
    """SourceError where they contradict each other about what a token is."""
    document = _object(directory / TOKENIZER)
    config = _object(directory / CONFIG)
    legacy = "added_tokens_decoder" not in config
    named = _named(config) | (_named(_object(directory / "special_tokens_map.json")) if legacy else {})
    added = _in_document(directory / TOKENIZER, document)
    vocabulary = _learnt(document) if document else _object(directory / SLOW)
    if not document and not vocabulary:
        vocabulary, added = _in_pieces(directory / PIECES)
    lists = _legacy_list(directory, named) if legacy else _list(directory / CONFIG, config)
    files = TokenizerFiles(directory, document, config, named, vocabulary, added)
    return replace(files, added=_joined(files, lists)) if document or vocabulary else files


def _learnt(document: Mapping[str, Any]) -> dict[str, int]:
    model = document.get("model")
    found = model.get("vocab") if isinstance(model, dict) else None
    return found if isinstance(found, dict) else {}


def _in_pieces(file: Path) -> tuple[dict[str, int], tuple[Added, ...]]:
    """The pieces of a SentencePiece model, and those that stand for no text; nothing for what is none, or none that a
    GGUF can have: who builds one says why not."""
    if not file.is_file():
        return {}, ()
    # Few directories need it, and it takes long to import.
    from orchestrator.artifacts.spm_model import SPECIAL, read_pieces

    try:
        pieces = read_pieces(file)
    except SourceError:
        return {}, ()
    special = tuple(Added(number, piece.text, True) for number, piece in enumerate(pieces) if piece.kind in SPECIAL)
    return {piece.text: number for number, piece in enumerate(pieces)}, special


def _object(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _text(value: object) -> str:
    """A token's text, alone or with its flags."""
    found = value.get("content") if isinstance(value, dict) else value
    return found if isinstance(found, str) else ""


def _named(document: Mapping[str, Any]) -> dict[str, str]:
    found = {name: _text(value) for name, value in document.items() if name.endswith(NAMED_SUFFIX)}
    return {name.removesuffix(NAMED_SUFFIX): text for name, text in found.items() if text}


def _added(number: int, entry: Mapping[str, Any]) -> Added:
    flags = tuple(name for name in _FLAGS if entry.get(name))
    return Added(number, _text(entry), bool(entry.get("special")), flags)


def _in_document(file: Path, document: Mapping[str, Any]) -> tuple[Added, ...]:
    entries = document.get("added_tokens") or []
    sound = isinstance(entries, list) and all(
        isinstance(one, dict) and _text(one) and type(one.get("id")) is int for one in entries
    )
    if not sound:
        raise SourceError(f"{file}: added_tokens is not a list of tokens.", "Download it again.")
    return tuple(_added(one["id"], one) for one in entries)


def _list(file: Path, config: Mapping[str, Any]) -> list[Added]:
    decoder = config["added_tokens_decoder"]
    sound = isinstance(decoder, dict) and all(
        key.isascii() and key.isdecimal() and isinstance(one, dict) and _text(one) for key, one in decoder.items()
    )
    if not sound:
        raise SourceError(f"{file}: added_tokens_decoder is not a list of tokens by id.", "Download it again.")
    return [_added(int(key), one) for key, one in sorted(decoder.items(), key=lambda item: int(item[0]))]


def _legacy_list(directory: Path, named: Mapping[str, str]) -> list[Added]:
    file = directory / "added_tokens.json"
    found = _object(file)
    if not all(type(number) is int for number in found.values()):
        raise SourceError(f"{file} is not a list of ids by text.", "Download it again.")
    return [
        Added(number, text, text in named.values()) for text, number in sorted(found.items(), key=lambda one: one[1])
    ]


def _joined(files: TokenizerFiles, lists: list[Added]) -> tuple[Added, ...]:
    """Those of tokenizer.json, with what the lists and names add to them or know otherwise. A token that is not in the
    vocabulary is given the next free id, whatever is said of it, so it had better be said that."""
    found: dict[str, Added] = {}
    others = {number: text for text, number in files.vocabulary.items() if type(number) is int}
    names = set(files.named.values())
    listed = {token.text: token for token in lists}
    unlisted = [Added(_NEXT, text, True) for text in dict.fromkeys([*files.named.values(), *_further(files.config)])]
    for token in (*sorted(files.added, key=lambda one: one.id), *lists, *unlisted):
        if token.text in found:
            continue
        free = max(len(files.vocabulary), max((one.id for one in found.values()), default=-1) + 1)
        number = files.vocabulary.get(token.text, token.id if _NEXT < token.id < free else free)
        if token.id > free:
            raise SourceError(
                f"{files.directory}: {token.text!r} is said to have id {token.id}, and transformers gives it {number}.",
                "Save the tokenizer again with the version of transformers that it was made with.",
            )
        taken = others.get(number) or next((one.text for one in found.values() if one.id == number), "")
        if token.text not in files.vocabulary and taken:
            raise SourceError(
                f"{files.directory}: {token.text!r} and {taken!r} share id {number}.",
                "Save the tokenizer again with the version of transformers that it was made with.",
            )
        known = listed.get(token.text, token)
        special = token.special or known.special or token.text in names
        found[token.text] = Added(number, token.text, special, known.flags)
    return tuple(sorted(found.values(), key=lambda one: one.id))


_NEXT = -1


def _further(config: Mapping[str, Any]) -> list[str]:
    """Special tokens without a name."""
    entries = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    values = entries.values() if isinstance(entries, dict) else entries if isinstance(entries, list) else ()
    return [text for value in values if (text := _text(value))]


def put_around(files: TokenizerFiles) -> dict[str, bool] | None:
    """Whether bos is put before each text and eos after it; None where something else is done to it.

    The post-processor of tokenizer.json says that alone, whatever add_bos_token says beside it; without a
    tokenizer.json that does.
    """
    if not files.document:
        return {name: bool(files.config.get(f"add_{name}_token", name == "bos")) for name in ("bos", "eos")}
    found: dict[str, bool] | None = {"bos": False, "eos": False}
    processor = files.document.get("post_processor")
    steps = processor.get("processors", [processor]) if isinstance(processor, dict) else []
    for step in steps:
        kind = step.get("type") if isinstance(step, dict) else None
        if kind == "TemplateProcessing":
            found = _of_template(files.named, step.get("single"))
        elif kind != "ByteLevel":
            return None
    return found


def _of_template(named: Mapping[str, str], single: object) -> dict[str, bool] | None:
    """Of [bos] text [eos], whether either is there."""
    texts = []
    for piece in single if isinstance(single, list) else ():
        special = piece.get("SpecialToken") if isinstance(piece, dict) else None
        texts.append(special.get("id") if isinstance(special, dict) else "")
    bos, eos = named.get("bos"), named.get("eos")
    known: dict[tuple[object, ...], dict[str, bool]] = {
        ("",): {"bos": False, "eos": False},
        (bos, ""): {"bos": True, "eos": False},
        ("", eos): {"bos": False, "eos": True},
        (bos, "", eos): {"bos": True, "eos": True},
    }
    return known.get(tuple(texts))
