"""Values that come out of files and labels, TOML or JSON, and go into them.

A Part has of pydantic's models what orch uses of them. What is as it should be is read here; with anything else
pydantic is asked, which knows every problem and words for it. Its import costs as much as all of a look at what serves,
and so does making models of these classes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from enum import StrEnum
from functools import cache
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Literal,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

if TYPE_CHECKING:
    from typing import Self

Value = TypeVar("Value")
# What to do with keys that a Part does not have.
Unknown = Literal["forbid", "ignore"]


class Must:
    """What a value has to be besides its type; the words are pydantic's."""

    def __init__(
        self,
        *,
        ge: float | None = None,
        gt: float | None = None,
        le: float | None = None,
        min_length: int | None = None,
        pattern: str | None = None,
    ) -> None:
        said = {"ge": ge, "gt": gt, "le": le, "min_length": min_length, "pattern": pattern}
        self._said = {word: value for word, value in said.items() if value is not None}

    def holds(self, value: Any) -> bool:
        """Whether it is so. Of patterns ASCII only: with the rest pydantic is asked."""
        return all(_HOLDS[word](value, limit) for word, limit in self._said.items())

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        return {**handler(source), **self._said}


_HOLDS: Mapping[str, Callable[[Any, Any], bool]] = {
    "ge": lambda value, limit: value >= limit,
    "gt": lambda value, limit: value > limit,
    "le": lambda value, limit: value <= limit,
    "min_length": lambda value, limit: len(value) >= limit,
    "pattern": lambda value, pattern: re.fullmatch(pattern, value, re.ASCII) is not None,
}


class Unfit(ValueError):
    """What was read is not what it should be; `problems` are pydantic's (loc, msg, type, input), all of them."""

    def __init__(self, message: str, problems: list[Any]) -> None:
        super().__init__(message)
        self.problems = problems


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
class Part:
    """Base of all that is read from files: a frozen dataclass, made of keywords; unknown keys are refused."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, kw_only=True)(cls)

    @classmethod
    def model_validate(cls, document: object, extra: Unknown = "forbid") -> Self:
        """One of these, from a mapping. Raises Unfit."""
        return read(cls, document, extra)

    @classmethod
    def model_validate_json(cls, text: str | bytes, extra: Unknown = "forbid") -> Self:
        """One of these, from JSON. Raises Unfit."""
        return read_json(cls, text, extra)

    def model_copy(self, update: Mapping[str, Any]) -> Self:
        """The same with other values of these fields."""
        return replace(self, **update)  # type: ignore[type-var]

    def model_dump(self, exclude: Collection[str] = (), exclude_defaults: bool = False) -> dict[str, Any]:
        """All of it as JSON has it, without these fields, and without what is not said because it goes without."""
        return _fields_of(self, exclude, exclude_defaults)

    def model_dump_json(self, indent: int | None = None, exclude: Collection[str] = ()) -> str:
        """The same as text."""
        separators = (",", ":") if indent is None else None
        return json.dumps(self.model_dump(exclude), indent=indent, separators=separators, ensure_ascii=False)


def read(kind: type[Value], document: object, extra: Unknown = "forbid") -> Value:
    """A value of this type from what JSON or TOML have. Raises Unfit, with every problem at once."""
    try:
        value: Value = _read(kind, document, extra)
    except (ValueError, TypeError, KeyError):
        return _asked(lambda adapter: adapter.validate_python(document, extra=extra), kind)
    return value


def read_json(kind: type[Value], text: str | bytes, extra: Unknown = "forbid") -> Value:
    """The same from a JSON text."""
    try:
        value: Value = _read(kind, json.loads(text), extra)
    except (ValueError, TypeError, KeyError):
        return _asked(lambda adapter: adapter.validate_json(text, extra=extra), kind)
    return value


def plain(value: object, exclude_defaults: bool = False) -> Any:
    """A value as JSON has it."""
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, list | tuple):
        return [plain(one, exclude_defaults) for one in value]
    if isinstance(value, dict):
        return {plain(key): plain(one, exclude_defaults) for key, one in value.items()}
    return _fields_of(value, (), exclude_defaults) if is_dataclass(value) else value


def _fields_of(value: Any, exclude: Collection[str], exclude_defaults: bool) -> dict[str, Any]:
    found = {}
    for one in fields(value):
        held = getattr(value, one.name)
        if one.name not in exclude and not (exclude_defaults and held == _default(one)):
            found[one.name] = plain(held, exclude_defaults)
    return found


def _default(one: Any) -> object:
    return one.default_factory() if one.default_factory is not MISSING else one.default


def _asked(ask: Callable[[Any], Value], kind: type[Value]) -> Value:
    from pydantic import TypeAdapter, ValidationError

    try:
        return ask(TypeAdapter(kind))
    except ValidationError as error:
        raise Unfit(str(error), [_worded(one) for one in error.errors()]) from error


def _worded(problem: Any) -> Any:
    """What pydantic says, in the words of whoever wrote the file: they know tables and lists, no classes and tuples."""
    if problem["type"] == "unexpected_keyword_argument":
        return {**problem, "type": "extra_forbidden", "msg": "Extra inputs are not permitted"}
    if problem["type"] == "dataclass_type":
        return {**problem, "msg": "Input should be a table"}
    words = problem["msg"]
    for theirs, plain in (("Tuple", "List"), ("a valid tuple", "a list"), ("a valid dictionary", "a table")):
        words = words.replace(theirs, plain)
    place = tuple(part for part in problem["loc"] if part != "[key]")
    return {**problem, "loc": place, "msg": words.replace(" after validation", "")}


def _read(kind: Any, value: Any, extra: Unknown) -> Any:
    """The value, if that is beyond doubt; ValueError, TypeError or KeyError if it is not."""
    if kind is Any:
        return value
    if kind in (str, int, bool):
        return _exactly(kind, value)
    if kind is float:
        return float(value if type(value) is int else _exactly(float, value))
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return kind(_exactly(str, value))
    if is_dataclass(kind):
        return _read_fields(kind, value, extra)
    origin, of = get_origin(kind), get_args(kind)
    if origin is Annotated:
        found = _read(of[0], value, extra)
        if not all(must.holds(found) for must in of[1:]):
            raise ValueError
        return found
    if origin is tuple and isinstance(value, list | tuple):
        kinds = (of[0],) * len(value) if of[-1] is Ellipsis else of
        return tuple(_read(one, item, extra) for one, item in zip(kinds, value, strict=True))
    if origin is dict and isinstance(value, dict):
        return {_read(of[0], key, extra): _read(of[1], item, extra) for key, item in value.items()}
    if origin is Literal and _exactly(str, value) in of:
        return value
    if origin in (Union, UnionType) and of[1] is type(None):
        return None if value is None else _read(of[0], value, extra)
    raise TypeError


def _read_fields(kind: Any, value: Any, extra: Unknown) -> Any:
    if isinstance(value, kind):
        return value
    known, needed = _shape(kind)
    if (
        not isinstance(value, dict)
        or not needed <= value.keys()
        or (extra == "forbid" and not value.keys() <= known.keys())
    ):
        raise ValueError
    return kind(**{name: _read(known[name], item, extra) for name, item in value.items() if name in known})


@cache
def _shape(kind: Any) -> tuple[Mapping[str, Any], set[str]]:
    """The types of a dataclass's fields, and the names of those that have no default."""
    hints = get_type_hints(kind, include_extras=True)
    needed = {one.name for one in fields(kind) if one.default is MISSING and one.default_factory is MISSING}
    return {one.name: hints[one.name] for one in fields(kind)}, needed


def _exactly(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError
    return value
