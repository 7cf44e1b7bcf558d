"""How many requests engines answer at once: of all clients, and of each API key."""

from __future__ import annotations

from collections import Counter

from orchestrator.gateway import refusals
from orchestrator.gateway.limits import Limits


class Places:
    """Who has one. `whose` is the name of an API key, "" where none was shown."""

    def __init__(self, limits: Limits) -> None:
        self._most, self._most_per_key = limits.requests, limits.requests_per_key
        self._taken = 0
        self._by_key: Counter[str] = Counter()

    def take(self, whose: str) -> None:
        """Raises Refusal where there is none left."""
        if self._taken >= self._most:
            raise refusals.too_many(self._most)
        if whose and self._most_per_key:
            if self._by_key[whose] >= self._most_per_key:
                raise refusals.too_many_of_key(self._most_per_key)
            self._by_key[whose] += 1
        self._taken += 1

    def give_back(self, whose: str) -> None:
        """The request is answered."""
        self._taken -= 1
        if whose and self._most_per_key:
            self._by_key[whose] -= 1
            if not self._by_key[whose]:
                del self._by_key[whose]
