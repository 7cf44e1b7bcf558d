"""One gateway follows another: what this one was given, whom it tells of changes, and when it may leave.

A gateway that is to replace another waits for its sockets (handover.py). From the moment that it accepts, it is the one
that serves: it is told what changes and passes that on; it answers for both. The other one answers what is open with
it, each connection once more, and ends when nothing is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from orchestrator.core import json_fields as fields
from orchestrator.core.gateway_status import GatewayState, Phase, Traffic
from orchestrator.core.routes import RouteTable
from orchestrator.errors import HostError, PlanRefused
from orchestrator.gateway import handover, state_file
from orchestrator.gateway.handover import Handover
from orchestrator.gateway.predecessor import Predecessor
from orchestrator.gateway.sockets import Doors
from orchestrator.gateway.switchboard import CUT_S, Switchboard

log = logging.getLogger("orchestrator.gateway")

# How often a gateway that leaves looks whether it may.
AGAIN_S = 0.2

Tell = Callable[[str, str, object], Awaitable[None]]


class Succession:
    """`board` and what is on disk at `state` change together, and with the gateway that was replaced."""

    def __init__(self, board: Switchboard, doors: Doors, state: Path, predecessor: str) -> None:
        self.board = board
        self.fronts = doors.fronts
        self.phase = Phase.SERVING if doors.fronts else Phase.WAITING
        # Set when the sockets are another's; whose pages that one lets in, if it says so.
        self.given = asyncio.Event()
        self.new_origins: tuple[str, ...] | None = None
        self._admin = str(doors.admin_path)
        self._state = state
        self._predecessor = Predecessor(predecessor) if predecessor else None
        self._successor = ""
        self._inherited = Traffic()
        self._changing = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def changing(self) -> AsyncIterator[Tell]:
        """Nothing else changes meanwhile; what is yielded tells the gateway that was replaced. PlanRefused while this
        one has nothing to change yet."""
        async with self._changing:
            if self.phase is Phase.WAITING:
                raise PlanRefused("This gateway waits to replace another.", hint="Ask the one that serves.")
            yield self._tell

    async def save(self, table: RouteTable) -> None:
        """Have it on disk. In a thread: an fsync may take long, and streams must not wait for it."""
        predecessor = self._predecessor.socket if self._predecessor is not None else ""
        now = time.time()
        until = {owner: now + left for owner, left in self.board.holds.left.items()}
        await asyncio.to_thread(state_file.save, self._state, GatewayState(table, predecessor, until))

    async def traffic(self) -> Traffic:
        """What goes through here, and through the gateway that was replaced."""
        before, theirs = self._predecessor, None
        if before is not None and (theirs := await before.traffic()) is None:
            # It was killed: what it said last is all that is known.
            await self.has_left(before.last)
        return self.board.traffic + self._inherited + (theirs or Traffic())

    async def drain(self, backend: str, seconds: float, cancel: bool) -> int:
        """Wait until nothing is in flight on a backend, in both; how many requests are left at the deadline."""
        body = {"backend": backend, "timeout_s": seconds, "cancel": cancel}
        if self._predecessor is None:
            return await self.board.drain(backend, seconds, cancel)
        theirs = self._predecessor.tell("POST", "/drain", body, seconds + CUT_S)
        left, answer = await asyncio.gather(self.board.drain(backend, seconds, cancel), theirs)
        return left if answer is None else left + fields.whole(fields.mapping(answer, "drain"), "left")

    async def take(self, given: Handover, fronts: tuple[socket.socket, ...]) -> None:
        """Have what was given on disk and in force."""
        self._predecessor, self.fronts = Predecessor(given.admin), fronts
        for owner, left in given.paused.items():
            self.board.pause(owner, left)
        await self.save(given.routes)
        self.board.go_by(given.routes)
        self.phase = Phase.SERVING

    async def give_back(self) -> None:
        """Nobody has heard that the sockets were taken: they are still the other's."""
        self.phase, self._predecessor, self.fronts = Phase.WAITING, None, ()
        self.board.holds.end_all()
        self.board.go_by(RouteTable())
        await asyncio.to_thread(self._state.unlink, missing_ok=True)

    async def hand_over(self, to: Path) -> None:
        """Give sockets and table to the gateway that waits at `to`. HostError when it does not take them: nothing has
        changed then. PlanRefused when they are not this one's to give."""
        async with self._changing:
            if self.phase is not Phase.SERVING:
                raise PlanRefused(f"This gateway is {self.phase}.", hint="Ask the one that serves.")
            given = Handover(self.board.table, self.board.holds.left, self._admin)
            taken = await asyncio.to_thread(handover.give, to, self.fronts, given)
            self._successor, self.new_origins = taken.admin, taken.origins
            self.phase = Phase.LEAVING
        log.info("Another gateway has taken over; what is open here is answered.")
        self.given.set()

    async def has_left(self, traffic: Traffic) -> None:
        """The gateway that was replaced ends; these are its last figures."""
        async with self._changing:
            if self._predecessor is not None:
                self._inherited += traffic.over()
                self._predecessor = None
                await self.save(self.board.table)

    async def wait_for_predecessor(self) -> None:
        """Until the gateway that this one has replaced has left: it is told of changes by nobody else."""
        while self._predecessor is not None:
            await self.traffic()
            await asyncio.sleep(AGAIN_S)

    async def tell_successor(self) -> None:
        """The last figures, for the one that answers for both."""
        traffic = (await self.traffic()).to_json()
        with contextlib.suppress(HostError):
            await Predecessor(self._successor).tell("POST", "/left", traffic)

    async def _tell(self, verb: str, path: str, body: object) -> None:
        if self._predecessor is not None:
            await self._predecessor.tell(verb, path, body)
