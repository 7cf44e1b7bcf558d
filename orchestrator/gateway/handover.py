"""A running gateway gives its listening sockets, and what it was told, to the one that replaces it.

The sockets go over a unix socket (SCM_RIGHTS), so connections that wait to be accepted stay where they are; with a
second listening socket on the address (SO_REUSEPORT) those that wait at the one that is closed would be reset. Both
ends block for a moment, in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.core import json_fields as fields
from orchestrator.core.routes import PROTOCOL, RouteTable
from orchestrator.errors import HostError
from orchestrator.gateway.sockets import unix_socket

# What the other side may take: it writes its table to disk in between.
ANSWER_S = 10.0
MOST_SOCKETS = 16
_LARGEST = 64 << 20
_SIZE = struct.Struct("!Q")


@dataclass(frozen=True)
class Handover:
    """What is given besides the sockets: the routes, the pauses (owner to seconds left), and the admin socket of the
    one that gives, where it can be told of changes until it has left."""

    routes: RouteTable
    paused: Mapping[str, float]
    admin: str

    def to_json(self) -> dict[str, object]:
        """As it is sent."""
        given = {"routes": self.routes.to_json(), "paused": dict(self.paused), "admin": self.admin}
        return {"protocol": PROTOCOL, **given}

    @classmethod
    def from_json(cls, value: object) -> Handover:
        """Read what `to_json` wrote, in this protocol or another; ValueError says what is wrong."""
        document = fields.mapping(value, "handover")
        paused = fields.mapping(document.get("paused"), "paused")
        return cls(
            RouteTable.from_json(document.get("routes")),
            {owner: float(str(left)) for owner, left in paused.items()},
            fields.text(document, "admin"),
        )


@dataclass(frozen=True)
class Taken:
    """What the one that has taken over says: its admin socket, and whose pages it lets in besides its own; an earlier
    version does not say (None)."""

    admin: str
    origins: tuple[str, ...] | None

    def to_json(self) -> dict[str, object]:
        """As it is sent."""
        return {"admin": self.admin, "origins": self.origins}

    @classmethod
    def from_json(cls, value: object) -> Taken:
        """Read what `to_json` wrote, in this version or another; ValueError says what is wrong."""
        document = fields.mapping(value, "answer")
        origins = fields.texts(document, "origins") if document.get("origins") is not None else None
        return cls(fields.text(document, "admin"), origins)


class Receiver:
    """Where a gateway waits to be given the sockets of another: the unix socket at `path`, for this user only."""

    def __init__(self, path: Path) -> None:
        """Raises HostError."""
        self.path = path
        self._listening = unix_socket(path)
        self._listening.setblocking(False)
        self._giver: socket.socket | None = None

    async def receive(self) -> tuple[Handover, tuple[socket.socket, ...]]:
        """Wait for somebody who gives. Raises OSError and ValueError for one who does not; another may come."""
        self._giver, _ = await asyncio.get_running_loop().sock_accept(self._listening)
        return await asyncio.to_thread(_received, self._giver)

    async def acknowledge(self, taken: Taken) -> None:
        """Say that the sockets are in use; OSError when nobody hears it."""
        if self._giver is not None:
            with contextlib.closing(self._giver) as connection:
                await asyncio.to_thread(connection.sendall, json.dumps(taken.to_json()).encode())

    def close(self) -> None:
        """Wait no longer."""
        for one in (self._listening, self._giver):
            if one is not None:
                one.close()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()


def _received(connection: socket.socket) -> tuple[Handover, tuple[socket.socket, ...]]:
    connection.settimeout(ANSWER_S)
    first, descriptors, _, _ = socket.recv_fds(connection, _SIZE.size, MOST_SOCKETS)
    sockets = tuple(socket.socket(fileno=descriptor) for descriptor in descriptors)
    try:
        (size,) = _SIZE.unpack(first + _exactly(connection, _SIZE.size - len(first)))
        if size > _LARGEST or not sockets:
            raise ValueError("this is not a handover")
        return Handover.from_json(json.loads(_exactly(connection, size))), sockets
    except BaseException:
        for one in (*sockets, connection):
            one.close()
        raise


def give(path: Path, sockets: tuple[socket.socket, ...], handover: Handover) -> Taken:
    """Give them to the gateway that waits at `path`; what that says. Raises HostError when it does not say that it has
    them: then they are still this one's."""
    data = json.dumps(handover.to_json()).encode()
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as connection:
        try:
            connection.settimeout(ANSWER_S)
            connection.connect(os.fspath(path))
            socket.send_fds(connection, [_SIZE.pack(len(data))], [given.fileno() for given in sockets])
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while block := connection.recv(4096):
                answer += block
            return Taken.from_json(json.loads(answer))
        except (OSError, ValueError) as error:
            raise HostError(f"The gateway at {path} did not take over: {error}.") from error


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        block = connection.recv(min(size - len(data), 1 << 16))
        if not block:
            raise ValueError("the other side stopped in the middle")
        data += block
    return bytes(data)
