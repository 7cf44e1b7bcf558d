"""Clients that do not read, do not finish, or are gone: what they may take of what is others' too.

A client that reads more slowly than its engine answers has a Backlog, so that the engine does not wait for it: one that
nobody reads from answers nobody (ten streams that are not read end llama.cpp's server for everybody). All that takes
time is seen by a look at all connections, once a second, and costs a request or an event nothing.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Protocol

from orchestrator.gateway.limits import Limits

log = logging.getLogger("orchestrator.gateway")

# How often all are looked at, at most; with short limits more often.
LOOK_S = 1.0
# What every client may have in its backlog, however much others have: less than that is nobody's burden.
LEAST_ROOM = 128 << 10
# An engine waits for a client whose backlog is full as long as that reads on: so much a second, seen over so many.
# It has to be several of the pieces in which a window opens, which on loopback are 64 KiB.
LEAST_READ = 16 << 10
FULL_S = 5.0
# Bytes that are put together, where they come in smaller pieces.
_PIECE = 64 << 10
# Seconds for which what befalls many clients is told once, with their number.
_QUIET_S = 10.0
# Where the kernel counts the bytes that the other side has acknowledged: tcpi_bytes_acked.
_ACKED = slice(120, 128)


class Peer(Protocol):
    """A connection, as it is looked at."""

    def look(self, now: float) -> None:
        """Let go of the client if it has had its time."""
        ...

    def let_go(self) -> None:
        """End the connection at once."""
        ...


def acknowledged(transport: asyncio.Transport) -> int:
    """How many bytes the other side has taken, ever. What the kernel takes says less: it may keep megabytes."""
    try:
        found = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKED.stop)
    except OSError:
        return 0
    return int.from_bytes(found[_ACKED], sys.byteorder)


class Peers:
    """All clients that are connected. `waiting` are those without a request, who has been so longest first; `held` are
    the bytes in all backlogs; `turned_away` counts who was let go of, by reason."""

    def __init__(self, limits: Limits, turned_away: Counter[str]) -> None:
        self.limits = limits
        self.waiting: OrderedDict[Peer, None] = OrderedDict()
        self.held = 0
        self._open: set[Peer] = set()
        self._turned_away = turned_away
        self._buffer, self._buffers = limits.buffer_mib << 20, limits.buffers_mib << 20
        # By reason: when it was told last, and of how many clients it has not been told since.
        self._told: dict[str, tuple[float, int]] = {}

    @property
    def room(self) -> int:
        """Bytes of a backlog beyond which its engine waits."""
        return self._buffer if self.held <= self._buffers else min(self._buffer, LEAST_ROOM)

    def opened(self, peer: Peer) -> None:
        """There is one more; where there are too many, the one that has waited longest has to go."""
        if len(self._open) >= self.limits.connections:
            most = self.limits.connections
            if not self.waiting:
                self.turn_away("crowded", f"{most} connections are in use, which is the most: a new one is closed.")
                peer.let_go()
                return
            self.turn_away("crowded", f"{most} connections are open, which is the most: an idle one is closed.")
            self.waiting.popitem(last=False)[0].let_go()
        self._open.add(peer)
        self.waiting[peer] = None

    def closed(self, peer: Peer) -> None:
        """It is gone."""
        self._open.discard(peer)
        self.waiting.pop(peer, None)

    def turn_away(self, reason: str, what: str) -> None:
        """Count a client that is let go of, and tell it: once in a while, with how many they were."""
        self._turned_away[reason] += 1
        now = asyncio.get_running_loop().time()
        at, more = self._told.get(reason, (now - _QUIET_S, 0))
        if now - at < _QUIET_S:
            self._told[reason] = at, more + 1
            return
        self._told[reason] = now, 0
        log.warning("%s", what)

    async def watch(self) -> None:
        """Look at all of them, again and again."""
        shortest = min(self.limits.head_s, self.limits.unread_s)
        while True:
            await asyncio.sleep(min(LOOK_S, shortest / 5))
            now = asyncio.get_running_loop().time()
            for peer in tuple(self._open):
                try:
                    peer.look(now)
                except Exception:
                    log.exception("A connection cannot be looked at: this is a bug in orch.")
                    peer.let_go()
            self._tell_the_rest(now)

    def _tell_the_rest(self, now: float) -> None:
        for reason, (at, more) in tuple(self._told.items()):
            if now - at >= _QUIET_S:
                if more:
                    log.warning("In %.0f s the same (%s) befell %d more clients.", now - at, reason, more)
                del self._told[reason]


class Backlog(asyncio.Transport):
    """Stands before the transport of a client that reads more slowly than it is written to, and keeps what that cannot
    send: as bytes, where the transport would keep each event with a kilobyte around it. `clogged`: it takes no more at
    the moment. `hold` and `go_on` tell the connection's writer to wait for it, where it is `full`, and not to."""

    def __init__(
        self, transport: asyncio.Transport, peers: Peers, hold: Callable[[], None], go_on: Callable[[], None]
    ) -> None:
        super().__init__()
        self.clogged = True
        self.full = False
        self._transport = transport
        self._peers = peers
        self._hold, self._go_on = hold, go_on
        # Pieces to be sent, and what will be the next one: small ones are put together.
        self._pieces: deque[bytes] = deque()
        self._next = bytearray()
        self._size = 0
        self._counted = 0
        self._closing = False
        self._full_since, self._full_acknowledged = 0.0, 0

    def __len__(self) -> int:
        """Bytes, those that are with the transport too."""
        return self._size + self._transport.get_write_buffer_size()

    @property
    def over(self) -> bool:
        """Whether there is nothing left to keep."""
        return not self._size and not self.clogged

    def flow(self) -> None:
        """Give the transport what it takes."""
        while self._size and not self.clogged:
            if not self._pieces:
                self._seal()
            piece = self._pieces.popleft()
            self._size -= len(piece)
            self._transport.write(piece)
        if self.over and self._closing:
            self._transport.close()
        self.judge()

    def judge(self) -> None:
        """See how much there is by now."""
        size = len(self)
        self._peers.held += size - self._counted
        self._counted = size
        room = self._peers.room
        if size > room and not self.full:
            self.full = True
            self._full_since = asyncio.get_running_loop().time()
            self._full_acknowledged = acknowledged(self._transport)
            self._hold()
        elif self.full and size <= room // 2:
            self.full = False
            self._go_on()

    def holds_up(self, now: float, taken: int) -> bool:
        """Whether the engine waits for a client that does not read on; `taken` is what it has acknowledged."""
        self.judge()
        seconds = now - self._full_since
        if not self.full or seconds < FULL_S:
            return False
        if taken - self._full_acknowledged < LEAST_READ * seconds:
            return True
        self._full_since, self._full_acknowledged = now, taken
        return False

    def drop(self) -> None:
        """Keep nothing any more."""
        self._pieces.clear()
        self._next.clear()
        self._size = 0
        self.clogged = False
        self._peers.held -= self._counted
        self._counted = 0

    def _seal(self) -> None:
        if self._next:
            self._pieces.append(bytes(self._next))
            self._next.clear()

    # --- a transport

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if len(data) >= _PIECE:
            self._seal()
            self._pieces.append(bytes(data))
        else:
            self._next += data
            if len(self._next) >= _PIECE:
                self._seal()
        self._size += len(data)
        self.flow()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def get_write_buffer_size(self) -> int:
        return len(self)

    def is_closing(self) -> bool:
        return self._closing or self._transport.is_closing()

    def close(self) -> None:
        self._closing = True
        self.flow()

    def abort(self) -> None:
        self._transport.abort()

    def get_extra_info(self, name: str, default: object = None) -> object:
        return self._transport.get_extra_info(name, default)

    def is_reading(self) -> bool:
        return self._transport.is_reading()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()
