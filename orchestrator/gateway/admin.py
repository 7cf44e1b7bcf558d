"""The admin side: its own HTTP application on a unix socket that only this user can open."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from pathlib import Path

import orjson
from aiohttp import web

from orchestrator.core.routes import GatewayStatus, Route, RouteTable
from orchestrator.drivers import files
from orchestrator.errors import HostError, OrchError, PlanRefused
from orchestrator.gateway.switchboard import Switchboard

log = logging.getLogger("orchestrator.gateway")

LONGEST_PAUSE_S = 3600.0
LONGEST_DRAIN_S = 24 * 3600.0


def answer(value: object, status: int = 200) -> web.Response:
    """A JSON answer."""
    return web.Response(status=status, body=orjson.dumps(value), content_type="application/json")


def _failure(status: int, message: str, hint: str = "") -> web.Response:
    return answer({"error": {"message": message, "hint": hint}}, status)


def load_table(path: Path) -> tuple[RouteTable, str]:
    """The saved table and, when the file was damaged, a line about it.

    A damaged file is moved aside and the table is empty: a gateway that answers 404 can be told its routes, a
    dead one cannot. Raises HostError when the file cannot be read at all.
    """
    try:
        saved = files.read_json(path)
        return (RouteTable() if saved is None else RouteTable.from_json(saved)), ""
    except ValueError as error:
        aside = files.move_aside(path)
        return RouteTable(), f"{path} is damaged ({error}); moved to {aside}. Starting without routes."


async def _body(request: web.Request) -> object:
    try:
        value: object = orjson.loads(await request.read())
    except orjson.JSONDecodeError as error:
        raise ValueError(f"the body is not JSON: {error}") from error
    return value


def _field(document: object, key: str) -> object:
    if not isinstance(document, dict) or key not in document:
        raise ValueError(f"the field {key!r} is missing")
    value: object = document[key]
    return value


def _name(document: object, key: str) -> str:
    value = _field(document, key)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key}: a non-empty string is needed, not {value!r}")
    return value


def _seconds(document: object, key: str, least: float, most: float) -> float:
    value = _field(document, key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{key}: a number of seconds is needed, not {value!r}")
    if not least <= value <= most:
        raise ValueError(f"{key}: {value} is not between {least:g} and {most:g} seconds")
    return float(value)


class Admin:
    """The verbs. A change of the table is on disk before it is in force and before it is acknowledged."""

    def __init__(self, board: Switchboard, state: Path, status: Callable[[], GatewayStatus]) -> None:
        self._board = board
        self._state = state
        self._status = status
        self._changing = asyncio.Lock()

    def application(self) -> web.Application:
        """The routes of the admin socket."""
        app = web.Application(client_max_size=16 << 20, middlewares=[_errors_as_json])
        app.add_routes(
            [
                web.get("/status", self.status),
                web.put("/routes/{owner}", self.put_routes),
                web.delete("/routes/{owner}", self.delete_routes),
                web.post("/drain", self.drain),
                web.post("/pause", self.pause),
                web.post("/resume", self.resume),
            ]
        )
        return app

    async def status(self, _: web.Request) -> web.Response:
        """GET /status."""
        return answer(self._status().to_json())

    async def put_routes(self, request: web.Request) -> web.Response:
        """PUT /routes/OWNER with all of the owner's routes; 409 when a name is another owner's."""
        value = await _body(request)
        if not isinstance(value, list):
            raise ValueError("a JSON list of routes is needed")
        await self._replace(request.match_info["owner"], [Route.from_json(item) for item in value])
        return answer({})

    async def delete_routes(self, request: web.Request) -> web.Response:
        """DELETE /routes/OWNER; no error when there are none."""
        await self._replace(request.match_info["owner"], [])
        return answer({})

    async def _replace(self, owner: str, routes: list[Route]) -> None:
        async with self._changing:
            table = self._board.table.replaced(owner, routes)
            # In a thread: an fsync may take long, and streams must not wait for it.
            await asyncio.to_thread(files.write_json, self._state, table.to_json(), 0o600)
            self._board.table = table
            backends = sorted({route.backend for route in routes})
            log.info("%s: %s", owner, f"routes to {', '.join(backends)}" if backends else "no routes any more")

    async def drain(self, request: web.Request) -> web.Response:
        """POST /drain {backend, timeout_s, cancel}: {left} when idle or at the deadline."""
        document = await _body(request)
        cancel = _field(document, "cancel")
        if not isinstance(cancel, bool):
            raise ValueError(f"cancel: true or false is needed, not {cancel!r}")
        seconds = _seconds(document, "timeout_s", 0, LONGEST_DRAIN_S)
        return answer({"left": await self._board.drain(_name(document, "backend"), seconds, cancel)})

    async def pause(self, request: web.Request) -> web.Response:
        """POST /pause {owner, expires_s}."""
        document = await _body(request)
        self._board.pause(_name(document, "owner"), _seconds(document, "expires_s", 0.001, LONGEST_PAUSE_S))
        return answer({})

    async def resume(self, request: web.Request) -> web.Response:
        """POST /resume {owner}; no error when it is not paused."""
        self._board.resume(_name(await _body(request), "owner"))
        return answer({})


@web.middleware
async def _errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except PlanRefused as error:
        return _failure(409, error.message, error.hint)
    except HostError as error:
        return _failure(507, error.message, error.hint)
    except OrchError as error:
        return _failure(500, error.message, error.hint)
    except ValueError as error:
        return _failure(400, str(error))
    except web.HTTPException as error:
        return _failure(error.status, error.reason)
