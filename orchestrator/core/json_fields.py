"""Fields of a JSON object that somebody else wrote: each is what it should be, or a ValueError says which is not."""

from __future__ import annotations

from collections.abc import Mapping


def text(document: Mapping[str, object], key: str) -> str:
    """A string with something in it."""
    value = document.get(key)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key}: a non-empty string is needed, not {value!r}")
    return value


def texts(document: Mapping[str, object], key: str) -> tuple[str, ...]:
    """A list of strings."""
    value = document.get(key)
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{key}: a list of strings is needed, not {value!r}")
    return tuple(value)


def whole(document: Mapping[str, object], key: str) -> int:
    """A whole number."""
    value = document.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{key}: a whole number is needed, not {value!r}")
    return value


def number(document: Mapping[str, object], key: str, default: float) -> float:
    """A number; the default where there is none."""
    value = document.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{key}: a number is needed, not {value!r}")
    return float(value)


def truth(document: Mapping[str, object], key: str) -> bool:
    """True or false."""
    value = document.get(key)
    if not isinstance(value, bool):
        raise ValueError(f"{key}: true or false is needed, not {value!r}")
    return value


def listed(value: object, what: str) -> list[object]:
    """A list, of whatever."""
    if not isinstance(value, list | tuple):
        raise ValueError(f"{what}: a JSON list is needed")
    return list(value)


def mapping(value: object, what: str) -> Mapping[str, object]:
    """An object."""
    if not isinstance(value, dict):
        raise ValueError(f"{what}: a JSON object is needed")
    return value
