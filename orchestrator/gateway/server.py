"""The process: both doors open, until a signal; then what is in flight may end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
from aiohttp import hdrs, web

from orchestrator import __version__
from orchestrator.core.routes import GatewayStatus, RouteTable
from orchestrator.errors import HostError
from orchestrator.gateway.admin import Admin
from orchestrator.gateway.front import FrontDoor
from orchestrator.gateway.keys import CREDENTIALS, Keys
from orchestrator.gateway.relay import FAREWELL_S, Clients
from orchestrator.gateway.sockets import address
from orchestrator.gateway.switchboard import Switchboard

log = logging.getLogger("orchestrator.gateway")

# Less than the 5 s after which uvicorn and llama.cpp's server close an idle connection, so that a request is
# hardly ever sent into one that is being closed.
IDLE_S = 3.0


@dataclass(frozen=True)
class Doors:
    """The listening sockets and the path of the second."""

    front: socket.socket
    admin: socket.socket
    admin_path: Path


def client_session(connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
    """A client for the engines: nothing decoded, nothing added, nothing remembered, no end but theirs."""
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=(hdrs.USER_AGENT, hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.CONTENT_TYPE),
    )


def _reload(keys: Keys) -> None:
    """A file that cannot be used changes nothing: no client is locked out, none is let in, no stream is cut."""
    try:
        keys.reload()
    except HostError as error:
        log.error("%s %s The API keys read before stay in force.", error.message, error.hint)
    else:
        log.info("%s was read again; API keys: %d.", keys.path, len(keys))


async def serve(doors: Doors, state: Path, table: RouteTable, grace: float, keys: Keys | None) -> None:
    """Serve until SIGTERM or SIGINT, then for at most `grace` seconds more what is already in flight."""
    board = Switchboard(table)
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    listen = address(doors.front)

    def status() -> GatewayStatus:
        return GatewayStatus(
            pid=os.getpid(),
            version=__version__,
            listen=listen,
            started_at=started_at,
            routes=board.table,
            backends={name: backend.load() for name, backend in board.backends.items()},
            totals=board.totals.frozen(),
            paused=board.paused,
            held=board.held,
            keys=keys is not None,
        )

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if keys is not None:
        loop.add_signal_handler(signal.SIGHUP, _reload, keys)
    async with (
        client_session(aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S)) as kept,
        client_session(aiohttp.TCPConnector(limit=0, force_close=True)) as fresh,
    ):
        # handler_cancellation: a client that goes away ends its request, held or in flight, at once.
        front = web.AppRunner(
            FrontDoor(board, Clients(kept, fresh, frozenset() if keys is None else CREDENTIALS), keys).application(),
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=grace + FAREWELL_S + 1,
        )
        admin = web.AppRunner(Admin(board, state, status).application(), access_log=None, shutdown_timeout=1)
        await admin.setup()
        await front.setup()
        await web.SockSite(admin, doors.admin).start()
        await web.SockSite(front, doors.front, backlog=1024).start()
        log.info("Listening on %s with %d routes.", listen, len(table))
        await stop.wait()
        cutting = loop.call_later(grace, board.stop)
        await front.cleanup()
        cutting.cancel()
        await admin.cleanup()
    with contextlib.suppress(FileNotFoundError):
        doors.admin_path.unlink()
    log.info("Stopped.")
