"""What both kinds of tokenizers have: tokens with their types, special ones, and the keys of a GGUF for them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import gguf
from gguf import GGUFWriter, TokenType

from orchestrator.artifacts.json_file import read_json
from orchestrator.core.builders import UnknownToBuilder
from orchestrator.errors import SourceError

# Its warnings are about keys that it does not write; without a handler they would land on the terminal.
logging.getLogger("gguf").addHandler(logging.NullHandler())

_SUPPORTED = (
    "Supported are byte-level BPE with the splits of GPT-2, Qwen2, Llama 3 and SmolLM, and SentencePiece BPE as in "
    "Llama 2. For others llama.cpp's own tools may know more: orch build gguf DIR -o FILE --in-container, or "
    "--tools LLAMA_CPP"
)


@dataclass(frozen=True)
class Tokenizer:
    """`tokens`, `types` (gguf.TokenType) and `scores` (SentencePiece only) have one entry per id, up to the vocabulary
    size of the weights. `model` and `pre` are GGUF's names for how text is split. Where None stands no key is written.
    """

    model: str
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    special: gguf.SpecialVocab
    scores: tuple[float, ...] | None = None
    adds_space: bool | None = None
    adds_bos: bool | None = None

    def add_to(self, writer: GGUFWriter) -> None:
        """Writes the tokenizer.* keys in llama.cpp's order."""
        if self.adds_space is not None:
            writer.add_add_space_prefix(self.adds_space)
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        writer.add_token_types(self.types)
        self.special.add_to_gguf(writer, quiet=True)
        if self.adds_bos is not None:
            writer.add_add_bos_token(self.adds_bos)


@dataclass(frozen=True)
class Token:
    """One token; without a score in byte-level tokenizers."""

    text: str
    kind: TokenType
    score: float = 0.0


class Vocabulary:
    """Tokens by id, as they are found in `file`; each id and each text may be taken once."""

    def __init__(self, file: Path, size: int) -> None:
        self.file, self.size = file, size
        self._tokens: dict[int, Token] = {}

    def __getitem__(self, number: int) -> Token:
        return self._tokens[number]

    def __contains__(self, number: object) -> bool:
        return number in self._tokens

    def __iter__(self) -> Iterator[tuple[int, Token]]:
        """(id, token), ids growing."""
        return iter(sorted(self._tokens.items()))

    @property
    def texts(self) -> set[str]:
        """All tokens' texts."""
        return {token.text for token in self._tokens.values()}

    def place(self, number: object, token: Token) -> None:
        """Takes a free id. SourceError if it is none or outside of the weights' vocabulary."""
        if type(number) is not int or not 0 <= number < self.size:
            raise SourceError(
                f"{self.file}: token {token.text!r} has id {number!r}, config.json says vocab_size {self.size}.",
                f"Check that {self.file.name} and config.json belong together.",
            )
        if number in self._tokens:
            refuse(self.file, f"{token.text!r} and {self._tokens[number].text!r} share id {number}")
        try:
            token.text.encode()
        except UnicodeEncodeError:
            refuse(self.file, f"token {number} is not Unicode text")
        self._tokens[number] = token

    def place_added(self, number: object, text: str, token: Token) -> None:
        """Like `place`, but the id may be that of `text` itself: an added token is often in the vocabulary too."""
        same = type(number) is int and number in self and self[number].text == text
        (self.put if same else self.place)(number, token)

    def put(self, number: object, token: Token) -> None:
        """Like `place`, but what has the id now gives way."""
        if type(number) is int:
            self._tokens.pop(number, None)
        self.place(number, token)

    def change(self, number: int, **fields: Any) -> None:
        """Other values of a token that is there."""
        self._tokens[number] = replace(self._tokens[number], **fields)

    def padded(self, score: float = 0.0) -> list[Token]:
        """A token for every id; those that none has are unused ones. SourceError if two tokens read the same."""
        if len(self.texts) != len(self._tokens):
            refuse(self.file, "one token has two ids")
        return [
            self._tokens.get(number, Token(f"[PAD{number}]", TokenType.UNUSED, score)) for number in range(self.size)
        ]


def refuse(file: Path, reason: str) -> NoReturn:
    """The tokenizer in `file` cannot be put into a GGUF."""
    raise SourceError(f"{file} cannot be converted: {reason}.", _SUPPORTED)


def refuse_kind(file: Path, reason: str) -> NoReturn:
    """The tokenizer in `file` is of a kind that has to be known to be converted, and is not."""
    raise UnknownToBuilder(f"{file} cannot be converted: {reason}.", _SUPPORTED, f"its tokenizer ({reason})")


def added_tokens(file: Path, raw: dict[str, Any]) -> list[dict[str, Any]]:
    """tokenizer.json's added tokens, checked; SourceError for what GGUF has no words for."""
    added = raw.get("added_tokens") or []
    sound = isinstance(added, list) and all(
        isinstance(token, dict) and isinstance(token.get("content"), str) and token["content"] for token in added
    )
    if not sound:
        refuse(file, "added_tokens is not a list of tokens")
    for token in added:
        for name in ("single_word", "lstrip", "rstrip"):
            if token.get(name):
                refuse(file, f"added token {token['content']!r} has {name}, which GGUF cannot express")
    return list(added)


def added_kind(text: str, special: object) -> TokenType:
    """The type of an added token. Some are control tokens though nothing marks them, such as <|fim_prefix|>."""
    looks_special = text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]") or any(
        text.startswith(begin) and text.endswith(end)
        for begin, end in (("<|", "|>"), ("<\uff5c", "\uff5c>"), ("<unused", ">"))
    )
    return TokenType.CONTROL if special or looks_special else TokenType.USER_DEFINED


def written(text: str, kind: TokenType) -> str:
    """What stands in the GGUF for an added token: llama.cpp looks for user-defined ones in the text as it comes."""
    return text.replace("\u2581", " ") if kind is TokenType.USER_DEFINED else text


def read_special(directory: Path, file: Path, known: set[str], vocab_size: int, merges: bool) -> gguf.SpecialVocab:
    """Merges, special ids and chat template, by gguf's own reading of the directory's files."""
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "chat_template.json"):
        if (directory / name).is_file():
            read_json(directory / name)
    try:
        special = gguf.SpecialVocab(directory, load_merges=merges)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise SourceError(f"{directory}: its tokenizer files cannot be read: {error!r}.", _SUPPORTED) from error
    for kind, number in special.special_token_ids.items():
        if type(number) is not int or number >= vocab_size:
            refuse(file, f"{kind} token {number!r} is outside the vocabulary")
    for merge in special.merges:
        left, _, right = merge.partition(" ")
        if left not in known or right not in known or left + right not in known:
            refuse(file, f"merge {merge!r} is not about tokens of the vocabulary")
    if not _is_template(special.chat_template):
        refuse(file, "chat_template is not text")
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
