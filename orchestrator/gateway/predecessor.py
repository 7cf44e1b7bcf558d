"""The gateway that has handed over to this one, and answers what is open with it: told of every change, counted in."""

from __future__ import annotations

import contextlib
from http import HTTPStatus

import aiohttp
import orjson

from orchestrator.core.gateway_status import GatewayStatus, Traffic
from orchestrator.errors import HostError

ANSWER_S = 3.0


class Predecessor:
    """It behind its admin socket; `last` is its traffic as it was told last."""

    def __init__(self, socket: str) -> None:
        self.socket = socket
        self.last = Traffic()

    async def tell(self, verb: str, path: str, body: object = None, wait_s: float = 0.0) -> object:
        """What it answers; None when it is gone. Raises HostError when it does not answer, or refuses."""
        try:
            async with self._session(wait_s) as session:
                data = None if body is None else orjson.dumps(body)
                async with session.request(verb, f"http://gateway{path}", data=data) as reply:
                    value: object = orjson.loads(await reply.read())
        except TimeoutError as error:
            raise HostError(
                "The gateway that was replaced does not answer.", hint="orch logs gateway; orch down --all ends both."
            ) from error
        except (aiohttp.ClientError, OSError):
            return None
        if reply.status >= HTTPStatus.BAD_REQUEST:
            raise HostError(f"The gateway that was replaced refuses {verb} {path}.", detail=repr(value)[:500])
        return value

    async def traffic(self) -> Traffic | None:
        """What goes through it; None when it is gone. As it was told last, where it does not answer in time."""
        with contextlib.suppress(HostError, ValueError):
            value = await self.tell("GET", "/status")
            if value is None:
                return None
            self.last = GatewayStatus.from_json(value).traffic
        return self.last

    def _session(self, wait_s: float) -> aiohttp.ClientSession:
        connector = aiohttp.UnixConnector(self.socket)
        return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=wait_s + ANSWER_S))
