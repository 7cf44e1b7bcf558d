"""What both kinds of tokenizers have: tokens with their types, special ones, and the keys of a GGUF for them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from gguf import GGUFWriter, TokenType

from orchestrator.artifacts.json_file import read_json
from orchestrator.artifacts.meaning import LLAMA_CPP_ENDS, writes_bos
from orchestrator.artifacts.tokenizer_files import CONFIG, TOKENIZER, Added, TokenizerFiles, put_around
from orchestrator.core.builders import UnknownToBuilder
from orchestrator.core.meaning import DEFAULT, ChatTemplate, End, Meaning
from orchestrator.errors import SourceError

# Its warnings are about keys that it does not write; without a handler they would land on the terminal.
logging.getLogger("gguf").addHandler(logging.NullHandler())

_SUPPORTED = (
    "Supported are byte-level BPE with the splits of GPT-2, Qwen2, Llama 3 and SmolLM, and SentencePiece BPE as in "
    "Llama 2. For others llama.cpp's own tools may know more: orch build gguf DIR -o FILE --in-container, or "
    "--tools LLAMA_CPP"
)


@dataclass(frozen=True)
class Special:
    """What of a tokenizer is no token: its merges ("a b"), the ids of the tokens that have a name (bos, eos, eot), what
    is put before and after each text (bos, eos), and the chat templates by name."""

    merges: tuple[str, ...]
    ids: Mapping[str, int]
    adds: Mapping[str, bool]
    templates: tuple[ChatTemplate, ...]


@dataclass(frozen=True)
class Tokenizer:
    """`tokens`, `types` (gguf.TokenType) and `scores` (SentencePiece only) have one entry per id, up to the vocabulary
    size of the weights. `model` and `pre` are GGUF's names for how text is split. `adds_space`: one is put in front of
    each text; where None stands no key is written.
    """

    model: str
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    special: Special
    scores: tuple[float, ...] | None = None
    adds_space: bool | None = None

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
        if self.special.merges:
            writer.add_token_merges(self.special.merges)
        for name, number in self.special.ids.items():
            getattr(writer, f"add_{name}_token_id")(number)
        for name, adds in self.special.adds.items():
            getattr(writer, f"add_add_{name}_token")(adds)
        _add_templates(writer, self.special.templates)


def _add_templates(writer: GGUFWriter, templates: tuple[ChatTemplate, ...]) -> None:
    if [one.name for one in templates] == [DEFAULT]:
        writer.add_chat_template(templates[0].text)
    elif templates:
        writer.add_chat_template([{"name": one.name, "template": one.text} for one in templates])


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
    """The tokenizer in `file` is one that others may know how to convert. What llama.cpp itself would do wrong is none
    of these."""
    raise UnknownToBuilder(f"{file} cannot be converted: {reason}.", _SUPPORTED, f"its tokenizer ({reason})")


def expressible(files: TokenizerFiles) -> tuple[Added, ...]:
    """The added tokens; SourceError for what GGUF has no words for."""
    if files.config.get("split_special_tokens"):
        refuse(files.directory / CONFIG, "split_special_tokens, which makes plain text of the marks of a chat")
    for token in files.added:
        for flag in ("single_word", "lstrip", "rstrip"):
            if flag in token.flags:
                refuse(files.directory / TOKENIZER, f"added token {token.text!r} has {flag}, which GGUF cannot express")
    return files.added


def as_token(added: Added, score: float = 0.0) -> Token:
    """An added token as llama.cpp is to take it: what is not special reaches clients, whatever it looks like.
    llama.cpp's converter takes all that looks like <|this|> for control tokens, which nobody is shown. Tokens of the
    user's are looked for in the text as it comes."""
    if added.special:
        return Token(added.text, TokenType.CONTROL, score)
    return Token(added.text.replace("\u2581", " "), TokenType.USER_DEFINED, score)


def read_special(files: TokenizerFiles, meaning: Meaning, vocabulary: Vocabulary, merges: tuple[str, ...]) -> Special:
    """Of these files, for weights of this meaning. SourceError where GGUF has no words for it."""
    file, known = vocabulary.file, vocabulary.texts
    for merge in merges:
        left, _, right = merge.partition(" ")
        if left not in known or right not in known or left + right not in known:
            refuse(file, f"merge {merge!r} is not about tokens of the vocabulary")
    ids = _named_ids(files, vocabulary)
    ends = [end for end in meaning.ends if end.id < vocabulary.size]
    if "eos" not in ids and ends:
        ids["eos"] = ends[0].id
    adds = put_around(files)
    if adds is None:
        refuse(file, "it puts other tokens than its bos and eos around each text, or does more to it")
    if meaning.chats:
        # One setting is for chats and for completions: a chat's prompt is what its template says, and nothing more.
        adds = {"bos": adds["bos"] and writes_bos(meaning.template(DEFAULT), files), "eos": False}
    return Special(merges, ids | _further_ends(file, ends, ids), adds, meaning.templates)


# In the order in which llama.cpp's converter looks for them.
_NAMES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


def _named_ids(files: TokenizerFiles, vocabulary: Vocabulary) -> dict[str, int]:
    """By the tokenizer's own names for them, else by config.json's ids."""
    by_text = {token.text: number for number, token in vocabulary}
    config = files.directory / "config.json"
    raw = read_json(config) if config.is_file() else {}
    ids = {name: by_text[text] for name in _NAMES if (text := files.named.get(name)) in by_text}
    for name in _NAMES:
        number = raw.get(f"{name}_token_id")
        if name in ids or name == "eos" or type(number) is not int or number < 0:
            continue
        if number >= vocabulary.size:
            refuse(config, f"{name} token {number!r} is outside the vocabulary")
        ids[name] = number
    return ids


def _further_ends(file: Path, ends: Sequence[End], ids: Mapping[str, int]) -> dict[str, int]:
    """Places for the ends that llama.cpp does not see by itself: there are two besides eos, which stays the tokenizer's
    because templates write it."""
    further = [end for end in ends if end.id != ids.get("eos") and end.text not in LLAMA_CPP_ENDS]
    if len(further) > len(_FURTHER):
        names = ", ".join(end.text or str(end.id) for end in further)
        raise SourceError(
            f"{file.parent} ends answers at {len(further)} tokens besides its eos ({names}), and a GGUF has room for "
            f"{len(_FURTHER)}.",
            "Take those that it never writes out of eos_token_id in config.json and generation_config.json, or serve "
            "it with vLLM.",
        )
    return {name: end.id for name, end in zip(_FURTHER, further, strict=False)}


_FURTHER = ("eot", "eom")
