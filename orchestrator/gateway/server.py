"""The process: the doors open, until a signal or a successor; then what is in flight may end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
from aiohttp import hdrs, web

from orchestrator import __version__
from orchestrator.core.gateway_status import GatewayState, GatewayStatus, Listener, Phase
from orchestrator.core.routes import PROTOCOL
from orchestrator.errors import HostError
from orchestrator.gateway.admin import Admin
from orchestrator.gateway.connections import PublicServer
from orchestrator.gateway.front import FrontDoor, Terms
from orchestrator.gateway.handover import Receiver, Taken
from orchestrator.gateway.keys import Keys
from orchestrator.gateway.peers import Peers
from orchestrator.gateway.queues import Queues
from orchestrator.gateway.relay import FAREWELL_S, Behind, Clients
from orchestrator.gateway.secrets import EngineSecrets
from orchestrator.gateway.sockets import BACKLOG, Doors, address, engine_socket, watch_clients
from orchestrator.gateway.succession import AGAIN_S, Succession
from orchestrator.gateway.switchboard import Switchboard
from orchestrator.gateway.window import Window

log = logging.getLogger("orchestrator.gateway")

# Less than the 5 s after which uvicorn and llama.cpp's server close an idle connection, so that a request is
# hardly ever sent into one that is being closed.
IDLE_S = 3.0
# Bytes of an answer that are read before they are wanted: for each engine's answer that a client keeps waiting.
READ_AHEAD = 64 << 10
# How long a gateway that was replaced leaves connections open on which nothing comes: longer than clients keep them
# for another request (Go's 90 s are the longest usual), since one that is just then sent into a closed one is lost.
LAST_IDLE_S = 100.0


@dataclass(frozen=True)
class Setup:
    """What the process was started with. `listeners` are the addresses that it was told, `secrets` what engines ask
    for, `origins` and `limits` what was said of those in `terms`, as it was written; `grace` seconds are for requests
    in flight at a signal. It says that it speaks `protocol`. What clients do is written to `traffic` every `window_s`
    seconds."""

    listeners: tuple[Listener, ...]
    state: Path
    terms: Terms
    secrets: EngineSecrets
    origins: tuple[str, ...]
    limits: tuple[str, ...]
    grace: float
    traffic: Path
    window_s: float
    protocol: int = PROTOCOL


def client_session(connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
    """A client for the engines: nothing decoded, nothing added, nothing remembered, no end but theirs."""
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
        auto_decompress=False,
        read_bufsize=READ_AHEAD,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=(hdrs.USER_AGENT, hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.CONTENT_TYPE),
    )


def _reload(keys: Keys) -> None:
    """A file that cannot be used changes nothing: no client is locked out, none is let in, no stream is cut."""
    try:
        keys.reload()
    except HostError as error:
        log.error("%s %s The API keys read before stay in force.", error.message, error.hint)


async def serve(setup: Setup, doors: Doors, saved: GatewayState, receiver: Receiver | None) -> None:
    """Serve until SIGTERM or SIGINT, or until another gateway has taken over and all is answered that was open here.

    Without listening sockets among the doors it waits until `receiver` is given those of the gateway that it replaces.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    keys = setup.terms.keys
    loop.add_signal_handler(signal.SIGHUP, _reload, keys)
    async with (
        client_session(aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S, socket_factory=engine_socket)) as kept,
        client_session(aiohttp.TCPConnector(limit=0, force_close=True, socket_factory=engine_socket)) as fresh,
    ):
        gateway = Gateway(setup, doors, saved, Clients(kept, fresh, setup.secrets))
        await gateway.open()
        serving = asyncio.create_task(gateway.run(receiver))
        others = (keys.keep_use(), gateway.peers.watch(), gateway.window.keep(), gateway.queues.watch())
        beside = [asyncio.create_task(one) for one in others]
        await asyncio.wait((serving, asyncio.create_task(stop.wait())), return_when=asyncio.FIRST_COMPLETED)
        serving.cancel()
        await gateway.close()
        for task in beside:
            task.cancel()
        keys.write_use()
        gateway.window.write()
        # What ended it by itself is told.
        with contextlib.suppress(asyncio.CancelledError):
            await serving
    log.info("Stopped.")


def _addresses(fronts: tuple[socket.socket, ...]) -> tuple[Listener, ...]:
    return tuple(Listener(address(front)) for front in fronts)


