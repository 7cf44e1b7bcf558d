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
from orchestrator.gateway.dialects.base import Call, EndedEarlyError, Said

_SPACE = b" \t\r\n"
# The text that follows is the JSON of a string; in a string its quotes would be escaped.
_MODEL = re.compile(rb'"model":"(?:[^"\\]|\\.)*"')


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


def body_for(route: Route, name: str, body: bytes, always: bool = False) -> bytes:
    """What the engine is sent of a body that `call_of` has read, which asks for `name`: the same bytes, unless the
    route renames, patches or fills in, or the name is `always` to be the last that is said of it."""
    if not (always or route.upstream is not None or route.patch or route.defaults):
        return body
    missing: Mapping[str, object] = {}
    if route.defaults:
        names = tuple(route.defaults)
        found = msgspec.structs.astuple(_presence(names).decode(body))
        missing = {key: route.defaults[key] for key, value in zip(names, found, strict=True) if not bytes(value)}
    added = msgspec.json.encode({**missing, "model": route.upstream or name, **route.patch})
    return b"".join((memoryview(body.rstrip(_SPACE))[:-1], b",", memoryview(added)[1:]))


class Passing:
    """A Reply that goes on as it comes, but for the model's name where the engine has another one for it.

    `ends` are what the last bytes of a whole stream have in them, one of them; without any it ends when it ends.
    """

    stream_type = ""

    def __init__(self, ends: tuple[bytes, ...] = (), name: str = "") -> None:
        self._ends = ends
        self._longest = max(map(len, ends), default=0)
        self._tail = b"\n"
        self._ended = not ends
        self._named = b'"model":' + msgspec.json.encode(name) if name else b""
        self._lines = Lines()

    @property
    def passes(self) -> bool:
        """Whether a whole answer does."""
        return not self._named

    async def whole(self, status: int, body: bytes) -> Said:
        """The same under the client's name for the model."""
        return Said(self._renamed(body), status)

    def part(self, data: bytes) -> bytes:
        """The same, whole lines where a name is to be looked for in them."""
        if not self._ended:
            self._look(data)
        if not self._named:
            return data
        return b"".join(map(self._renamed, self._lines.take(data).splitlines(keepends=True)))

    async def end(self) -> bytes:
        """What came without the end of its line; raises EndedEarlyError where the stream's end did not come."""
        if not self._ended:
            raise EndedEarlyError
        return self._renamed(self._lines.last())

    def _look(self, data: bytes) -> None:
        seen = self._tail + data
        self._ended = any(end in seen for end in self._ends)
        self._tail = seen[-self._longest :]

    def _renamed(self, text: bytes) -> bytes:
        return _MODEL.sub(lambda _: self._named, text, count=1) if self._named else text


class Lines:
    """Bytes that come cut anywhere, as whole lines."""

    def __init__(self) -> None:
        self._begun: list[bytes] = []

    def take(self, data: bytes) -> bytes:
        """The whole lines that are there by now; what follows the last of them waits for its end."""
        cut = data.rfind(b"\n") + 1
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
