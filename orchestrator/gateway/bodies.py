"""Request bodies: read and unpacked within bounds, and counted for as long as they are held.

The server side unpacks nothing by itself: a body of 1 MB can hold a gigabyte, and whoever sends it may not even have a
key. Here it is done piece by piece, for requests that are admitted.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterator
from types import TracebackType

from aiohttp import StreamReader, hdrs, web

from orchestrator.gateway import refusals

# Bytes of one body, as sent and unpacked, and the commas and brackets in it: what is within both is looked through
# in less than 50 ms, for as long as which nobody else is answered.
LARGEST_BODY = 8 << 20
MOST_PARTS = 500_000
# Bytes of all bodies together: 32 of the largest, or 250 requests of a megabyte that wait for their first token.
MOST_HELD = 256 << 20
# The same of one that is read whole and written anew for another API: half a million tokens, in 40 ms; and the names of
# fields in it, at all depths.
LARGEST_READ = 2 << 20
MOST_PARTS_READ = 150_000
MOST_NAMES = 50_000
# Bytes a second that a body comes with at least, once it has had its first patience: what it holds is others' too.
LEAST_RATE = 512
# Bytes that are unpacked at a time: about a millisecond.
PIECE = 256 << 10

ENCODINGS = "gzip, deflate"
_GZIP = frozenset({"gzip", "x-gzip"})
_PACKED = _GZIP | {"deflate"}
# What tells how long a parser takes.
PARTS = (b",", b"[", b"{")
_GZIP_BITS = 16 + zlib.MAX_WBITS


def check_names(body: bytes) -> None:
    """Raises Refusal when there are too many names of fields in a body."""
    if body.count(b",") + body.count(b"{") <= MOST_NAMES:
        # Each but the first of an object follows a comma; and these are faster to count.
        return
    if (names := body.count(b'":')) > MOST_NAMES and names - body.count(b'\\":') > MOST_NAMES:
        raise refusals.too_intricate(MOST_NAMES, "names of fields")


def check_readable(body: bytes) -> None:
    """Raises Refusal when a body would take too long to be read whole and written anew."""
    if len(body) > LARGEST_READ:
        raise refusals.too_large(LARGEST_READ)
    if sum(map(body.count, PARTS)) > MOST_PARTS_READ:
        raise refusals.too_intricate(MOST_PARTS_READ)
    check_names(body)


class Ledger:
    """How many bytes all requests hold together, and the most that they may."""

    def __init__(self, most: int = MOST_HELD) -> None:
        self.most = most
        self.held = 0


def encoding_of(request: web.BaseRequest) -> str:
    """The Content-Encoding, "" for none."""
    encoding = request.headers.get(hdrs.CONTENT_ENCODING, "").strip().lower()
    return "" if encoding == "identity" else encoding


def check_head(request: web.BaseRequest) -> None:
    """Raises Refusal when a body with this head would not be taken: it need not even be sent."""
    encoding = encoding_of(request)
    if encoding and encoding not in _PACKED:
        raise refusals.unknown_encoding(encoding, ENCODINGS)
    if (request.content_length or 0) > LARGEST_BODY:
        raise refusals.too_large(LARGEST_BODY)


class Body:
    """The body of one request; what it takes is counted until it is released, at the latest at the end of `with`."""

    def __init__(self, ledger: Ledger, patience_s: float) -> None:
        self.data = b""
        self._ledger = ledger
        self._patience_s = patience_s
        self._counted = 0

    def __enter__(self) -> Body:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def count(self, size: int) -> None:
        """Count `size` bytes for this request from now on; raises Refusal when that is more than there is room for."""
        if self._ledger.held - self._counted + size > self._ledger.most:
            raise refusals.full()
        self._ledger.held += size - self._counted
        self._counted = size

    def release(self) -> None:
        """Let go of the bytes: nobody will need them again."""
        self.data = b""
        self.count(0)

    async def read(self, request: web.BaseRequest) -> None:
        """Read and unpack the body of an admitted request into `data`; raises Refusal."""
        encoding = encoding_of(request)
        unpacking = _Unpacking(encoding) if encoding else None
        came, parts, data = 0, 0, bytearray()
        began = asyncio.get_running_loop().time()
        try:
            while chunk := await self._next(request.content, began + came / LEAST_RATE):
                came += len(chunk)
                if came > LARGEST_BODY:
                    raise refusals.too_large(LARGEST_BODY)
                for piece in unpacking.pieces(chunk) if unpacking is not None else (chunk,):
                    if len(data) + len(piece) > LARGEST_BODY:
                        raise refusals.too_large(LARGEST_BODY)
                    self.count(len(data) + len(piece))
                    data += piece
                    parts += sum(map(piece.count, PARTS))
                    if parts > MOST_PARTS:
                        raise refusals.too_intricate(MOST_PARTS)
                    if unpacking is not None:
                        # Streams of others go on between two pieces.
                        await asyncio.sleep(0)
            if unpacking is not None:
                unpacking.end()
        except web.RequestPayloadError as error:
            raise refusals.invalid_body(f"The body cannot be read: {error}.") from error
        except zlib.error as error:
            raise refusals.invalid_body(f"The body is not valid {encoding}: {error}.") from error
        self.data = bytes(data)

    async def _next(self, content: StreamReader, due: float) -> bytes:
        """What has come, b"" at the end; all of it, up to here, was `due` by then."""
        if content.is_eof():
            return await content.readany()
        try:
            async with asyncio.timeout_at(min(due, asyncio.get_running_loop().time()) + self._patience_s):
                return await content.readany()
        except TimeoutError as error:
            raise refusals.slow_body(self._patience_s) from error


class _Unpacking:
    """What undoes gzip or deflate, a piece at a time."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._zlib = zlib.decompressobj(_GZIP_BITS) if encoding in _GZIP else None

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        """What `chunk` adds, in pieces of at most PIECE bytes; raises zlib.error and Refusal."""
        if self._zlib is None:
            # Some send deflate bare, some in zlib's frame, whose first byte ends in 8.
            self._zlib = zlib.decompressobj(zlib.MAX_WBITS if chunk[0] & 0xF == 8 else -zlib.MAX_WBITS)
        piece = b""
        # A whole piece may have left something behind even when all of the chunk is in.
        while chunk or len(piece) == PIECE:
            if self._zlib.eof and chunk:
                raise refusals.invalid_body(f"Something follows the end of the {self._encoding} body.")
            piece = self._zlib.decompress(chunk, PIECE)
            chunk = self._zlib.unused_data if self._zlib.eof else self._zlib.unconsumed_tail
            yield piece

    def end(self) -> None:
        """Raises Refusal when the body ended too early."""
        if self._zlib is None or not self._zlib.eof:
            raise refusals.invalid_body(f"The {self._encoding} body ends too early.")
