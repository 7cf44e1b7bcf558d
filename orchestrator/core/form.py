"""How a new generation takes the place of what serves."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Form(StrEnum):
    """`overlap`: the new one is started beside the old one, which goes when nobody uses it any more. `handover`: the
    old one ends before the new one is started, and requests wait meanwhile."""

    OVERLAP = "overlap"
    HANDOVER = "handover"


@dataclass(frozen=True)
class LongestHold:
    """No request for the names of `owner` may wait for more than `seconds`, until it has its first token from
    `instance`."""

    owner: str
    seconds: float
    instance: str
