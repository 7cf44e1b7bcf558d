"""How many tokens a prompt and its answer have, as the engine says it somewhere in what it answers.

Only the first and the last bytes of an answer are kept for it, and only until it has ended: that is where engines say
it, in whatever API. In a text that a model wrote, the quotes of these names would be escaped.
"""

from __future__ import annotations

import re

# Bytes that hold the first event of a stream, and the last ones: what comes after the text, and after its figures.
_HEAD = _TAIL = 4 << 10
# Tokens of the prompt and of the answer, as OpenAI's chats call them, Ollama, and Anthropic (as OpenAI's responses).
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
    """What an answer tells of itself, as it comes."""

    __slots__ = ("_before", "_begun", "_head", "_tail")

    def __init__(self) -> None:
        self._head = self._before = self._tail = b""
        self._begun = False

    def take(self, data: bytes) -> None:
        """Some bytes of it, in their order."""
        if not self._begun:
            self._head += data[: _HEAD - len(self._head)]
        if len(data) > _TAIL:
            data = data[-_TAIL:]
        if len(self._tail) < _TAIL:
            self._tail += data
        else:
            self._before, self._tail = self._tail, data

    @property
    def size(self) -> int:
        """Bytes that are kept of it."""
        return len(self._head) + len(self._before) + len(self._tail)

    def has_begun(self, begins: bytes) -> bool:
        """Whether a token is in what came of a stream: what comes first is one, unless it is a comment; where streams
        begin with something else, it `begins` with the first of these words."""
        comment = self._head.startswith(b":")
        if not self._begun and (begins or comment):
            sign = begins or b"\ndata:"
            self._begun = sign in self._head or sign in self._before + self._tail
        else:
            self._begun = True
        return self._begun

    def counts(self) -> tuple[int | None, int | None]:
        """See `counts_in`."""
        return counts_in(self._before + self._tail, self._head)


def counts_in(text: bytes, head: bytes = b"") -> tuple[int | None, int | None]:
    """Tokens of the prompt and of the answer, as the end of an answer tells them, and the `head` of a stream those of
    the prompt; None where it does not say."""
    for prompt, answer in _NAMES:
        read, written = _last(prompt, text), _last(answer, text)
        if read is not None or written is not None:
            return (read if read is not None else _last(prompt, head)), written
    predicted = _last(_PREDICTED, text)
    if predicted is None:
        return None, None
    return (_last(_PROMPT, text) or 0) + (_last(_CACHED, text) or 0), predicted


def _last(name: bytes, text: bytes) -> int | None:
    """The number that a name has where it stands last."""
    at = text.rfind(name)
    found = _NUMBER.match(text, at + len(name)) if at >= 0 else None
    return int(found[1]) if found is not None else None
