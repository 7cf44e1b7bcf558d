"""A tokenizer's files as transformers 5 reads them together: what is added to the vocabulary, and which tokens have a
name.

tokenizer.json has the vocabulary. What tokenizer_config.json lists in `added_tokens_decoder` is added to it; where that
list is missing, special_tokens_map.json and added_tokens.json of older versions are read in its place. A token with a
name (eos_token) is special, whatever the lists say (transformers/tokenization_utils_base.py, `_from_pretrained`, and
tokenization_utils_tokenizers.py, `__init__`; all of it seen with transformers 5.24).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.artifacts.json_file import read_json
from orchestrator.errors import SourceError

TOKENIZER = "tokenizer.json"
PIECES = "tokenizer.model"
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
    tokens that have a name there, by its first part: bos, eos, pad."""

    directory: Path
    document: Mapping[str, Any]
    config: Mapping[str, Any]
    named: Mapping[str, str]
    added: tuple[Added, ...]

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """The learnt tokens with their ids; empty where tokenizer.json does not list them by text."""
        model = self.document.get("model")
        found = model.get("vocab") if isinstance(model, dict) else None
        return found if isinstance(found, dict) else {}

    @property
    def ids(self) -> dict[str, int]:
        """All tokens with their ids."""
        return {**self.vocabulary, **{token.text: token.id for token in self.added}}

    @property
    def digest(self) -> str:
        """A SHA-256 over all tokens and what becomes of them; empty without tokenizer.json."""
        if not self.document:
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
    lists = _legacy_list(directory, named) if legacy else _list(directory / CONFIG, config)
    files = TokenizerFiles(directory, document, config, named, added)
    return TokenizerFiles(directory, document, config, named, _joined(files, lists)) if document else files


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
    """Those of tokenizer.json, with what the lists and names add to them or know otherwise. An id belongs to what has
    it in tokenizer.json; a new token is given the next free one, whatever the list says, so it had better say that."""
    found = {token.text: token for token in files.added}
    vocabulary = files.vocabulary
    news = [token for token in lists if token.text not in found]
    known = {token.text for token in (*found.values(), *news)}
    news += [Added(-1, text, True) for text in dict.fromkeys(files.named.values()) if text not in known]
    for token in lists:
        if (present := found.get(token.text)) is not None:
            found[token.text] = Added(present.id, token.text, present.special or token.special, token.flags)
    for token in news:
        free = max(len(vocabulary), max((one.id for one in found.values()), default=-1) + 1)
        number = vocabulary.get(token.text, free)
        if token.id not in (number, -1):
            raise SourceError(
                f"{files.directory / CONFIG}: {token.text!r} is said to have id {token.id}, and transformers gives it "
                f"{number}, because {TOKENIZER} does not have it.",
                "Save the tokenizer again with the version of transformers that it was made with.",
            )
        found[token.text] = Added(number, token.text, token.special, token.flags)
    names = set(files.named.values())
    return tuple(
        sorted(
            (Added(one.id, one.text, one.special or one.text in names, one.flags) for one in found.values()),
            key=lambda one: one.id,
        )
    )
