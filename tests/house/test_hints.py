"""Every command that orch names to its users, in hints, errors, help and templates, is one that orch takes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
import typer
from source import said

from orchestrator.cli import VERBS
from orchestrator.cli.options import app

# `orch` and the words after it, as far as they may be a command's: what is filled in stands as {}.
COMMAND = re.compile(r"(?<![\w/.`-])`?orch ((?:[^\s`;,()]+ ?)+)")
# A word that ends a sentence, or opens a remark, ends the command.
LAST = re.compile(r"[.:?!]$")
# What follows orch where it is the subject of a sentence.
PROSE = frozenset({
    "are", "can", "changes", "did", "does", "for", "has", "in", "is", "keeps", "knows", "made", "makes", "may",
    "needs", "of", "over", "pieces", "reads", "runs", "ships", "takes", "that", "will", "with", "Root-Is-Purelib",
})  # fmt: skip


def root() -> Any:
    for file in VERBS:
        import_module(f"orchestrator.cli.{file}")
    return typer.main.get_command(app)


ROOT_COMMAND = root()


def commands() -> Iterator[Any]:
    for where, text in said():
        for found in COMMAND.finditer(" ".join(text.split())):
            yield pytest.param(found[1].split(), id=f"{where} orch {found[1].strip()}"[:110])


def problem(words: list[str]) -> str:
    """What is wrong with the words after `orch`, as far as they are a command's; empty when nothing is.

    What follows a command in a sentence is prose, and cannot be told from its arguments: verbs and options are checked,
    and that an option has its value.
    """
    command = ROOT_COMMAND
    rest = list(words)
    while hasattr(command, "commands"):
        name = LAST.sub("", rest[0]) if rest else ""
        if "|" in name:
            missing = [one for one in name.split("|") if one not in command.commands]
            return f"no {missing}" if missing else ""
        if name == "{}" or (command is ROOT_COMMAND and (name.startswith("--") or name in PROSE)):
            return ""
        if name not in command.commands and getattr(command, "invoke_without_command", False):
            break
        if name not in command.commands:
            return f"no verb {name!r}"
        command = command.commands[name]
        ends = LAST.search(rest[0]) is not None
        rest = rest[1:]
        if ends or not rest:
            alone = not hasattr(command, "commands") or getattr(command, "invoke_without_command", False)
            return "" if alone or ends else f"{name} alone does nothing"
    options = {option: one for one in command.params if one.param_type_name == "option" for option in one.opts}
    while rest:
        word = rest.pop(0)
        ends = LAST.search(word) is not None
        bare = LAST.sub("", word)
        if bare.startswith("-"):
            option, _, value = bare.partition("=")
            if option == "--help":
                return ""
            if option not in options:
                return f"{command.name} has no option {option}"
            if not options[option].is_flag and not value:
                if ends or not rest:
                    return f"{option} needs a value"
                rest.pop(0)
        if ends:
            return ""
    return ""


ALL = list(commands())


def test_they_are_found() -> None:
    assert len(ALL) > 100


@pytest.mark.parametrize("words", ALL)
def test_a_command_that_is_named_is_one(words: list[str]) -> None:
    assert problem(words) == ""


@pytest.mark.parametrize(
    "wrong",
    ["upp", "up --nope", "lora ad x", "lora", "migrate --to", "keys add|nothing", "engines install --fast vllm"],
)
def test_a_wrong_one_would_be_found(wrong: str) -> None:
    assert problem(wrong.split()) != ""
