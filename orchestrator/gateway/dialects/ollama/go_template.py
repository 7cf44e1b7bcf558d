"""Go's templates, as far as those go that Modelfiles have: {{ .System }}, if, range, variables, comparisons.

What a template looks like is decided before it is run, so that one that cannot be run is refused and not half run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

# Nodes that one run may come by, and characters that it may write.
MOST_STEPS = 100_000
MOST_WRITTEN = 16 << 20
# Blocks and brackets within one another.
_DEEPEST = 50

# A sign for trimming has a blank between it and the action.
_TRIMS = re.compile(r"(-(?=\s))?(.*?)((?<=\s)-)?", re.DOTALL)
_TOKEN = re.compile(
    r"""\s*(?:(?P<text>"(?:[^"\\\n]|\\.)*"|`[^`]*`)|(?P<number>-?\d+)|(?P<variable>\$\w*)(?P<of>(?:\.\w+)*)"""
    r"""|(?P<field>(?:\.\w+)+)|(?P<dot>\.)|(?P<word>\w+)|(?P<sign>:=|=|\||\(|\)|,))"""
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\", "'": "'"}
_WORDS = {"true": True, "false": False, "nil": None}


class TemplateError(ValueError):
    """A template that cannot be read, or run."""


Scope = dict[str, Any]


@dataclass(frozen=True)
class _Value:
    """`of`: a constant, or None for what lies at `path` in `variable` ("" is the dot), or what `call` gives."""

    constant: Any = None
    variable: str | None = None
    path: tuple[str, ...] = ()
    call: str = ""
    given: tuple[_Value, ...] = ()

    def fields(self) -> Iterator[str]:
        """All names of fields in it."""
        yield from self.path
        for one in self.given:
            yield from one.fields()


@dataclass
class _Node:
    """A text; or a value that is written (`kind` write), kept (set), or decides over `body` and `other` (if, range,
    with). `names` are the variables that it sets."""

    kind: str
    text: str = ""
    value: _Value = field(default_factory=_Value)
    names: tuple[str, ...] = ()
    body: list[_Node] = field(default_factory=list)
    other: list[_Node] = field(default_factory=list)


class Template:
    """A template that was read; raises TemplateError."""

    def __init__(self, source: str) -> None:
        self._nodes = _Parser(source).nodes()
        self.fields = frozenset(_fields(self._nodes))

    def run(self, values: Mapping[str, Any]) -> str:
        """What it makes of some values; what there is no value for is empty. Raises TemplateError."""
        return _Run(values).text(self._nodes)

    def cut(self) -> Template:
        """The same up to the answer's place: what follows .Response is for the model to say."""
        cut = Template.__new__(Template)
        cut._nodes, _ = _before_answer(self._nodes)
        cut.fields = self.fields
        return cut


class _Parser:
    def __init__(self, source: str) -> None:
        self._parts = list(_parts(source))
        self._at = 0

    def nodes(self) -> list[_Node]:
        nodes, ended = self._block(0)
        if ended:
            raise TemplateError(f"unexpected {{{{{ended}}}}}")
        return nodes

    def _block(self, depth: int) -> tuple[list[_Node], str]:
        """Nodes up to an `end` or `else`, and which."""
        if depth > _DEEPEST:
            raise TemplateError("it is nested too deeply")
        nodes: list[_Node] = []
        while self._at < len(self._parts):
            text, action = self._parts[self._at]
            self._at += 1
            if text:
                nodes.append(_Node("text", text))
            if action is None or action.startswith("/*"):
                continue
            word, _, rest = action.partition(" ")
            if word in ("end", "else"):
                return nodes, action
            if word in ("if", "range", "with"):
                nodes.append(self._branch(word, rest, depth))
            elif word in ("define", "template", "block", "break", "continue"):
                raise TemplateError(f"{word} is not supported")
            else:
                names, value = _assigned(action)
                nodes.append(_Node("set" if names else "write", value=value, names=names))
        return nodes, ""

    def _branch(self, word: str, rest: str, depth: int) -> _Node:
        names, value = _assigned(rest)
        if len(names) > (2 if word == "range" else 1):
            raise TemplateError(f"too many variables in {word}")
        node = _Node(word, value=value, names=names)
        node.body, ended = self._block(depth + 1)
        if ended.startswith("else "):
            again, _, more = ended.removeprefix("else ").strip().partition(" ")
            if again not in ("if", "with"):
                raise TemplateError(f"unexpected {{{{{ended}}}}}")
            node.other = [self._branch(again, more, depth + 1)]
        elif ended == "else":
            node.other, ended = self._block(depth + 1)
            if ended != "end":
                raise TemplateError("unexpected {{else}}")
        elif ended != "end":
            raise TemplateError(f"{{{{{word}}}}} has no {{{{end}}}}")
        return node