class Gateway:
    """Both of its sides, and its life."""

    def __init__(self, setup: Setup, doors: Doors, saved: GatewayState, clients: Clients) -> None:
        self._setup = setup
        self._doors = doors
        self._board = Switchboard(saved.routes, setup.terms.limits)
        self._paused_until = saved.paused_until
        self._succession = Succession(self._board, doors, setup.state, saved.predecessor)
        # Read while they are open: a gateway that leaves has closed them, and still answers for itself.
        self._bound = _addresses(doors.fronts)
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._door = FrontDoor(self._board, clients, setup.terms, self._succession)
        self.peers = Peers(setup.terms.limits, self._board.turned_away)
        self.window = Window(setup.traffic, self._board.measures, setup.window_s)
        self.queues = Queues(self._board, lambda route: Behind(route, clients, self._board.table))
        self._front = web.ServerRunner(
            PublicServer(self._door, self.peers), shutdown_timeout=setup.grace + FAREWELL_S + 1
        )
        admin = Admin(self._succession, setup.terms.keys, self.status).application()
        self._admin = web.AppRunner(admin, access_log=None, shutdown_timeout=1)

    async def status(self) -> GatewayStatus:
        """What it says of itself."""
        return GatewayStatus(
            pid=os.getpid(),
            version=__version__,
            listeners=self._bound or self._setup.listeners,
            started_at=self._started_at,
            routes=self._board.table,
            traffic=await self._succession.traffic(),
            paused=self._board.holds.left,
            keys=self._setup.terms.keys.demanded,
            keys_mark=self._setup.terms.keys.mark,
            origins=self._setup.origins,
            limits=self._setup.limits,
            protocol=self._setup.protocol,
            phase=self._succession.phase,
        )

    async def open(self) -> None:
        """The admin's side; the clients' too, where it has their sockets."""
        now = time.time()
        for owner, until in self._paused_until.items():
            if until > now:
                self._board.pause(owner, until - now)
        await self._admin.setup()
        await self._front.setup()
        await web.SockSite(self._admin, self._doors.admin).start()
        if self._doors.fronts:
            await self._accept()

    async def run(self, receiver: Receiver | None) -> None:
        """Take over from another gateway, if there is one to replace; serve until another has taken over, and then
        until all is answered that is open here."""
        if receiver is not None:
            try:
                await self._take_over(receiver)
            finally:
                receiver.close()
        await self._succession.given.wait()
        if self._succession.new_origins is not None:
            # A browser keeps the connection on which its page was refused, or served.
            self._setup.terms.let_in(self._succession.new_origins)
        for site in tuple(self._front.sites):
            await site.stop()
        await self._answer_what_is_open()
        await self._succession.wait_for_predecessor()
        await self._succession.tell_successor()

    async def close(self) -> None:
        """End; what is in flight has the time that it was given."""
        cutting = asyncio.get_running_loop().call_later(self._setup.grace, self._board.stop)
        await self._front.cleanup()
        cutting.cancel()
        await self._admin.cleanup()
        with contextlib.suppress(FileNotFoundError):
            self._doors.admin_path.unlink()

    async def _accept(self) -> None:
        fronts = self._succession.fronts
        self._bound = _addresses(fronts)
        for front in fronts:
            watch_clients(front, self._setup.terms.limits.unread_s)
            await web.SockSite(self._front, front, backlog=BACKLOG).start()
        addresses = ", ".join(one.address for one in self._bound)
        log.info("Listening on %s with %d routes.", addresses, len(self._board.table))

    async def _take_over(self, receiver: Receiver) -> None:
        log.info("Waiting at %s to replace another gateway.", receiver.path)
        while self._succession.phase is Phase.WAITING:
            try:
                given, fronts = await receiver.receive()
                await self._succession.take(given, fronts)
                await self._accept()
                await receiver.acknowledge(Taken(os.fspath(self._doors.admin_path), self._setup.origins))
            except (OSError, ValueError, HostError) as error:
                log.error("Nothing was taken over: %s", error)
                for site in tuple(self._front.sites):
                    await site.stop()
                await self._succession.give_back()

    async def _answer_what_is_open(self) -> None:
        """Each connection once more, for which the door sees; those on which nothing comes are closed in the end."""
        loop = asyncio.get_running_loop()
        while (server := self._front.server) is not None and server.connections:
            idle = not self._board.traffic.in_flight
            if idle and loop.time() - self._door.last_at > LAST_IDLE_S:
                return
            await asyncio.sleep(AGAIN_S)
