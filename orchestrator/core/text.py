"""Text as people's editors save it."""

from __future__ import annotations

import codecs

_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def decoded(data: bytes) -> str:
    """UTF-8, or what a byte order mark at the beginning says (Notepad, PowerShell). ValueError for anything else."""
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not {encoding.removesuffix('-sig').upper()} text: {error}") from error
