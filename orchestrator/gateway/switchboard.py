"""Who answers what: the current table, the claims on backends, the holds, the turns.

All of it runs in one thread on one event loop, and choosing a route and counting the request in happen without an
`await` between them: that is the lock. A request is never chosen but not counted, so a drain misses none. Those that
wait, for the end of a hold or for a turn, are on no backend: when they go on, the table of that moment says where.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType

from orchestrator.core.gateway_status import BackendLoad, Counts, Traffic
from orchestrator.core.routes import Route, RouteTable
from orchestrator.gateway import upstreams
from orchestrator.gateway.holds import Holds
from orchestrator.gateway.limits import Limits
from orchestrator.gateway.measures import Measures
from orchestrator.gateway.turns import Place, Turns, WaitingRoom

# How long a drain waits for the requests that it has cut.
CUT_S = 3.0


class UnknownNameError(Exception):
    """No route has this public name."""


class StoppingError(Exception):
    """The gateway is going down and takes nothing on."""


class CrowdedError(Exception):
    """Too many requests wait for the same turn."""


@dataclass
class Tally:
    """Counts in the making."""

    requests: int = 0
    errors: int = 0
    streams: int = 0

    def frozen(self) -> Counts:
        """The counts so far."""
        return Counts(self.requests, self.errors, self.streams)


class Backend:
    """One engine instance as the gateway knows it: what is in flight there, and what was. In its `room` requests wait
    for their turn; it has one since it answers names that it cannot compute together."""

    def __init__(self) -> None:
        self.claims: set[Claim] = set()
        self.open_streams = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.by_route: dict[str, Tally] = {}
        self.room: WaitingRoom | None = None

    def load(self) -> BackendLoad:
        """The figures of this moment."""
        by_route = {name: tally.frozen() for name, tally in self.by_route.items()}
        in_flight = Counter(claim.route.name for claim in self.claims)
        return BackendLoad(len(self.claims), self.open_streams, by_route, in_flight)


@dataclass(frozen=True)
class Asker:
    """Of a request what decides when it is let in: when it came, on the loop's clock, how many bytes its body has, and
    whether it is `own`: orch itself asks, which looks what is there before anybody else meets it."""

    arrived: float
    size: int = 0
    own: bool = False


class Claim:
    """One try of one request on one backend, counted in from the moment of choice until `with` ends; `place` is what it
    has of a turn there."""

    def __init__(self, route: Route, backend: Backend, place: Place | None = None) -> None:
        self.route = route
        self.place = place
        self.tally = backend.by_route.setdefault(route.name, Tally())
        self._backend = backend
        self._streaming = False
        self._scope: asyncio.Timeout | None = None
        self._cut = False
        self.tally.requests += 1
        backend.claims.add(self)
        backend.idle.clear()

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._backend.claims.discard(self)
        self._backend.open_streams -= self._streaming
        if not self._backend.claims:
            self._backend.idle.set()
        if self.place is not None and self._backend.room is not None:
            self._backend.room.leave(self.place)

    def answered(self) -> None:
        """The engine has begun to answer as it should."""
        if self.place is not None and self._backend.room is not None:
            self._backend.room.answered()

    def streaming(self) -> None:
        """Count this claim as an open stream until it ends."""
        self._streaming = True
        self._backend.open_streams += 1
        self.tally.streams += 1

    @contextlib.asynccontextmanager
    async def cuttable(self) -> AsyncIterator[None]:
        """The block in which the backend is talked to; it ends in TimeoutError when the claim is cut."""
        async with asyncio.timeout(0 if self._cut else None) as self._scope:
            try:
                yield
            finally:
                self._scope = None

    def cut(self) -> None:
        """End this try now."""
        self._cut = True
        if self._scope is not None and not self._scope.expired():
            self._scope.reschedule(asyncio.get_running_loop().time())


class Switchboard:
    """The table that requests are claimed from, and the levers that change it."""

    def __init__(self, table: RouteTable, limits: Limits) -> None:
        self.table = table
        self.totals = Tally()
        self.measures = Measures()
        self.holds = Holds(limits.held_requests, limits.held_mib << 20)
        self._waiting: Counter[str] = Counter()
        # Clients that took too much, or too long, by what was done about it.
        self.turned_away: Counter[str] = Counter()
        # A name per generation that was ever deployed: a drained backend's counts stay readable.
        self._backends: dict[str, Backend] = {}
        # The names that have to wait for turns: where, and as what.
        self._turns: dict[str, tuple[WaitingRoom, str]] = {}
        self._stopping = False
        self._share()

    def go_by(self, table: RouteTable) -> None:
        """Another table. A backend of an owner that had no routes is counted from nothing, whatever its name: what was
        called so has been taken down, and generations begin anew."""
        owners = {route.owner for route in self.table}
        for route in table:
            known = self._backends.get(route.backend.instance)
            if route.owner not in owners and known is not None and not known.claims:
                del self._backends[route.backend.instance]
        self.table = table
        self._share()
        self._look_again()

    async def admit(self, name: str, asker: Asker, again: bool = False) -> Claim:
        """Claim the current route of `name`, waiting while its owner's requests are held, and for its turn. `again`: it
        was claimed before, and its engine was lost.

        Raises UnknownNameError, StoppingError, CrowdedError and HoldFullError.
        """
        waited = again
        while True:
            if self._stopping:
                raise StoppingError
            route = self.table.find(name)
            if route is None:
                raise UnknownNameError(name)
            if route.owner in self.holds and not asker.own:
                waited = True
                self.measures.waits(route, 1)
                try:
                    await self.holds.wait(route.owner, asker.arrived, asker.size)
                finally:
                    self.measures.waits(route, -1)
                continue
            backend, turn = self._backend(route.backend.instance), self._turns.get(name)
            if turn is None:
                return Claim(route, backend)
            room, adapters = turn
            if not waited and room.turns.crowded(adapters):
                raise CrowdedError
            place = Place(adapters, asker.arrived, again)
            room.come(place)
            if place.inside:
                return Claim(route, backend, place)
            waited = True
            self._wait(route, asker, 1)
            try:
                let_in = await room.wait(place)
            finally:
                self._wait(route, asker, -1)
            if let_in:
                if self._leads_still(route, asker):
                    return Claim(route, backend, place)
                room.leave(place)

    def pause(self, owner: str, seconds: float) -> None:
        """Hold new requests of `owner` for at most `seconds`, those that wait for a turn too."""
        self.holds.begin(owner, seconds)
        self._look_again()

    async def drain(self, name: str, seconds: float, cancel: bool) -> int:
        """Wait until nothing is in flight on backend `name` and return 0, or what is left after `seconds`.

        With `cancel` those left are cut and get a moment to end; the answer still is how many they were.
        """
        backend = self._backend(name)
        await _settled(backend, seconds)
        left = tuple(backend.claims)
        if cancel and left:
            for claim in left:
                claim.cut()
            await _settled(backend, CUT_S)
        return len(left)

    def stop(self) -> None:
        """Take nothing on any more, let nobody wait, and cut what is in flight."""
        self._stopping = True
        self.holds.end_all()
        self._look_again()
        for backend in self._backends.values():
            for claim in tuple(backend.claims):
                claim.cut()

    @property
    def traffic(self) -> Traffic:
        """The figures of this moment, of every backend that was ever claimed or is in the table."""
        for route in self.table:
            self._backend(route.backend.instance)
        loads = {name: backend.load() for name, backend in self._backends.items()}
        return Traffic(loads, self.totals.frozen(), self.holds.loads, +self._waiting, dict(self.turned_away))

    def _wait(self, route: Route, asker: Asker, by: int) -> None:
        self._waiting[route.name] += by
        if not asker.own:
            self.measures.waits(route, by)

    @property
    def busy(self) -> list[tuple[Route, int]]:
        """For each backend on which something is in flight one of the routes that lead there, and how much that is."""
        return [
            (next(iter(backend.claims)).route, len(backend.claims))
            for backend in self._backends.values()
            if backend.claims
        ]

    def _leads_still(self, route: Route, asker: Asker) -> bool:
        """Whether a request that has waited may go where it was to go."""
        held = route.owner in self.holds and not asker.own
        return not self._stopping and not held and self.table.find(route.name) is route

    def _share(self) -> None:
        """Have names take turns where one engine answers several that it cannot compute together."""
        self._turns = {}
        routes: dict[str, list[tuple[Route, str]]] = {}
        for route in self.table:
            adapters = upstreams.adapters_of(route)
            if adapters is not None:
                routes.setdefault(route.backend.instance, []).append((route, adapters))
        for instance, shared in routes.items():
            if len({adapters for _, adapters in shared}) > 1:
                room = self._room(self._backend(instance), shared[0][0])
                self._turns |= {route.name: (room, adapters) for route, adapters in shared}

    def _room(self, backend: Backend, route: Route) -> WaitingRoom:
        if backend.room is None:
            backend.room = WaitingRoom(Turns(upstreams.pace_of(route)))
        backend.room.turns.at_once = route.at_once
        for claim in backend.claims:
            if claim.place is None and (adapters := upstreams.adapters_of(claim.route)) is not None:
                claim.place = Place(adapters, 0.0)
                backend.room.turns.adopt(claim.place)
        return backend.room

    def _look_again(self) -> None:
        """Nobody waits for a turn on an engine that is not asked any more, or not now."""
        for backend in self._backends.values():
            if backend.room is not None:
                backend.room.dismiss()

    def _backend(self, name: str) -> Backend:
        backend = self._backends.get(name)
        if backend is None:
            backend = self._backends[name] = Backend()
        return backend


async def _settled(backend: Backend, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await backend.idle.wait()
