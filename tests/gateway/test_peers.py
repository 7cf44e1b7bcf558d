"""Clients that do not read, do not finish, or are gone: others are answered, engines are told, memory is bounded."""

from __future__ import annotations

import contextlib
import ctypes
import json
import re
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_process import Gateway, Stream, key_ring, wait_until, write_keys
from torrent import Torrent
from upstream import Upstream

from orchestrator.gateway.limits import parse_limits

CHAT, MESSAGES, OLLAMA_CHAT = "/v1/chat/completions", "/v1/messages", "/api/chat"
SHORT = ("head_s=0.5", "body_s=0.5", "idle_s=0.5", "unread_s=0.5")
MIB = 1 << 20
# Closed after each test, whatever becomes of it.
_CLIENTS: list[socket.socket | Stream] = []


@pytest.fixture(autouse=True)
def clients_closed() -> Iterator[None]:
    yield
    while _CLIENTS:
        _CLIENTS.pop().close()


@pytest.fixture
def torrent(gateway: Gateway) -> Iterator[Torrent]:
    """An engine as fast as its clients, behind the name `fast`."""
    one = Torrent("one-g1")
    gateway.admin.set_routes("one", [gateway.route("fast", one)])
    yield one
    one.close()


def started(gateway: Gateway, *limits: str, **more: str) -> Gateway:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in more.items()]
    gateway.start(*(f"--limit={limit}" for limit in limits), *options)
    return gateway


def with_limits(gateway: Gateway, *limits: str, **more: str) -> tuple[Gateway, Torrent]:
    started(gateway, *limits, **more)
    one = Torrent("one-g1")
    gateway.admin.set_routes("one", [gateway.route("fast", one)])
    return gateway, one


@contextlib.contextmanager
def torrent_behind(gateway: Gateway, *limits: str, **more: str) -> Iterator[Torrent]:
    _, one = with_limits(gateway, *limits, **more)
    try:
        yield one
    finally:
        one.close()


def connected(gateway: Gateway) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", gateway.port), timeout=20)
    _CLIENTS.append(client)
    return client


def opened(gateway: Gateway, headers: dict[str, str] | None = None, **body: object) -> Stream:
    stream = Stream(gateway, headers, model="fast", **body)
    _CLIENTS.append(stream)
    return stream


def asked(gateway: Gateway, **body: object) -> socket.socket:
    """A client that has asked, and has read nothing yet."""
    client = connected(gateway)
    data = json.dumps({"model": "fast", **body}).encode()
    client.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
    return client


def ended(client: socket.socket) -> bool:
    """Whether the other side has closed a connection on which nothing came."""
    client.setblocking(False)
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def turned_away(gateway: Gateway) -> dict[str, int]:
    return dict(gateway.status().traffic.turned_away)


def peak_mib(gateway: Gateway) -> float:
    assert gateway.process is not None
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def vanish(client: socket.socket) -> None:
    """Be gone as after a power cut: what comes is dropped before the kernel sees to it, so that nothing answers."""
    nothing = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
    program = struct.pack("HL", 1, ctypes.addressof(nothing))
    client.setsockopt(socket.SOL_SOCKET, 26, program)  # SO_ATTACH_FILTER


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


# --- clients that do not read


def test_ten_that_do_not_read_are_cut_and_their_engine_is_told(torrent: Torrent, gateway: Gateway) -> None:
    clients = [asked(gateway, stream=True, size=200_000) for _ in range(10)]
    wait_until(lambda: torrent.open == 10)
    # Others are answered meanwhile.
    for _ in range(10):
        assert gateway.ask("/health", verb="GET")[0] == 200
        stream = opened(gateway, count=5)
        assert stream.rest()[-1] == "[DONE]"
        stream.close()
    wait_until(lambda: torrent.open == 0, 20)
    assert torrent.broken == 10
    assert turned_away(gateway) == {"behind": 10}
    wait_until(lambda: gateway.status().traffic.in_flight == 0)
    text = gateway.ask("/metrics", verb="GET")[2].decode()
    assert 'orch_gateway_turned_away_total{reason="behind"} 10' in text
    assert sum("does not read" in line for line in gateway.log.read_text().splitlines()) == 1
    for client in clients:
        client.close()


def test_an_engine_does_not_wait_for_one_that_reads_nothing_of_what_there_is_room_for(idle_gateway: Gateway) -> None:
    with torrent_behind(idle_gateway, "unread_s=1.5") as one:
        client = asked(idle_gateway, stream=True, size=100_000, count=60)
        # All of it is with the gateway: its engine has done with it.
        wait_until(lambda: idle_gateway.status().traffic.in_flight == 0 and one.open == 0)
        assert (one.broken, one.sent) == (0, 60 * 100_000)
        wait_until(lambda: turned_away(idle_gateway) == {"unread": 1}, 10)
        client.close()


def test_a_whole_answer_that_is_not_read_is_cut(torrent: Torrent, gateway: Gateway) -> None:
    client = asked(gateway, size=MIB, count=60)
    wait_until(lambda: torrent.open == 1)
    wait_until(lambda: torrent.open == 0, 15)
    assert (torrent.broken, turned_away(gateway)) == (1, {"behind": 1})
    assert peak_mib(gateway) < 120
    client.close()
    # The same, read.
    status, head, body = gateway.ask(CHAT, {"model": "fast", "size": MIB, "count": 60})
    assert (status, head["content-length"], len(body)) == (200, str(60 * MIB), 60 * MIB)


