"""How many tokens a prompt and its answer have, as the engine says it somewhere in what it answers.

Only the first and the last bytes of an answer are kept for it, and only until it has ended: that is where engines say
it, in whatever API. In a text that a model wrote, the quotes of these names would be escaped.
"""

from __future__ import annotations

import re
from collections import deque

# Bytes that hold the first event of a stream, and the last ones: what comes after the text, and after its figures.
_HEAD = _TAIL = 4 << 10
_READ = re.compile(rb'"(?:prompt_tokens|prompt_eval_count|input_tokens)":\s*(\d{1,15})\b')
_WRITTEN = re.compile(rb'"(?:completion_tokens|eval_count|output_tokens)":\s*(\d{1,15})\b')
# What llama.cpp's server says where nobody has asked for `usage`: tokens that it read, those that it had read before,
# and those that it wrote.
_TIMINGS = re.compile(rb'"(cache_n|prompt_n|predicted_n)":\s*(\d{1,15})\b')


class Told:
    """What an answer tells of itself."""

    __slots__ = ("_head", "_size", "_tail")

    def __init__(self) -> None:
        self._head = b""
        self._tail: deque[bytes] = deque()
        self._size = 0

    def take(self, data: bytes) -> None:
        """Some bytes of it, in their order."""
        if len(self._head) < _HEAD:
            self._head += data[: _HEAD - len(self._head)]
        if len(data) > _TAIL:
            data = data[-_TAIL:]
        tail = self._tail
        tail.append(data)
        self._size += len(data)
        while self._size - len(tail[0]) >= _TAIL:
            self._size -= len(tail.popleft())

    @property
    def size(self) -> int:
        """Bytes that are kept of it."""
        return len(self._head) + self._size

    def has_begun(self, begins: bytes) -> bool:
        """Whether a token is in what came of a stream: what comes first is one, unless it is a comment; where streams
        begin with something else, it `begins` with the first of these words."""
        if begins:
            return begins in self._head or begins in b"".join(self._tail)
        return not self._head.startswith(b":") or b"\ndata:" in self._head or b"\ndata:" in b"".join(self._tail)

    def counts(self) -> tuple[int | None, int | None]:
        """Tokens of the prompt and of the answer; None where it does not say."""
        tail = b"".join(self._tail)
        read, written = _last(_READ, tail), _last(_WRITTEN, tail)
        if read is None and written is None:
            timings = {name: int(number) for name, number in _TIMINGS.findall(tail)}
            if b"predicted_n" in timings:
                return timings.get(b"prompt_n", 0) + timings.get(b"cache_n", 0), timings[b"predicted_n"]
        return (read if read is not None else _last(_READ, self._head)), written


def _last(pattern: re.Pattern[bytes], text: bytes) -> int | None:
    found = pattern.findall(text)
    return int(found[-1]) if found else None
