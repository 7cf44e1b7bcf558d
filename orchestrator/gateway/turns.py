"""Turns on an engine that computes one set of adapters at a time: names that share it do not starve each other.

Requests wait by their adapters, first come first served. While nobody else waits, those that have the turn keep it.
Else none of them is let in once the turn has had its length; what is inside ends, and the next turn is that of the
adapters that have waited longest, counted from the end of their last turn. No more are inside than the engine computes
at once: what it queues by itself is past all order.

So a turn lets in as many as are computed at once, or all there are, and is over, where others wait, after its length
and the longest answer. Of N sets of adapters, a request with K before it under its own, of which P are computed at
once, begins after no more than N * (K // P + 1) such turns (`tests/gateway/test_turns.py`).
"""

from __future__ import annotations

import asyncio
import statistics
from bisect import insort
from collections import deque
from dataclasses import dataclass, field

# Requests that may wait under the same adapters: Ollama's own queue is half as long.
MOST_WAITING = 1024
# Of how many changes it is kept what they took: the middle one is neither a refusal nor a long answer in one piece.
_CHANGES = 5


@dataclass(frozen=True)
class Pace:
    """How long a turn is while others wait, in seconds: `changes` times what going from one set of adapters to another
    costs, within `least_s` and `most_s`. That is `change_s` until the engine has shown it. For `lingers` times the same
    an idle turn waits for another request, which its client may be about to send."""

    least_s: float
    most_s: float
    changes: float = 0.0
    change_s: float = 0.0
    lingers: float = 0.0


@dataclass(eq=False, slots=True)
class Place:
    """A request in the queue of its adapters, then `inside`. `arrived` is when it came, on the caller's clock; `again`:
    it was inside before, and its engine was lost."""

    adapters: str
    arrived: float
    again: bool = False
    inside: bool = False


@dataclass
class _Queue:
    """Those that wait under the same adapters, the oldest first, and `since` when these wait for a turn."""

    since: float
    places: list[Place] = field(default_factory=list)


class Turns:
    """Who is inside and who waits: it decides, and is told the time by whoever asks. `at_once` requests are computed
    together (0: nobody knows how many)."""

    def __init__(self, pace: Pace, at_once: int = 0) -> None:
        self.pace = pace
        self.at_once = at_once
        self.holder: str | None = None
        self.inside = 0
        self._queues: dict[str | None, _Queue] = {}
        self._began = 0.0
        self._idle_since = 0.0
        self._changing = False
        self._costs: deque[float] = deque(maxlen=_CHANGES)

    @property
    def change_s(self) -> float:
        """What a change costs."""
        return statistics.median_low(self._costs) if self._costs else self.pace.change_s

    @property
    def length_s(self) -> float:
        """After how long a turn ends for which others wait."""
        return min(self.pace.most_s, max(self.pace.least_s, self.pace.changes * self.change_s))

    @property
    def due(self) -> float | None:
        """When somebody may be let in although nobody has come or gone since `let_in`."""
        return self._lingers_until if self._queues and not self.inside else None

    def crowded(self, adapters: str) -> bool:
        """Whether too many wait under these."""
        queue = self._queues.get(adapters)
        return queue is not None and len(queue.places) >= MOST_WAITING

    def come(self, place: Place) -> None:
        """One more waits."""
        queue = self._queues.setdefault(place.adapters, _Queue(place.arrived))
        insort(queue.places, place, key=lambda other: other.arrived)

    def adopt(self, place: Place) -> None:
        """One is inside since before there were turns here."""
        if self.holder is None:
            self.holder = place.adapters
        if self.holder == place.adapters:
            place.inside = True
            self.inside += 1

    def go(self, place: Place, now: float) -> None:
        """One that is inside, or waits, leaves; nothing happens when it has left."""
        if place.inside:
            place.inside = False
            self.inside -= 1
            self._idle_since = now
            return
        queue = self._queues.get(place.adapters)
        if queue is not None and place in queue.places:
            queue.places.remove(place)
            self._forget_empty(place.adapters)

    def let_in(self, now: float) -> list[Place]:
        """Those that are inside from now on."""
        entered: list[Place] = []
        while (queue := self._next(now)) is not None:
            place = queue.places.pop(0)
            place.inside = True
            self.inside += 1
            self._forget_empty(place.adapters)
            entered.append(place)
        return entered

    def answered(self, now: float) -> None:
        """One that is inside has the beginning of its answer."""
        if self._changing:
            self._changing = False
            self._costs.append(now - self._began)

    @property
    def _lingers_until(self) -> float:
        lingers_s = self.pace.lingers * self.change_s
        return min(self._idle_since + lingers_s, self._began + self.length_s)

    def _next(self, now: float) -> _Queue | None:
        """The queue whose first is to be let in."""
        own = self._queues.get(self.holder)
        contended = len(self._queues) > (own is not None)
        room = not self.at_once or self.inside < self.at_once
        # What is tried again was let in before, and would cost the others a turn more.
        if own and room and (not contended or own.places[0].again or now < self._began + self.length_s):
            return own
        if self.inside or not contended or (own is None and now < self._lingers_until):
            return None
        if own is not None:
            own.since = now
        self._changing = self.holder is not None
        self.holder = min((one for one in self._queues if one != self.holder), key=lambda one: self._queues[one].since)
        self._began = now
        return self._queues[self.holder]

    def _forget_empty(self, adapters: str) -> None:
        if not self._queues[adapters].places:
            del self._queues[adapters]


class WaitingRoom:
    """The same on the running event loop."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self._waiting: dict[Place, asyncio.Future[bool]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def come(self, place: Place) -> None:
        """Let it in, where it need not wait."""
        self.turns.come(place)
        self._let_in()

    async def wait(self, place: Place) -> bool:
        """Wait until it is inside; False: it has left, and its request has to look again where to go. It leaves, too,
        when this is cancelled."""
        told: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting[place] = told
        try:
            return await told
        except asyncio.CancelledError:
            self.leave(place)
            raise
        finally:
            del self._waiting[place]

    def leave(self, place: Place) -> None:
        """Its answer has ended, or nobody waits for it."""
        self.turns.go(place, asyncio.get_running_loop().time())
        self._let_in()

    def answered(self) -> None:
        """See Turns."""
        self.turns.answered(asyncio.get_running_loop().time())

    def dismiss(self) -> None:
        """All that wait look again where to go."""
        for place, told in self._waiting.items():
            if not told.done():
                self.turns.go(place, 0.0)
                told.set_result(False)

    def _let_in(self) -> None:
        loop = asyncio.get_running_loop()
        for place in self.turns.let_in(loop.time()):
            told = self._waiting.get(place)
            if told is not None and not told.done():
                told.set_result(True)
        if self._timer is not None:
            self._timer.cancel()
        due = self.turns.due
        self._timer = loop.call_at(due, self._let_in) if due is not None else None