@pytest.mark.parametrize("streams", [True, False])
def test_what_is_kept_for_a_slow_client_comes_whole_and_in_order(
    torrent: Torrent, gateway: Gateway, streams: bool
) -> None:
    client = asked(gateway, stream=streams, size=50_000, count=400)
    got = bytearray()
    while piece := client.recv(1 << 20):
        got += piece
        time.sleep(0.01)
        if len(got) >= 400 * 50_000 and (not streams or got.endswith(b"0\r\n\r\n")):
            break
    _, _, body = bytes(got).partition(b"\r\n\r\n")
    if streams:
        body = unchunked(body)
        assert body == (b"data: " + b"x" * 49_992 + b"\n\n") * 400 + b"data: [DONE]\n\n"
    else:
        assert len(body) == 400 * 50_000
    # The connection is good for more.
    client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
    assert turned_away(gateway) == {}
    client.close()


def unchunked(data: bytes) -> bytes:
    parts = []
    while data:
        size, _, data = data.partition(b"\r\n")
        parts.append(data[: int(size, 16)])
        data = data[int(size, 16) + 2 :]
    return b"".join(parts)


@pytest.mark.long
def test_one_that_reads_slowly_but_steadily_is_not_cut(idle_gateway: Gateway) -> None:
    with torrent_behind(idle_gateway, "buffer_mib=1", "unread_s=2") as one:
        client = socket.socket()
        _CLIENTS.append(client)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 << 10)
        client.connect(("127.0.0.1", idle_gateway.port))
        data = json.dumps({"model": "fast", "stream": True, "size": 10_000, "count": 1500}).encode()
        client.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
        )
        # Its engine is held up for longer than one that does not read may do that.
        began, got = time.monotonic(), 0
        while time.monotonic() - began < 9:
            got += len(client.recv(10_000))
            time.sleep(0.05)
        assert (one.open, one.broken) == (1, 0)
        tail = b""
        while not tail.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
            piece = client.recv(1 << 20)
            assert piece
            got += len(piece)
            tail = (tail + piece)[-100:]
        assert got > 1500 * 10_000
        assert turned_away(idle_gateway) == {}
        client.close()


@pytest.mark.long
def test_two_hundred_that_do_not_read_take_bounded_memory(idle_gateway: Gateway) -> None:
    with torrent_behind(idle_gateway, "buffers_mib=32") as one:
        clients = [asked(idle_gateway, stream=True, size=100_000) for _ in range(200)]
        wait_until(lambda: one.open + one.broken == 200, 30)
        began = time.monotonic()
        assert idle_gateway.ask("/health", verb="GET")[0] == 200
        assert time.monotonic() - began < 10
        wait_until(lambda: one.broken == 200, 60)
        # Theirs together, and what is on its way for each of them.
        assert peak_mib(idle_gateway) < 50 + 32 + 200 * 1.5
        assert turned_away(idle_gateway) == {"behind": 200}
        for client in clients:
            client.close()


# --- what is no idleness


def test_who_waits_for_a_first_token_is_not_idle(idle_gateway: Gateway) -> None:
    with torrent_behind(idle_gateway, *SHORT) as one:
        gateway = idle_gateway
        long = [
            opened(gateway, silent=3, count=2),
            opened(gateway, pause=3, count=2),
            opened(gateway, pace=0.8, count=4),
        ]
        wait_until(lambda: one.open == 3)
        gateway.admin.pause("one", 2.5)
        held = opened(gateway, count=2)
        for stream in (*long, held):
            assert stream.rest()[-1] == "[DONE]"
            stream.close()
        assert (one.broken, turned_away(gateway)) == (0, {})


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


# --- who is gone


@pytest.mark.parametrize("silent", [30, pytest.param(0, marks=pytest.mark.long)], ids=["waiting", "reading"])
def test_a_client_that_vanishes_is_found(idle_gateway: Gateway, silent: int) -> None:
    with torrent_behind(idle_gateway, "unread_s=2") as one:
        client = asked(idle_gateway, stream=True, silent=silent, size=100, pace=0.1)
        wait_until(lambda: one.open == 1)
        time.sleep(0.3)
        vanish(client)
        began = time.monotonic()
        wait_until(lambda: one.broken == 1, 20)
        assert time.monotonic() - began > 1
        assert idle_gateway.status().traffic.in_flight == 0
        client.close()


@pytest.mark.long
def test_an_engine_that_vanishes_is_found(gateway: Gateway) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    engine = Upstream("one-g1")
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    gateway.admin.set_routes("one", [gateway.route("tiny", engine, url=url)])
    stream = Stream(gateway, model="tiny")
    accepted, _ = listening.accept()
    accepted.recv(1 << 16)
    accepted.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
    assert stream.event() == "1"
    vanish(accepted)
    began = time.monotonic()
    stream.connection.sock.settimeout(100)
    assert json.loads(stream.event())["error"]["code"] == "stream_interrupted"
    assert 40 < time.monotonic() - began < 90
    for one in (stream, accepted, listening, engine):
        one.close()


@pytest.mark.long
def test_an_engine_that_takes_nothing_for_a_while_is_not_gone(idle_gateway: Gateway) -> None:
    gateway = started(idle_gateway, "unread_s=1")
    listening = socket.create_server(("127.0.0.1", 0), backlog=1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    engine = Upstream("one-g1")
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    gateway.admin.set_routes("one", [gateway.route("tiny", engine, url=url)])
    answers: list[int] = []
    body = json.dumps({"model": "tiny", "text": "x" * 4 * MIB}).encode()
    asking = threading.Thread(target=lambda: answers.append(gateway.ask(CHAT, body)[0]))
    asking.start()
    accepted, _ = listening.accept()
    time.sleep(6)
    got = 0
    while got < len(body):
        got += len(accepted.recv(1 << 20))
    accepted.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
    asking.join()
    assert answers == [200]
    for one in (accepted, listening, engine):
        one.close()


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
