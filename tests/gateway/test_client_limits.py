"""What clients may take of a gateway: time for heads, bodies and idle connections, connections, requests at once."""

from __future__ import annotations

import contextlib
import json
import re
import resource
import socket
import time
from pathlib import Path

import pytest
from gateway_process import Gateway, key_ring, wait_until, write_keys
from peers_by_hand import (
    CHAT,
    MESSAGES,
    OLLAMA_CHAT,
    connected,
    ended,
    opened,
    started,
    torrent_behind,
    turned_away,
)
from upstream import Upstream

from orchestrator.gateway.limits import parse_limits

# --- heads, bodies, idle connections


BEGUN = {
    f"POST {CHAT} HTTP/1.1\r\nHost: lo": lambda told: told["error"]["code"] == "slow_head",
    f"POST {MESSAGES}": lambda told: told["type"] == "error",
    f"GET {OLLAMA_CHAT}?x=1 HTTP/1.1\r\nA: b\r\n": lambda told: "headers" in told["error"],
    "PO": lambda told: told["error"]["code"] == "slow_head",
}


def test_a_head_that_does_not_come_is_told_in_the_words_of_its_path(idle_gateway: Gateway) -> None:
    gateway = started(idle_gateway, "head_s=0.5")
    for begun in (*BEGUN, "\r\n", ""):
        with connected(gateway) as client:
            # In pieces, and that there are more of them does not help.
            for byte in begun.encode():
                client.sendall(bytes([byte]))
                time.sleep(0.002)
            began, answer = time.monotonic(), b""
            while piece := client.recv(4096):
                answer += piece
            assert 0.2 < time.monotonic() - began < 3
        if begun not in BEGUN:
            assert answer == b""
            continue
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert b"Connection: close" in head
        assert BEGUN[begun](json.loads(body)), body
    assert turned_away(gateway) == {"slow_head": len(BEGUN)}


def test_a_kept_connection_has_the_same_time_for_each_head_and_longer_between_them(idle_gateway: Gateway) -> None:
    gateway = started(idle_gateway, "head_s=0.5", "idle_s=1.5")
    connection = gateway.connect()
    for _ in range(3):
        connection.request("GET", "/health")
        assert connection.getresponse().read()
        time.sleep(0.8)
    client = connection.sock
    client.sendall(b"GET /health HTTP/1.1\r\n")
    assert client.recv(4096).startswith(b"HTTP/1.1 408 ")
    connection.close()
    # Without another request it is closed, and nothing is said.
    connection = gateway.connect()
    connection.request("GET", "/health")
    assert connection.getresponse().read()
    began = time.monotonic()
    assert connection.sock.recv(4096) == b""
    assert 1 < time.monotonic() - began < 4
    connection.close()


def test_a_byte_now_and_then_does_not_keep_a_body_open(idle_gateway: Gateway) -> None:
    gateway = started(idle_gateway, "body_s=1")
    with connected(gateway) as client:
        client.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n".encode())
        client.settimeout(0.2)
        began, answer = time.monotonic(), b""
        while not answer and time.monotonic() - began < 5:
            client.sendall(b" ")
            with contextlib.suppress(TimeoutError):
                answer = client.recv(4096)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert 0.9 < time.monotonic() - began < 3
    assert turned_away(gateway) == {"slow_body": 1}
    # A slow line is none of that.
    body = b'{"model": "nope"}' + b" " * 3000
    with connected(gateway) as client:
        client.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        for start in range(0, len(body), 250):
            client.sendall(body[start : start + 250])
            time.sleep(0.1)
        assert client.recv(4096).startswith(b"HTTP/1.1 404 ")


@pytest.mark.long
def test_two_thousand_idle_and_two_hundred_half_sent_connections_do_not_stay(idle_gateway: Gateway) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    gateway = started(idle_gateway, "head_s=2", "idle_s=3")
    clients: list[socket.socket] = []
    try:
        for number in range(2200):
            client = connected(gateway)
            clients.append(client)
            if number < 1000:
                client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
            elif number >= 2000:
                client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Le")
        wait_until(lambda: len(list(Path(f"/proc/{gateway.process.pid}/fd").iterdir())) < 50, 15)
        assert gateway.ask("/health", verb="GET")[0] == 200
        assert turned_away(gateway) == {"slow_head": 200}
        assert "199 more clients" in gateway.log.read_text() or gateway.log.read_text().count("WARNING") == 1
    finally:
        for client in clients:
            client.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_of_too_many_connections_the_one_that_has_been_idle_longest_goes(idle_gateway: Gateway) -> None:
    with torrent_behind(idle_gateway, "connections=10", "requests=4") as one:
        gateway = idle_gateway
        busy = [opened(gateway, silent=3, count=1) for _ in range(4)]
        wait_until(lambda: one.open == 4)
        idle = [gateway.connect() for _ in range(6)]
        for connection in idle:
            connection.request("GET", "/health")
            assert connection.getresponse().read()
        # The first is used again, so the second has been idle longest.
        idle[0].request("GET", "/health")
        assert idle[0].getresponse().read()
        socks = [connection.sock for connection in idle]
        connected(gateway)
        wait_until(lambda: [ended(sock) for sock in socks] == [False, True, False, False, False, False])
        for _ in range(5):
            connected(gateway)
        wait_until(lambda: all(ended(sock) for sock in socks))
        for stream in busy:
            assert stream.rest()[-1] == "[DONE]"
            stream.close()
        for connection in idle:
            connection.close()
        assert turned_away(gateway) == {"crowded": 6}


