"""The admin side: its own HTTP application on a unix socket that only this user can open."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import quote

import orjson
from aiohttp import web

from orchestrator.core import json_fields as fields
from orchestrator.core.gateway_status import GatewayStatus, Traffic
from orchestrator.core.routes import Route
from orchestrator.errors import HostError, OrchError, PlanRefused
from orchestrator.gateway.keys import Keys
from orchestrator.gateway.succession import Succession

log = logging.getLogger("orchestrator.gateway")

LONGEST_PAUSE_S = 3600.0
LONGEST_DRAIN_S = 24 * 3600.0


def answer(value: object, status: int = 200) -> web.Response:
    """A JSON answer."""
    return web.Response(status=status, body=orjson.dumps(value), content_type="application/json")


def _failure(status: int, message: str, hint: str = "") -> web.Response:
    return answer({"error": {"message": message, "hint": hint}}, status)


async def _body(request: web.Request) -> object:
    try:
        value: object = orjson.loads(await request.read())
    except orjson.JSONDecodeError as error:
        raise ValueError(f"the body is not JSON: {error}") from error
    return value


def _name(document: object, key: str) -> str:
    return fields.text(fields.mapping(document, "the body"), key)


def _seconds(document: object, key: str, least: float, most: float) -> float:
    value = fields.mapping(document, "the body").get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{key}: a number of seconds is needed, not {value!r}")
    if not least <= value <= most:
        raise ValueError(f"{key}: {value} is not between {least:g} and {most:g} seconds")
    return float(value)


class Admin:
    """The verbs. A change of the table is on disk, and with the gateway that was replaced, before it is in force and
    before it is acknowledged."""

    def __init__(self, succession: Succession, keys: Keys, status: Callable[[], Awaitable[GatewayStatus]]) -> None:
        self._succession = succession
        self._board = succession.board
        self._keys = keys
        self._status = status

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
                web.post("/keys/read", self.read_keys),
                web.get("/keys/used", self.keys_used),
                web.post("/credential", self.credential),
                web.post("/hand-over", self.hand_over),
                web.post("/left", self.left),
            ]
        )
        return app

    async def status(self, _: web.Request) -> web.Response:
        """GET /status."""
        return answer((await self._status()).to_json())

    async def put_routes(self, request: web.Request) -> web.Response:
        """PUT /routes/OWNER with all of the owner's routes; 409 when a name is another owner's."""
        value = fields.listed(await _body(request), "routes")
        await self._replace(request.match_info["owner"], [Route.from_json(item) for item in value])
        return answer({})

    async def delete_routes(self, request: web.Request) -> web.Response:
        """DELETE /routes/OWNER; no error when there are none."""
        await self._replace(request.match_info["owner"], [])
        return answer({})

    async def _replace(self, owner: str, routes: list[Route]) -> None:
        async with self._succession.changing() as tell:
            table = self._board.table.replaced(owner, routes)
            await tell("PUT", f"/routes/{quote(owner, safe='')}", [route.to_json() for route in routes])
            await self._succession.save(table)
            self._board.go_by(table)
        backends = sorted({route.backend.instance for route in routes})
        log.info("%s: %s", owner, f"routes to {', '.join(backends)}" if backends else "no routes any more")

    async def drain(self, request: web.Request) -> web.Response:
        """POST /drain {backend, timeout_s, cancel}: {left} when idle or at the deadline."""
        document = await _body(request)
        cancel = fields.truth(fields.mapping(document, "the body"), "cancel")
        seconds = _seconds(document, "timeout_s", 0, LONGEST_DRAIN_S)
        return answer({"left": await self._succession.drain(_name(document, "backend"), seconds, cancel)})

    async def pause(self, request: web.Request) -> web.Response:
        """POST /pause {owner, expires_s}."""
        document = await _body(request)
        owner, seconds = _name(document, "owner"), _seconds(document, "expires_s", 0.001, LONGEST_PAUSE_S)
        async with self._succession.changing() as tell:
            await tell("POST", "/pause", document)
            self._board.pause(owner, seconds)
            await self._succession.save(self._board.table)
        return answer({})

    async def resume(self, request: web.Request) -> web.Response:
        """POST /resume {owner}; no error when it is not paused."""
        document = await _body(request)
        owner = _name(document, "owner")
        async with self._succession.changing() as tell:
            await tell("POST", "/resume", document)
            self._board.holds.end(owner)
            await self._succession.save(self._board.table)
        return answer({})

    async def read_keys(self, _: web.Request) -> web.Response:
        """POST /keys/read: read the key file again; {mark} of what is in force then. 507 when the file cannot be used:
        then nothing has changed."""
        async with self._succession.changing() as tell:
            self._keys.reload()
            # One of an earlier protocol has a file of its own; it answers each open connection once more.
            with contextlib.suppress(HostError):
                await tell("POST", "/keys/read", {})
        return answer({"mark": self._keys.mark})

    async def keys_used(self, _: web.Request) -> web.Response:
        """GET /keys/used: when each key was used last, by its digest; the file is at most a minute older."""
        return answer(self._keys.used)

    async def credential(self, _: web.Request) -> web.Response:
        """POST /credential: {credential}, which opens the front door for a while. Whoever can reach this socket is the
        gateway's own user."""
        return answer({"credential": self._keys.issue()})

    async def hand_over(self, request: web.Request) -> web.Response:
        """POST /hand-over {to}: give the listening sockets to the gateway that waits at that unix socket."""
        await self._succession.hand_over(Path(_name(await _body(request), "to")))
        return answer({})

    async def left(self, request: web.Request) -> web.Response:
        """POST /left with its traffic, from the gateway that was replaced: it is about to end."""
        await self._succession.has_left(Traffic.from_json(await _body(request)))
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