def _parts(source: str) -> Iterator[tuple[str, str | None]]:
    """Each text and the action behind it, trimmed where the action says so."""
    at, trims = 0, False
    while (start := source.find("{{", at)) >= 0:
        end = source.find("}}", start)
        if end < 0:
            raise TemplateError("unclosed action")
        before, action, behind = _TRIMS.fullmatch(source, start + 2, end).groups()  # type: ignore[union-attr]
        text = source[at:start]
        text = text.lstrip() if trims else text
        yield text.rstrip() if before else text, action.strip()
        at, trims = end + 2, bool(behind)
    text = source[at:]
    yield text.lstrip() if trims else text, None


def _assigned(text: str) -> tuple[tuple[str, ...], _Value]:
    tokens = _tokens(text)
    names: list[str] = []
    for place, (kind, value) in enumerate(tokens):
        if kind == "sign" and value in (":=", "="):
            before = tokens[:place]
            names = [one for name_kind, one in before if name_kind == "variable"]
            if not names or [one for name_kind, one in before if name_kind != "variable" and one != ","]:
                raise TemplateError(f"cannot assign in {{{{{text}}}}}")
            tokens = tokens[place + 1 :]
            break
    reader = _Reader(tokens, text)
    return tuple(names), reader.whole()


def _tokens(text: str) -> list[tuple[str, Any]]:
    at = 0
    found: list[tuple[str, Any]] = []
    text = text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise TemplateError(f"unexpected {text[at:][:20]!r} in {{{{{text[:80]}}}}}")
        kind = "variable" if match["variable"] else str(match.lastgroup)
        if kind == "variable" and match["of"]:
            found.append(("path", (match["variable"], tuple(match["of"][1:].split(".")))))
        else:
            found.append((kind, match[kind]))
        at = match.end()
    return found


class _Reader:
    """Reads one pipeline."""

    def __init__(self, tokens: list[tuple[str, Any]], text: str) -> None:
        self._tokens = tokens
        self._text = text
        self._at = 0

    def whole(self) -> _Value:
        value = self._pipeline(0)
        if self._at < len(self._tokens):
            raise self._unexpected()
        return value

    def _unexpected(self) -> TemplateError:
        return TemplateError(f"cannot read {{{{{self._text[:80]}}}}}")

    def _pipeline(self, depth: int) -> _Value:
        if depth > _DEEPEST:
            raise TemplateError("it is nested too deeply")
        value = self._command(depth, ())
        while self._next("|"):
            value = self._command(depth, (value,))
        return value

    def _next(self, sign: str) -> bool:
        if self._at < len(self._tokens) and self._tokens[self._at] == ("sign", sign):
            self._at += 1
            return True
        return False

    def _command(self, depth: int, piped: tuple[_Value, ...]) -> _Value:
        name = ""
        if self._at < len(self._tokens):
            kind, value = self._tokens[self._at]
            if kind == "word" and value not in _WORDS:
                if value not in _FUNCTIONS:
                    raise TemplateError(f'function "{value}" is not supported')
                name = value
                self._at += 1
        given: list[_Value] = []
        while (one := self._operand(depth)) is not None:
            given.append(one)
        if name:
            return _Value(call=name, given=(*given, *piped))
        if len(given) != 1 or piped:
            raise self._unexpected()
        return given[0]

    def _operand(self, depth: int) -> _Value | None:
        if self._at >= len(self._tokens):
            return None
        kind, value = self._tokens[self._at]
        if kind == "sign":
            if value != "(":
                return None
            self._at += 1
            inner = self._pipeline(depth + 1)
            if not self._next(")"):
                raise self._unexpected()
            if self._at < len(self._tokens) and self._tokens[self._at][0] == "field":
                raise self._unexpected()
            return inner
        self._at += 1
        match kind:
            case "text":
                return _Value(constant=_unquoted(value))
            case "number":
                return _Value(constant=int(value[:19]))
            case "variable":
                return _Value(variable=value)
            case "path":
                return _Value(variable=value[0], path=value[1])
            case "field":
                return _Value(variable="", path=tuple(value[1:].split(".")))
            case "dot":
                return _Value(variable="")
            case _:
                if value in _WORDS:
                    return _Value(constant=_WORDS[value])
                raise TemplateError(f'function "{value}" is not supported here')


def _unquoted(text: str) -> str:
    if text.startswith("`"):
        return text[1:-1]

    def escaped(found: re.Match[str]) -> str:
        if found[1] not in _ESCAPES:
            raise TemplateError(f"the escape \\{found[1]} is not supported")
        return _ESCAPES[found[1]]

    return re.sub(r"\\(.)", escaped, text[1:-1])


