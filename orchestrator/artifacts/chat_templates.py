"""Which chat template is a model's: where it stands, and by which name it is chosen, as transformers 5 has it.

chat_template.jinja is `default`, files in additional_chat_templates/ have the names of their files; where there is
any of these, tokenizer_config.json's is not read. There it is one text, or a list of named ones; null is none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator.artifacts.json_file import read_json
from orchestrator.core.meaning import DEFAULT, ChatTemplate
from orchestrator.core.weights import TEMPLATE, TEMPLATES
from orchestrator.errors import SourceError, why

_SUFFIX = ".jinja"


def read_templates(directory: Path) -> tuple[tuple[ChatTemplate, ...], str]:
    """The templates, `default` first, and the file that they stand in. SourceError where one is no text."""
    files = {DEFAULT: directory / TEMPLATE} if (directory / TEMPLATE).is_file() else {}
    files |= {file.name.removesuffix(_SUFFIX): file for file in sorted((directory / TEMPLATES).glob(f"*{_SUFFIX}"))}
    if files:
        found = tuple(ChatTemplate(name=name, text=_text(file)) for name, file in files.items())
        return found, TEMPLATE if DEFAULT in files else TEMPLATES
    config = directory / "tokenizer_config.json"
    value = read_json(config).get("chat_template") if config.is_file() else None
    found = _in_config(config, value)
    return found, config.name if found else ""


def _in_config(config: Path, value: Any) -> tuple[ChatTemplate, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return (ChatTemplate(name=DEFAULT, text=_writable(config, value)),)
    entries = [{"name": name, "template": text} for name, text in value.items()] if isinstance(value, dict) else value
    if not isinstance(entries, list) or not all(
        isinstance(one, dict) and isinstance(one.get("name"), str) and isinstance(one.get("template"), str)
        for one in entries
    ):
        raise SourceError(
            f"{config}: chat_template is neither a text nor a list of named ones.",
            f"Put the template into a file {TEMPLATE} beside it: then that one counts.",
        )
    named = {one["name"]: _writable(config, one["template"]) for one in entries}
    return tuple(
        ChatTemplate(name=name, text=named[name]) for name in sorted(named, key=lambda name: (name != DEFAULT, name))
    )


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except OSError as error:
        raise SourceError(f"{file} cannot be read: {why(error)}.") from error
    except ValueError as error:
        raise SourceError(f"{file} cannot be read: {error}.", "A chat template is a Jinja file in UTF-8.") from error


def _writable(file: Path, text: str) -> str:
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise SourceError(
            f"{file}: chat_template is not Unicode text.",
            f"Put the template into a file {TEMPLATE} beside it: then that one counts.",
        )
    return text
