"""A small engine for the gateway's tests: it records what it is sent, and the request itself says how to answer.

Fields of the request body: `stream`; `tokens` (how many events or words); `wait` ("head": before anything is sent,
"body": after the head, "middle": after the first event) waits for the gate; `die` (same places) resets the connection
there, "inside" in the middle of the second event; `status`; `pace` (seconds between events); `reply_headers`; `gzip`.
While `loading` is set everything is answered with 503, as llama.cpp's server does. With `keeps` connections stay open
after a stream, as vLLM's do, and with `one_each` what comes second on one of them finds it closed.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import select
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class GoneError(Exception):
    """The other side went away, or the handler is to end here."""


class Upstream:
    """Serves on a free loopback port (or on `port`) until `close`."""

    def __init__(self, name: str, port: int = 0) -> None:
        self.name = name
        self.gate = threading.Event()
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.loading = False
        self.keeps = False
        self.one_each = False
        self.connections = 0
        self.disconnects = 0
        self.changed = threading.Condition()
        self._open: set[socket.socket] = set()
        upstream = self

        class Handler(_Handler):
            owner = upstream

        class Server(ThreadingHTTPServer):
            daemon_threads = False
            block_on_close = True
            request_queue_size = 128

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def note(self, request: tuple[str, dict[str, str], bytes]) -> None:
        with self.changed:
            self.requests.append(request)
            self.changed.notify_all()

    def note_disconnect(self) -> None:
        with self.changed:
            self.disconnects += 1
            self.changed.notify_all()

    def wait_for_requests(self, count: int, timeout: float = 5) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.requests) >= count, timeout), f"{len(self.requests)} came"

    def wait_for_disconnect(self, timeout: float) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.disconnects > 0, timeout), "nobody disconnected"

    def close(self) -> None:
        self.gate.set()
        self._server.shutdown()
        with self.changed:
            for connection in self._open:
                reset(connection)
        self._server.server_close()
        self._thread.join()

    def opened(self, connection: socket.socket) -> None:
        with self.changed:
            self._open.add(connection)
            self.connections += 1

    def closed(self, connection: socket.socket) -> None:
        with self.changed:
            self._open.discard(connection)


def reset(connection: socket.socket) -> None:
    """End a connection at once, as a killed process does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: Upstream

    def setup(self) -> None:
        super().setup()
        self.owner.opened(self.connection)

    def finish(self) -> None:
        self.owner.closed(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except (GoneError, OSError):
            self.close_connection = True

    def do_POST(self) -> None:
        if self.owner.one_each and hasattr(self, "asked"):
            reset(self.connection)
            raise GoneError
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.owner.note((self.path, {key.lower(): value for key, value in self.headers.items()}, body))
        self.asked = json.loads(body)
        self._at("head")
        if self.owner.loading:
            self.asked = {"status": 503}
        if self.asked.get("stream") and not self.asked.get("whole"):
            self._stream()
        else:
            self._whole()

    def _at(self, place: str) -> None:
        if self.asked.get("wait") == place:
            while not self.owner.gate.is_set():
                if select.select([self.connection], [], [], 0.01)[0] and not self.connection.recv(1, socket.MSG_PEEK):
                    self.owner.note_disconnect()
                    raise GoneError
        if self.asked.get("die") == place:
            reset(self.connection)
            raise GoneError

    def _head(self, kind: str, length: int | None) -> None:
        self.send_response(self.asked.get("status", 200))
        self.send_header("Content-Type", kind)
        if self.asked.get("gzip"):
            self.send_header("Content-Encoding", "gzip")
        for key, value in self.asked.get("reply_headers", {}).items():
            self.send_header(key, value)
        if length is None:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.flush()

    def _whole(self) -> None:
        text = json.dumps({"from": self.owner.name, "text": "word " * self.asked.get("tokens", 1)}).encode()
        if self.asked.get("gzip"):
            text = gzip.compress(text)
        self._head("application/json", len(text))
        self._at("body")
        half = len(text) // 2
        self.wfile.write(text[:half])
        self.wfile.flush()
        self._at("middle")
        self.wfile.write(text[half:])

    def _stream(self) -> None:
        self._head("text/event-stream", None)
        self._at("body")
        count = self.asked.get("tokens", 3)
        pause = threading.Event()
        for index in range(count):
            self._chunk(b"data: " + json.dumps({"from": self.owner.name, "index": index}).encode() + b"\n\n")
            if index == 0:
                self._at("middle")
                if self.asked.get("die") == "inside":
                    self._chunk(b'data: {"from": ')
                self._at("inside")
            if "pace" in self.asked and index < count - 1:
                pause.wait(self.asked["pace"])
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")
        if not self.owner.keeps:
            # Unannounced, as llama.cpp's server does it.
            self.close_connection = True

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()
