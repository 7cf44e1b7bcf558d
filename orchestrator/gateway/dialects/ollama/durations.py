"""Durations as Go reads them."""

from __future__ import annotations

import re

from orchestrator.gateway.dialects.ollama import words

_S = 1_000_000_000
_UNITS = {"ns": 1, "us": 1000, "\u00b5s": 1000, "\u03bcs": 1000, "ms": 1_000_000, "s": _S, "m": 60 * _S, "h": 3600 * _S}
FOREVER = 2**63 - 1
_PART = re.compile(r"([0-9]*)(?:\.([0-9]*))?([^0-9.]*)")
_DIGITS = 19
_SIGNED = ("+", "-")
_TYPES = {bool: "bool", list: "[]interface {}", dict: "map[string]interface {}"}


def keep_alive(value: object) -> int:
    """How long a model is to be kept, in nanoseconds: numbers are seconds, below 0 is for ever; raises Refusal."""
    if isinstance(value, str):
        found = parsed(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        found = int(max(-1.0, min(value, FOREVER / _S)) * _S)
    else:
        raise words.fault(400, f"Unsupported type: '{_TYPES.get(type(value), type(value).__name__)}'")
    return FOREVER if found < 0 else min(found, FOREVER)


def parsed(text: str) -> int:
    """What Go's time.ParseDuration makes of a text, in nanoseconds; raises Refusal in its words."""
    rest = text[1:] if text.startswith(_SIGNED) else text
    sign = -1 if text.startswith("-") else 1
    if rest == "0":
        return 0
    total, at = 0, 0
    while at < len(rest) or not rest:
        found = _PART.match(rest, at)
        whole, fraction, unit = found.groups() if found else ("", None, "")
        if not found or not (whole or fraction) or len(whole) > _DIGITS:
            raise _invalid(text)
        if not unit:
            raise words.fault(400, f"time: missing unit in duration {words.quoted(text)}")
        if unit not in _UNITS:
            raise words.fault(400, f"time: unknown unit {words.quoted(unit)} in duration {words.quoted(text)}")
        total += int(whole or "0") * _UNITS[unit]
        if fraction:
            total += int(fraction[:_DIGITS]) * _UNITS[unit] // 10 ** len(fraction[:_DIGITS])
        if total > FOREVER:
            raise _invalid(text)
        at = found.end()
    return sign * total


def _invalid(text: str) -> Exception:
    return words.fault(400, f"time: invalid duration {words.quoted(text)}")