# --- requests at once


def test_requests_of_one_key_and_of_all(idle_gateway: Gateway, home: Path) -> None:
    keys = home / "keys.json"
    write_keys(keys, key_ring("sk-a", "sk-b"))
    limits = ("requests=3", "requests_per_key=2")
    with torrent_behind(idle_gateway, *limits, key_file=str(keys)) as one:
        gateway = idle_gateway
        shown = {name: {"Authorization": f"Bearer sk-{name}"} for name in "ab"}
        open_ones = [opened(gateway, shown["a"], silent=30) for _ in range(2)]
        wait_until(lambda: one.open == 2)
        for path, shape in (
            (CHAT, lambda told: told["error"]["code"] == "rate_limit_exceeded"),
            (MESSAGES, lambda told: told["error"]["type"] == "rate_limit_error"),
            (OLLAMA_CHAT, lambda told: "at once" in told["error"]),
        ):
            status, head, body = gateway.ask(path, {"model": "fast"}, headers=shown["a"])
            assert (status, head["retry-after"]) == (429, "2"), path
            assert shape(json.loads(body)), body
        # It may look at what there is, and others may ask.
        assert gateway.ask("/v1/models", verb="GET", headers=shown["a"])[0] == 200
        open_ones.append(opened(gateway, shown["b"], silent=30))
        wait_until(lambda: one.open == 3)
        status, head, body = gateway.ask(CHAT, {"model": "fast"}, headers=shown["b"])
        assert (status, head["retry-after"]) == (503, "2")
        assert json.loads(body)["error"]["code"] == "too_many_requests"
        # One that ends makes room for one more.
        open_ones.pop(0).close()
        wait_until(lambda: one.open == 2)
        wait_until(lambda: gateway.ask(CHAT, {"model": "fast", "size": 9, "count": 1}, headers=shown["a"])[0] == 200)
        for stream in open_ones:
            stream.close()
        assert turned_away(gateway)["rate_limit_exceeded"] >= 3


# --- what is said of limits


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (("idle=5",), "'idle=5' is not a limit; the limits are head_s, "),
        (("idle_s=-1",), "'idle_s=-1': idle_s is a number of seconds, from 0.1 to 86400"),
        (("requests=1.5",), "'requests=1.5': requests is a whole number, from 1 to 1000000"),
        (("idle_s=nan",), "idle_s is a number of seconds"),
        (("requests=5", "requests=6"), "requests is given twice"),
        (("buffer_mib=256",), "buffers_mib (128) is less than buffer_mib (256)"),
        (("connections=10", "requests=10"), "connections (10) must be more than requests (10)"),
    ],
)
def test_limits_that_are_none_are_told(said: tuple[str, ...], told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        parse_limits(said)


def test_a_gateway_does_not_start_with_them(idle_gateway: Gateway) -> None:
    with pytest.raises(AssertionError, match="argument --limit: 'idle=5' is not a limit"):
        started(idle_gateway, "idle=5")
    assert idle_gateway.process is not None
    assert idle_gateway.process.returncode == 2


def test_limits_are_within_what_the_machine_allows(idle_gateway: Gateway) -> None:
    few = ("bash", "-c", 'ulimit -n 300 && exec "$0" "$@"')
    idle_gateway.start(by=few)
    assert "300 are allowed here, hence " in idle_gateway.log.read_text()
    # As many connections as there can be: those that are idle make room, and engines are reached.
    engine = Upstream("one-g1")
    idle_gateway.admin.set_routes("one", [idle_gateway.route("tiny", engine)])
    idle = [connected(idle_gateway) for _ in range(400)]
    for _ in range(5):
        assert idle_gateway.ask(CHAT, {"model": "tiny"})[0] == 200
    for client in idle:
        client.close()
    engine.close()
    idle_gateway.end()
    with pytest.raises(AssertionError, match="300 are allowed here"):
        idle_gateway.start("--limit=requests=1000", by=few)
