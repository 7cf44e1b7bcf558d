"""How fast the client can read: the same client, asked of a server that has nothing to compute.

    python -m orchestrator.bench.ceiling USERS PIECES

Prints a line of JSON: `output_throughput`, tokens a second. Server and client share this process and its one core, so
the client alone is faster than what is told: a bound that holds.
"""

from __future__ import annotations

import asyncio
import json
import sys

import uvloop

from orchestrator.bench.client import Ask, Load, make
from orchestrator.bench.metrics import Level, Measured

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
_PIECE = (
    b'data: {"id":"chatcmpl-0","object":"chat.completion.chunk","created":0,"model":"none","choices":'
    b'[{"index":0,"delta":{"content":" word"},"finish_reason":null}]}\n\n'
)
# Pieces that are enough to see a rate by: half a second or so.
_ENOUGH = 20_000


async def ceiling(users: int, pieces: int) -> float:
    """Tokens a second that the client reads, of so many streams at a time, each of so many pieces. They are written one
    by one, as engines do."""
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":%d}}\n\ndata: [DONE]\n\n' % pieces

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        await reader.readexactly(int(head.partition(b"content-length:")[2].partition(b"\r\n")[0]))
        writer.write(_HEAD)
        for _ in range(pieces):
            writer.write(_PIECE)
            # The others write theirs, too.
            await asyncio.sleep(0)
        writer.write(usage)
        await writer.drain()
        writer.close()

    measured: list[Measured] = []
    asks = tuple(Ask({}) for _ in range(users * max(1, _ENOUGH // (users * pieces))))
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        duration = await make(Load(url, asks, users, kept=False), lambda _, one: measured.append(one))
    return Level.of(measured, duration).output_throughput


def main() -> None:
    """See the top."""
    users, pieces = map(int, sys.argv[1:])
    sys.stdout.write(json.dumps({"output_throughput": uvloop.run(ceiling(users, pieces))}) + "\n")


if __name__ == "__main__":
    main()
