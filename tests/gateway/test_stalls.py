"""While any single request is handled, whatever is in it, others are answered."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from gateway_process import Gateway

from orchestrator.gateway.bodies import LARGEST_BODY, MOST_PARTS

CHAT, OLLAMA_CHAT, MESSAGES = "/v1/chat/completions", "/api/chat", "/v1/messages"
PATHS = (CHAT, OLLAMA_CHAT, MESSAGES)
# Seconds that anybody else may wait.
MOST_S = 0.05
START = b'{"model": "NAME", "stream": false, "max_tokens": 9, "messages": ['
# As much as is let through of what takes a parser longest, and more.
FILLINGS = {
    "lists": b"[]," * (MOST_PARTS // 2 - 100) + b"[]",
    "numbers": b"1234567890123456789," * (MOST_PARTS - 100) + b"1",
    "objects": b'{"role":"user","content":"x"},' * (MOST_PARTS // 3 - 100) + b"{}",
    "turns": b'{"role":"user","content":"x"},' * 23_900 + b'{"role":"user","content":"x"}',
    "names": b"{" + b",".join(b'"%x":1' % number for number in range(MOST_PARTS - 200)) + b"}",
    "escapes": b'"' + b"\\n" * ((LARGEST_BODY - 200) // 2) + b'"',
    "letters": b'"' + "\u00fc".encode() * ((LARGEST_BODY - 200) // 2) + b'"',
    "too many lists": b"[]," * (LARGEST_BODY // 3 - 100) + b"[]",
    "deep": b"[" * 500_000 + b"]" * 500_000,
}


def fields(count: int) -> bytes:
    return b",".join(b'"%x":1' % number for number in range(count))


class Unread(ThreadingHTTPServer):
    """An engine that answers without a look at what it is asked: a parser of this process would keep it waiting."""

    name = "one-g1"

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), self.Answer)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.02,)).start()


@pytest.fixture(scope="module")
def served(running_gateway: Gateway) -> Iterator[Gateway]:
    one = Unread()
    routes = [
        running_gateway.route("plain", one),
        running_gateway.route("patched", one, patch={"lora": []}, defaults={"temperature": 0.5}),
        running_gateway.route("inner", one, upstream="inner-1234", speaks=("openai", "ollama")),
        running_gateway.route("translated", one, speaks=("openai", "llama-server")),
    ]
    running_gateway.admin.set_routes("one", routes)
    yield running_gateway
    running_gateway.admin.remove_routes("one")
    one.shutdown()
    one.server_close()


def longest_wait(gateway: Gateway, path: str, body: bytes, headers: dict[str, str]) -> float:
    """Seconds that the slowest /health took while this was handled."""
    done = threading.Event()

    def ask() -> None:
        gateway.ask(path, body, headers=headers)
        done.set()

    connection = gateway.connect()
    asking = threading.Thread(target=ask)
    asking.start()
    longest = 0.0
    while not done.is_set():
        began = time.perf_counter()
        connection.request("GET", "/health")
        connection.getresponse().read()
        longest = max(longest, time.perf_counter() - began)
        done.wait(0.002)
    asking.join()
    connection.close()
    return longest


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("filling", FILLINGS)
def test_no_body_keeps_others_waiting(served: Gateway, filling: str, packed: bool) -> None:
    for path in PATHS:
        for name in (b"nope", b"plain", b"patched", b"inner", b"translated"):
            body = START.replace(b"NAME", name) + FILLINGS[filling] + b"]}"
            headers = {}
            if packed:
                body, headers = gzip.compress(body, 1), {"Content-Encoding": "gzip"}
            # Whatever else the machine does makes a wait longer, never shorter.
            waits = []
            while len(waits) < 5 and (not waits or min(waits) >= MOST_S):
                waits.append(longest_wait(served, path, body, headers))
            assert min(waits) < MOST_S, (path, name, waits)


def test_no_number_of_fields_does(served: Gateway) -> None:
    for path in PATHS:
        body = b'{"model": "patched",' + fields(MOST_PARTS - 100) + b"}"
        assert min(longest_wait(served, path, body, {}) for _ in range(3)) < MOST_S, path
