"""A chat template rendered as transformers does it (transformers/utils/chat_template_utils.py): the same sandbox, the
same functions, and marks of what was generated, which say nothing here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, meta, nodes
from jinja2.exceptions import TemplateRuntimeError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from orchestrator.errors import SourceError


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %}: for training; the text stays."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    **others: Any,
) -> str:
    """The prompt that a template makes of a chat, the beginning of the answer included; `others` are what it knows
    besides, such as bos_token or enable_thinking. SourceError where it refuses, or is none."""
    try:
        compiled = _environment().from_string(template)
        return compiled.render(messages=messages, tools=tools, add_generation_prompt=True, **others)
    except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise SourceError(f"The chat template cannot render this chat: {error}") from error


def template_problem(template: str) -> str:
    """Why a text cannot be a chat template; empty when it can."""
    if not template.strip():
        return "it is empty"
    try:
        # Not only parsed: a filter or a test that does not exist is seen here.
        _environment().from_string(template)
    except TemplateSyntaxError as error:
        return f"line {error.lineno}: {error.message}"
    return ""


def asked_of(template: str) -> frozenset[str]:
    """The variables that a template reads and does not set itself; none where it is no template."""
    try:
        return frozenset(meta.find_undeclared_variables(_environment().parse(template)))
    except TemplateError:
        return frozenset()


def _environment() -> ImmutableSandboxedEnvironment:
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    made.filters["tojson"] = _to_json
    made.globals["raise_exception"] = _raise
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


def _to_json(value: object, indent: int | None = None, **others: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent, **others)


def _raise(message: str) -> NoReturn:
    raise TemplateRuntimeError(message)
