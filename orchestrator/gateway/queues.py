"""How many requests wait within engines, looked at every few seconds while clients have any in flight there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus

from orchestrator.core.routes import Route
from orchestrator.gateway import upstreams
from orchestrator.gateway.dialects.base import Engine, NoAnswerError
from orchestrator.gateway.switchboard import Switchboard

EVERY_S = 2.0
# An engine that takes longer to say it is asked again the next time.
_PATIENCE_S = 1.0


class Queues:
    """Looks at the engines behind the board's routes."""

    def __init__(self, board: Switchboard, engine: Callable[[Route], Engine]) -> None:
        self._board = board
        self._engine = engine
        self._known: set[tuple[str, str]] = set()

    async def watch(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(EVERY_S)
            busy = self._board.busy
            here = {(route.owner, route.backend.instance) for route, _ in busy}
            for owner, instance in self._known - here:
                self._board.measures.queued(owner, instance, None)
            self._known = here
            await asyncio.gather(*(self._look(route, in_flight) for route, in_flight in busy))

    async def _look(self, route: Route, in_flight: int) -> None:
        path = upstreams.queue_path(route)
        found = await self._asked(route, path) if path else None
        if found is None and not path and route.at_once:
            # It does not tell; but no more than that are computed together.
            found = max(0, in_flight - route.at_once)
        self._board.measures.queued(route.owner, route.backend.instance, found)

    async def _asked(self, route: Route, path: str) -> int | None:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                status, body = await self._engine(route).ask("GET", path)
        except (NoAnswerError, TimeoutError):
            return None
        return upstreams.queue_in(body) if status == HTTPStatus.OK else None