class _Run:
    def __init__(self, values: Mapping[str, Any]) -> None:
        self._scope: Scope = {"$": values, "": values}
        self._steps = 0
        self._written = 0
        self._out: list[str] = []

    def text(self, nodes: list[_Node]) -> str:
        self._all(nodes, self._scope)
        return "".join(self._out)

    def _write(self, text: str) -> None:
        self._written += len(text)
        if self._written > MOST_WRITTEN:
            raise TemplateError("it writes too much")
        self._out.append(text)

    def _all(self, nodes: list[_Node], scope: Scope) -> None:
        for node in nodes:
            self._steps += 1
            if self._steps > MOST_STEPS:
                raise TemplateError("it takes too long")
            self._one(node, scope)

    def _one(self, node: _Node, scope: Scope) -> None:
        if node.kind == "text":
            self._write(node.text)
            return
        value = self._value(node.value, scope)
        if node.kind == "write":
            self._write(_shown(value))
        elif node.kind == "set":
            scope[node.names[0]] = value
        elif node.kind == "range":
            self._range(node, value, scope)
        elif _true(value):
            # What is set within a block lasts to its end; as in Go an `=` outlives it, so one scope is enough.
            inner = scope if node.kind == "if" else {**scope, "": value}
            if node.names:
                inner[node.names[0]] = value
            self._all(node.body, inner)
        else:
            self._all(node.other, scope)

    def _range(self, node: _Node, value: Any, scope: Scope) -> None:
        if isinstance(value, Mapping):
            pairs: list[tuple[Any, Any]] = sorted(value.items())
        elif isinstance(value, list | tuple):
            pairs = list(enumerate(value))
        elif value is None:
            pairs = []
        else:
            raise TemplateError(f"range cannot go over {_shown(value)[:20]!r}")
        dot = scope[""]
        for key, one in pairs:
            scope[""] = one
            said = (key, one) if len(node.names) == 2 else (one,) * len(node.names)
            scope.update(zip(node.names, said, strict=True))
            self._all(node.body, scope)
        scope[""] = dot
        if not pairs:
            self._all(node.other, scope)

    def _value(self, value: _Value, scope: Scope) -> Any:
        if value.call in ("and", "or"):
            found: Any = None
            for one in value.given:
                found = self._value(one, scope)
                if _true(found) is (value.call == "or"):
                    break
            return found
        if value.call:
            given = [self._value(one, scope) for one in value.given]
            try:
                return _FUNCTIONS[value.call](*given)
            except (TypeError, ValueError, IndexError, KeyError) as error:
                raise TemplateError(f"{value.call}: {error}") from error
        if value.variable is None:
            return value.constant
        if value.variable not in scope:
            raise TemplateError(f"undefined variable {value.variable}")
        found = scope[value.variable]
        for name in value.path:
            found = found.get(name) if isinstance(found, Mapping) else None
        return found


def _true(value: Any) -> bool:
    return bool(value)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _equal(first: Any, *others: Any) -> bool:
    if not others:
        raise ValueError("missing argument")
    return any(first == one or (first in ("", None) and one in ("", None)) for one in others)


def _index(value: Any, *places: Any) -> Any:
    for place in places:
        value = value[place]
    return value


def _slice(value: Any, *places: int) -> Any:
    start, stop = (*places, *(0, len(value))[len(places) :])
    if not 0 <= start <= stop <= len(value):
        raise IndexError("out of range")
    return value[start:stop]


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "and": lambda *given: given,
    "or": lambda *given: given,
    "not": lambda value: not _true(value),
    "eq": _equal,
    "ne": lambda first, second: not _equal(first, second),
    "lt": lambda first, second: first < second,
    "le": lambda first, second: first <= second,
    "gt": lambda first, second: first > second,
    "ge": lambda first, second: first >= second,
    "len": len,
    "index": _index,
    "slice": _slice,
}


def _fields(nodes: list[_Node]) -> Iterator[str]:
    for node in nodes:
        yield from node.value.fields()
        yield from _fields(node.body)
        yield from _fields(node.other)


def _before_answer(nodes: list[_Node]) -> tuple[list[_Node], bool]:
    """The nodes up to the first that has .Response, and whether there was one."""
    kept: list[_Node] = []
    for node in nodes:
        if "Response" in node.value.fields():
            if node.kind == "write":
                kept.append(node)
            return kept, True
        body, found = _before_answer(node.body)
        other, later = (node.other, False) if not found else ([], False)
        if not found:
            other, later = _before_answer(node.other)
        kept.append(_Node(node.kind, node.text, node.value, node.names, body, other))
        if found or later:
            return kept, True
    return kept, False
