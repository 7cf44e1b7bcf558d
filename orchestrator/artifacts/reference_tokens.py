"""Tokens as the model's own tokenizer.json has them, by the library that wrote it: what engines are compared with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer

from orchestrator.artifacts.chat_rendering import render_chat
from orchestrator.artifacts.tokenizer_files import TOKENIZER, read_tokenizer_files
from orchestrator.core.meaning import DEFAULT, TOOL_USE, Meaning
from orchestrator.core.parity import CHATS, TEXTS, Reference, Tokens
from orchestrator.errors import SourceError


def reference_of(directory: Path | None, meaning: Meaning) -> Reference:
    """What a model's files say (None: they are not here) of all that `orch check` asks."""
    ends = {end.id: end.text for end in meaning.ends}
    if directory is None or not (directory / TOKENIZER).is_file():
        return Reference(None, None, ends)
    files = read_tokenizer_files(directory)
    tokenizer = Tokenizer.from_file(str(directory / TOKENIZER))
    texts = tuple(Tokens(tuple(tokenizer.encode(text).ids)) for text in TEXTS)
    if not meaning.chats:
        return Reference(texts, None, ends)
    named = {f"{name}_token": text for name, text in files.named.items()}
    return Reference(texts, tuple(_prompts(tokenizer, meaning, named)), ends)


def _prompts(tokenizer: Tokenizer, meaning: Meaning, named: dict[str, str]) -> Iterable[Tokens]:
    for chat in CHATS:
        template = (meaning.template(TOOL_USE) if chat.tools else "") or meaning.template(DEFAULT)
        try:
            text = render_chat(template, chat.messages, chat.tools or None, **named, **chat.options)
        except SourceError:
            yield Tokens()
            continue
        yield Tokens(tuple(tokenizer.encode(text, add_special_tokens=False).ids))
