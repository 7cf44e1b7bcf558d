"""Values to TOML, for the files that orch writes and people read. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def toml_text(value: Mapping[str, Any]) -> str:
    """A document of strings, numbers, booleans, lists and tables. None is left out: TOML has no word for it."""
    return "\n".join(_table(value, ())).strip() + "\n"


def _table(value: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    present = {key: item for key, item in value.items() if item is not None}
    lines = [f"{_key(key)} = {_scalar(item)}" for key, item in present.items() if not _is_table(item)]
    for key, item in present.items():
        inner = (*path, key)
        if isinstance(item, Mapping):
            # A table of tables alone needs no line of its own.
            head = [] if item and all(map(_is_table, item.values())) else ["", f"[{'.'.join(map(_key, inner))}]"]
            lines += [*head, *_table(item, inner)]
        elif _is_table(item):
            for entry in item:
                lines += ["", f"[[{'.'.join(map(_key, inner))}]]", *_table(entry, inner)]
    return lines


def _is_table(item: Any) -> bool:
    return isinstance(item, Mapping) or (_is_list(item) and bool(item) and all(isinstance(i, Mapping) for i in item))


def _is_list(item: Any) -> bool:
    return isinstance(item, Sequence) and not isinstance(item, str)


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _string(key)


def _scalar(item: Any) -> str:
    if isinstance(item, bool):
        return "true" if item else "false"
    if _is_list(item):
        return f"[{', '.join(_scalar(entry) for entry in item)}]"
    return repr(item) if isinstance(item, int | float) else _string(str(item))


def _string(text: str) -> str:
    # JSON's escapes are TOML's, and TOML wants one more.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
