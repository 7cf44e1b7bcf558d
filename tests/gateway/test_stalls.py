"""While any single request is handled, whatever is in it, others are answered."""

from __future__ import annotations

import gzip
import threading
import time

import pytest
from gateway_process import Gateway
from upstream import Upstream

from orchestrator.gateway.bodies import LARGEST_BODY, MOST_PARTS

CHAT, OLLAMA_CHAT, MESSAGES = "/v1/chat/completions", "/api/chat", "/v1/messages"
PATHS = (CHAT, OLLAMA_CHAT, MESSAGES)
# Seconds that anybody else may wait.
MOST_S = 0.05
START = b'{"model": "NAME", "stream": false, "messages": ['
# As much as is let through of what takes a parser longest, and more.
FILLINGS = {
    "lists": b"[]," * (MOST_PARTS // 2 - 100) + b"[]",
    "numbers": b"1234567890123456789," * (MOST_PARTS - 100) + b"1",
    "objects": b'{"role":"user","content":"x"},' * (MOST_PARTS // 3 - 100) + b"{}",
    "names": b"{" + b",".join(b'"%x":1' % number for number in range(MOST_PARTS - 200)) + b"}",
    "escapes": b'"' + b"\\n" * ((LARGEST_BODY - 200) // 2) + b'"',
    "letters": b'"' + "\u00fc".encode() * ((LARGEST_BODY - 200) // 2) + b'"',
    "too many lists": b"[]," * (LARGEST_BODY // 3 - 100) + b"[]",
    "deep": b"[" * 500_000 + b"]" * 500_000,
}


def fields(count: int) -> bytes:
    return b",".join(b'"%x":1' % number for number in range(count))


@pytest.fixture(scope="module")
def served(running_gateway: Gateway) -> Gateway:
    one = Upstream("one-g1")
    routes = [
        running_gateway.route("plain", one),
        running_gateway.route("patched", one, patch={"lora": []}, defaults={"temperature": 0.5}),
        running_gateway.route("inner", one, upstream="inner-1234", speaks=("openai", "ollama")),
        running_gateway.route("translated", one, speaks=("openai", "llama-server")),
    ]
    running_gateway.admin.set_routes("one", routes)
    yield running_gateway
    running_gateway.admin.remove_routes("one")
    one.close()


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
