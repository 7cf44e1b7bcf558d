"""Clients of a gateway with limits of its own, one by one and by hand: they ask, read and leave as tests will."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator

from gateway_process import Gateway, Stream
from torrent import Torrent

CHAT, MESSAGES, OLLAMA_CHAT = "/v1/chat/completions", "/v1/messages", "/api/chat"
SHORT = ("head_s=0.5", "body_s=0.5", "idle_s=0.5", "unread_s=0.5")
MIB = 1 << 20
# Closed after each test, whatever becomes of it.
clients: list[socket.socket | Stream] = []


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
    clients.append(client)
    return client


def opened(gateway: Gateway, headers: dict[str, str] | None = None, **body: object) -> Stream:
    stream = Stream(gateway, headers, model="fast", **body)
    clients.append(stream)
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
