"""How many tokens a prompt and its answer have, as the engine says it somewhere in what it answers.

Only the first and the last bytes of an answer are kept for it, and only until it has ended: that is where engines say
it, in whatever API. In a text that a model wrote, the quotes of these names would be escaped.
"""

from __future__ import annotations

import re
from collections import deque

# Bytes that hold the first event of a stream, and the last ones: what comes after the text, and after its figures.
_HEAD = _TAIL = 4 << 10
# Tokens of the prompt and of the answer: as OpenAI's chats call them, Ollama's, and Anthropic's and OpenAI's responses.
_NAMES = (
    (b'"prompt_tokens":', b'"completion_tokens":'),
    (b'"prompt_eval_count":', b'"eval_count":'),
    (b'"input_tokens":', b'"output_tokens":'),
)
# What llama.cpp's server says where nobody has asked for `usage`: tokens that it read, those that it had read before,
# and those that it wrote.
_PROMPT, _CACHED, _PREDICTED = b'"prompt_n":', b'"cache_n":', b'"predicted_n":'
_NUMBER = re.compile(rb"\s*(\d{1,15})\b")


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
        for prompt, answer in _NAMES:
            read, written = _last(prompt, tail), _last(answer, tail)
            if read is not None or written is not None:
                return (read if read is not None else _last(prompt, self._head)), written
        predicted = _last(_PREDICTED, tail)
        if predicted is None:
            return None, None
        return (_last(_PROMPT, tail) or 0) + (_last(_CACHED, tail) or 0), predicted


def _last(name: bytes, text: bytes) -> int | None:
    """The number that a name has where it stands last."""
    at = text.rfind(name)
    found = _NUMBER.match(text, at + len(name)) if at >= 0 else None
    return int(found[1]) if found is not None else None
