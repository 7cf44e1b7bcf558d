"""Reading SentencePiece's tokenizer.model, a protobuf message, with suspicion and without sentencepiece."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gguf import TokenType

from orchestrator.artifacts.disk import host_errors
from orchestrator.artifacts.vocabulary import Token, refuse
from orchestrator.errors import SourceError

# Pieces that stand for no text.
SPECIAL = (TokenType.UNKNOWN, TokenType.CONTROL)
_MAX_MODEL = 100_000_000

# sentencepiece_model.proto: field numbers of ModelProto, SentencePiece, TrainerSpec and NormalizerSpec.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE, _SCORE, _TYPE = 1, 2, 3
_MODEL_TYPE, _BPE = 3, 2
_CHARACTER_MAP, _ADD_DUMMY_PREFIX, _REMOVE_EXTRA_WHITESPACES, _ESCAPE_WHITESPACES = 2, 3, 4, 5
_USER_DEFINED = 4

# Bytes of a value, by wire type; those of unknown wire types never fit.
_FIXED = {1: 8, 5: 4}


def read_pieces(file: Path) -> list[Token]:
    """The pieces in the order of their ids.

    SourceError if the file is no sound model, or no BPE, or if it changes text in ways that llama.cpp does not.
    """
    with host_errors(f"read {file}"), file.open("rb") as opened:
        raw = opened.read(_MAX_MODEL + 1)
    try:
        if len(raw) > _MAX_MODEL:
            raise ValueError("it is too large")
        found = list(_fields(memoryview(raw)))
        tokens = [_piece(dict(_fields(value))) for number, value in found if number == _PIECES]
        specs = {number: dict(_fields(value)) for number, value in found if number in (_TRAINER, _NORMALIZER)}
        if not tokens:
            raise ValueError("it has no pieces")
    except (ValueError, TypeError, KeyError, struct.error) as error:
        raise SourceError(
            f"{file} is not a sound SentencePiece model: {error}.",
            "Download it again; if tokenizer.json beside it is the real one, remove this file.",
        ) from error
    if specs.get(_TRAINER, {}).get(_MODEL_TYPE) != _BPE:
        refuse(file, "its SentencePiece model is not BPE")
    spaces = specs.get(_NORMALIZER, {})
    if spaces.get(_CHARACTER_MAP):
        refuse(file, "it rewrites characters before it splits text")
    # Each of them is true where nothing is said.
    if not spaces.get(_ADD_DUMMY_PREFIX, 1) or spaces.get(_REMOVE_EXTRA_WHITESPACES, 1):
        refuse(file, "it puts no space in front, or drops repeated ones")
    if not spaces.get(_ESCAPE_WHITESPACES, 1):
        refuse(file, "it does not write spaces as a letter")
    return tokens


def _piece(fields: dict[int, Any]) -> Token:
    kind = fields.get(_TYPE, TokenType.NORMAL)
    # As llama.cpp's converter, which does not ask for user-defined ones.
    kind = TokenType.NORMAL if kind == _USER_DEFINED else TokenType(kind)
    score = struct.unpack("<f", fields.get(_SCORE, bytes(4)))[0]
    if not math.isfinite(score):
        raise ValueError("a piece has no score")
    return Token(bytes(fields[_PIECE]).decode(), kind, score)


def _fields(raw: memoryview) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a protobuf message: an int, or the bytes of what is longer."""
    position = 0
    while position < len(raw):
        key, position = _varint(raw, position)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, position = _varint(raw, position)
            yield number, value
            continue
        if wire == 2:
            size, position = _varint(raw, position)
        else:
            size = _FIXED.get(wire, len(raw))
        if position + size > len(raw):
            raise ValueError("it is cut short")
        yield number, raw[position : position + size]
        position += size


def _varint(raw: memoryview, position: int) -> tuple[int, int]:
    """(number, position behind it)."""
    number = 0
    for shift in range(0, 64, 7):
        if position >= len(raw):
            raise ValueError("it is cut short")
        byte = raw[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
    raise ValueError("a number has no end")
