"""Bodies of which the gateway reads the model's name, and little else: all the rest goes on as the bytes that it is.

Read whole, 8 MiB of JSON can become gigabytes; put together again, numbers beyond 2^53 would lose digits. So what is
nested is only looked through for its end, and what a route changes is added at the end of the object: of two fields
with one name every engine takes the last, those that do not care for case too.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

import msgspec

from orchestrator.core.routes import Route
from orchestrator.gateway import refusals
from orchestrator.gateway.dialects.base import Call, EndedEarlyError, Question, Said

_SPACE = b" \t\r\n"
_UNSAID = (b"", b"null")
# In a string its quotes would be escaped.
_MODEL = b'"model":"'
_REST = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*"')


class _Named(msgspec.Struct):
    model: str
    stream: msgspec.Raw = msgspec.Raw()


_NAMED = msgspec.json.Decoder(_Named)


def call_of(body: bytes) -> Call:
    """The model that a body names, and whether it asks for a stream; raises Refusal."""
    try:
        found = _NAMED.decode(body)
    except msgspec.ValidationError as error:
        raise refusals.invalid_body("The body must be a JSON object with a string as its field `model`.") from error
    except RecursionError as error:
        raise refusals.invalid_body("The body is nested too deeply.") from error
    # UnicodeDecodeError is a ValueError.
    except (msgspec.DecodeError, ValueError) as error:
        raise refusals.invalid_body(f"The body is not valid JSON: {error}.") from error
    if not found.model:
        raise refusals.invalid_body("The field `model` is empty.")
    return Call(found.model, bytes(found.stream) == b"true")


@functools.lru_cache(maxsize=64)
def _presence(names: tuple[str, ...]) -> msgspec.json.Decoder[msgspec.Struct]:
    """Reads which of these fields there are."""
    keys = {f"field_{number}": name for number, name in enumerate(names)}
    fields = [(key, msgspec.Raw, msgspec.Raw()) for key in keys]
    return msgspec.json.Decoder(msgspec.defstruct("Presence", fields, rename=keys))


def body_for(route: Route, name: str, body: bytes, changes: Mapping[str, object] | None = None) -> bytes:
    """What the engine is sent of a body that is known for JSON, and asks for `name`: the same bytes, unless the route
    renames, patches or fills in, or there are `changes`: they are what the request says, so that they count before what
    the route fills in."""
    if not (changes or route.upstream is not None or route.patch or route.defaults):
        return body
    missing: Mapping[str, object] = {}
    if route.defaults:
        names = tuple(route.defaults)
        found = msgspec.structs.astuple(_presence(names).decode(body))
        missing = {key: route.defaults[key] for key, value in zip(names, found, strict=True) if bytes(value) in _UNSAID}
    added = msgspec.json.encode({**missing, **(changes or {}), "model": route.upstream or name, **route.patch})
    return b"".join((memoryview(body.rstrip(_SPACE))[:-1], b",", memoryview(added)[1:]))


class Passing:
    """A Reply that goes on as it comes, but for the model's name where the engine has another one for it.

    `ends` are what the last bytes of a whole stream have in them, one of them; without any it ends when it ends. What
    a subclass `rewrites` besides it is given in whole lines.
    """

    stream_type = ""
    gathers = done = False

    @property
    def counts(self) -> tuple[int | None, int | None] | None:
        """None: it does not read them."""
        return None

    def __init__(self, ends: tuple[bytes, ...] = (), name: str = "", rewrites: bool = False) -> None:
        self._ends = ends
        self._longest = max(map(len, ends), default=0)
        self._tail = b"\n"
        self._ended = not ends
        self._named = b'"model":' + msgspec.json.encode(name) if name else b""
        # As the engine wrote it last; all through a stream it does the same.
        self._written = b""
        self._rewrites = rewrites or bool(name)
        self._lines = Lines()

    @property
    def passes(self) -> bool:
        """Whether a whole answer does."""
        return not self._rewrites

    async def whole(self, status: int, body: bytes) -> Said | Question:
        """The same under the client's name for the model."""
        return Said(self.rewritten(body), status)

    def part(self, data: bytes) -> bytes:
        """The same, whole lines where something is to be looked for in them."""
        if not self._ended:
            self._look(data)
        return self.rewritten(self._lines.take(data)) if self._rewrites else data

    async def end(self) -> bytes:
        """What came without the end of its line; raises EndedEarlyError where the stream's end did not come."""
        if not self._ended:
            raise EndedEarlyError
        return self.rewritten(self._lines.last())

    def _look(self, data: bytes) -> None:
        seen = self._tail + data
        for end in self._ends:
            if end in seen:
                self._ended = True
        self._tail = seen[-self._longest :]

    def rewritten(self, text: bytes) -> bytes:
        """Lines, or a whole answer: the first name in each, and what is the same, as the client knows it."""
        if not self._named:
            return text
        if self._written and text.count(_MODEL) == text.count(self._written):
            return text.replace(self._written, self._named)
        parts: list[bytes] = []
        done = 0
        start = text.find(_MODEL)
        while start >= 0 and (rest := _REST.match(text, start + len(_MODEL))) is not None:
            parts += (text[done:start], self._named)
            done = rest.end()
            self._written = text[start:done]
            line = text.find(b"\n", done)
            start = text.find(_MODEL, line) if line >= 0 else -1
        return b"".join((*parts, text[done:])) if parts else text


class Lines:
    """Bytes that come cut anywhere, as whole lines."""

    def __init__(self) -> None:
        self._begun: list[bytes] = []

    def take(self, data: bytes) -> bytes:
        """The whole lines that are there by now; what follows the last of them waits for its end."""
        cut = data.rfind(b"\n") + 1
        if cut == len(data) and not self._begun:
            return data
        whole = b""
        if cut:
            whole = b"".join((*self._begun, data[:cut]))
            self._begun = []
        if cut < len(data):
            self._begun.append(data[cut:])
        return whole

    def last(self) -> bytes:
        """What has no end."""
        rest = b"".join(self._begun)
        self._begun = []
        return rest
