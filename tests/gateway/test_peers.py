"""Clients that do not read, or are gone: others are answered, engines are told, memory is bounded."""

from __future__ import annotations

import ctypes
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import peers_by_hand
import pytest
from gateway_process import Gateway, Stream, wait_until
from peers_by_hand import CHAT, MIB, SHORT, asked, opened, started, torrent_behind, turned_away
from torrent import Torrent
from upstream import Upstream


@pytest.fixture
def torrent(gateway: Gateway) -> Iterator[Torrent]:
    """An engine as fast as its clients, behind the name `fast`."""
    one = Torrent("one-g1")
    gateway.admin.set_routes("one", [gateway.route("fast", one)])
    yield one
    one.close()


def peak_mib(gateway: Gateway) -> float:
    assert gateway.process is not None
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def vanish(client: socket.socket) -> None:
    """Be gone as after a power cut: what comes is dropped before the kernel sees to it, so that nothing answers."""
    nothing = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
    program = struct.pack("HL", 1, ctypes.addressof(nothing))
    client.setsockopt(socket.SOL_SOCKET, 26, program)  # SO_ATTACH_FILTER


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
    assert 'orch_gateway_turned_away_total{reason="behind"} 10.0' in text
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
        peers_by_hand.clients.append(client)
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
