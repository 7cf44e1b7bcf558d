"""The engine behind scripts/bench-gateway: knows OpenAI's chat API, thinks of nothing, and answers at once.

What it is to do stands in the question's own text, so that it comes through every translation: `events=N pace=S` asks
for a stream of N events, S seconds apart (0: as fast as they are taken). Events that are paced leave one by one; the
first is at once, and the others of each stream have a phase of their own, as those of real engines do. Connections
stay open, as vLLM's do; with --closes they are closed after a stream, as llama.cpp's server does.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys

import uvloop

# The model as the engine knows it, and the mark that is in each word that it says, and nowhere else in an answer. One
# byte: nginx cuts events in two, with the length of a chunk in between.
MODEL = "engine-model"
MARK = b"~"
# Events in one write at full speed: 2 KB, of which the next one down reads several at once.
TOGETHER = 8

_ASKED = re.compile(rb"events=(\d+) pace=([\d.]+)")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_COMMON = {"id": "chatcmpl-a5475035929f570d", "created": 1795371167, "model": MODEL}
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nServer: bench\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
_UNKNOWN = b"HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


def _json(**fields: object) -> bytes:
    return json.dumps({**_COMMON, **fields}, separators=(",", ":")).encode()


def _whole() -> bytes:
    message = {"role": "assistant", "content": " wor~" * 20}
    usage = {"prompt_tokens": 210, "total_tokens": 230, "completion_tokens": 20}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    body = _json(object="chat.completion", choices=[choice], usage=usage)
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def _event(**fields: object) -> bytes:
    data = b"data: %s\n\n" % _json(object="chat.completion.chunk", **fields)
    return b"%x\r\n%s\r\n" % (len(data), data)


def _choice(delta: dict[str, str], reason: str | None) -> list[object]:
    return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason, "token_ids": None}]


_ANSWER = _whole()
_TOKEN = _event(choices=_choice({"content": " wor~"}, None))
_STOP = _event(choices=_choice({}, "stop"))
_USAGE = _event(choices=[], usage={"prompt_tokens": 210, "total_tokens": 230, "completion_tokens": 20})
_LAST = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


class Engine(asyncio.Protocol):
    """One connection."""

    def __init__(self, closes: bool) -> None:
        self._closes = closes

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._data = b""
        # Events to come; -1 when no stream is under way.
        self._left = -1
        self._full = False
        self._next: asyncio.Handle | None = None

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, end, body = self._data.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not end or len(body) < (int(length[1]) if length else 0):
            return
        self._data = b""
        if b"/chat/completions " not in head[:256]:
            self._transport.write(_UNKNOWN)
        elif (asked := _ASKED.search(body)) is None or b'"stream":true' not in body.replace(b" ", b""):
            self._transport.write(_ANSWER)
        else:
            self._usage = b'"include_usage"' in body
            self._left, self._pace = int(asked[1]), float(asked[2])
            self._at = self._loop.time() - self._pace * random.random()
            self._transport.write(_STREAM_HEAD)
            self._go_on()

    def _go_on(self) -> None:
        if self._transport.is_closing() or self._full or self._left < 0:
            return
        if not self._left:
            self._left = -1
            self._transport.write(_STOP + (_USAGE if self._usage else b"") + _LAST)
            if self._closes:
                self._transport.close()
            return
        if self._pace:
            self._left -= 1
            self._at += self._pace
            self._next = self._loop.call_at(self._at, self._go_on)
            self._transport.write(_TOKEN)
        else:
            now = min(TOGETHER, self._left)
            self._left -= now
            self._next = self._loop.call_soon(self._go_on)
            self._transport.write(_TOKEN * now)

    def pause_writing(self) -> None:
        self._full = True
        if self._next is not None:
            self._next.cancel()

    def resume_writing(self) -> None:
        self._full = False
        # What was not taken in its time is not made up for.
        self._at = self._loop.time()
        self._go_on()


async def _serve() -> None:
    closes = "--closes" in sys.argv
    server = await asyncio.get_running_loop().create_server(lambda: Engine(closes), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    """Serve until killed; the port is the first line of the output."""
    uvloop.run(_serve())


if __name__ == "__main__":
    main()
