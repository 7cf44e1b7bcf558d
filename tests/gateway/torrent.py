"""An engine that answers as fast as it is read from, and tells who has left it.

Fields of the request: `size` (bytes of each event), `count` (events; by default no end), `pace` (seconds between them),
`silent` (seconds before the first), `pause` (seconds after the first). A request without `stream` is answered with
`count` times `size` bytes in one piece of a known length.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading


class Torrent:
    """Serves on a free loopback port until `close`. `open` answers are being sent, `broken` were not wanted to their
    end; `sent` are bytes of all of them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.open = 0
        self.broken = 0
        self.sent = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        self._ready.wait()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0, backlog=1024)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
            asked = json.loads(await reader.readexactly(length))
        except asyncio.IncompleteReadError:
            return
        left = asyncio.create_task(reader.read())
        sending = asyncio.create_task(self._send(writer, asked))
        self.open += 1
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait((left, sending), return_when=asyncio.FIRST_COMPLETED)
        self.open -= 1
        if not left.done() and not sending.done():
            return
        self.broken += not asked.get("done")
        for task in (left, sending):
            task.cancel()
        writer.transport.abort()

    async def _send(self, writer: asyncio.StreamWriter, asked: dict) -> None:
        size, count = asked.get("size", 1024), asked.get("count")
        head = "HTTP/1.1 200 OK\r\nConnection: close\r\n"
        if not asked.get("stream"):
            writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {size * count}\r\n\r\n".encode())
            for _ in range(count):
                writer.write(b" " * size)
                self.sent += size
                await writer.drain()
        else:
            event = b"data: " + b"x" * (size - 8) + b"\n\n"
            writer.write(f"{head}Content-Type: text/event-stream\r\n\r\n".encode())
            await asyncio.sleep(asked.get("silent", 0))
            number = 0
            while number != count:
                writer.write(event)
                self.sent += size
                await writer.drain()
                number += 1
                await asyncio.sleep(asked.get("pause", 0) if number == 1 else asked.get("pace", 0))
            writer.write(b"data: [DONE]\n\n")
        asked["done"] = True
        await writer.drain()
        writer.write_eof()
        await asyncio.sleep(0.2)
