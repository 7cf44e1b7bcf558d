"""Requests that are held while what answers them is changed: who waits, how many may, and until when.

A hold is one owner's, and expires by itself: whoever began it may have been killed. What waits is on no backend.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.core.gateway_status import HeldLoad


class HoldFullError(Exception):
    """As many requests are held as may be, or as large ones."""


@dataclass
class _Hold:
    """Requests wait for `over`; of each it is known when it came and how large its body is."""

    expires_at: float
    timer: asyncio.TimerHandle
    over: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: list[tuple[float, int]] = field(default_factory=list)

    @property
    def load(self) -> HeldLoad:
        """What waits at this moment."""
        if not self.waiting:
            return HeldLoad()
        oldest = min(arrived for arrived, _ in self.waiting)
        age = asyncio.get_running_loop().time() - oldest
        return HeldLoad(len(self.waiting), sum(size for _, size in self.waiting), round(age, 3))


class Holds:
    """All of them, by owner; together no more than `most` requests of `most_bytes` wait."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._holds: dict[str, _Hold] = {}

    def __contains__(self, owner: str) -> bool:
        return owner in self._holds

    def begin(self, owner: str, seconds: float) -> None:
        """Hold new requests for at most `seconds`; where they are held already, that moves the end."""
        loop = asyncio.get_running_loop()
        timer = loop.call_later(seconds, self.end, owner)
        hold = self._holds.get(owner)
        if hold is None:
            self._holds[owner] = _Hold(loop.time() + seconds, timer)
        else:
            hold.timer.cancel()
            hold.expires_at, hold.timer = loop.time() + seconds, timer

    def end(self, owner: str) -> None:
        """Let those that wait go on; nothing happens where none are held."""
        hold = self._holds.pop(owner, None)
        if hold is not None:
            hold.timer.cancel()
            hold.over.set()

    def end_all(self) -> None:
        """The same for every owner."""
        for owner in tuple(self._holds):
            self.end(owner)

    async def wait(self, owner: str, arrived: float, size: int) -> None:
        """Wait for the end of the owner's hold, with a body of so many bytes that came at `arrived` on the loop's
        clock. Raises HoldFullError."""
        held = [one for hold in self._holds.values() for one in hold.waiting]
        if len(held) >= self._most or sum(size for _, size in held) + size > self._most_bytes:
            raise HoldFullError
        hold, mine = self._holds[owner], (arrived, size)
        hold.waiting.append(mine)
        try:
            await hold.over.wait()
        finally:
            hold.waiting.remove(mine)

    @property
    def loads(self) -> Mapping[str, HeldLoad]:
        """What waits at this moment."""
        return {owner: hold.load for owner, hold in self._holds.items()}

    @property
    def left(self) -> dict[str, float]:
        """Seconds until the hold of each owner expires."""
        now = asyncio.get_running_loop().time()
        return {owner: round(max(0.0, hold.expires_at - now), 3) for owner, hold in self._holds.items()}
