"""The gateway as it is wanted."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.gateway_status import Listener
from orchestrator.core.keys import NO_KEYS, KeyRing
from orchestrator.core.launch import LOCAL
from orchestrator.core.prerequisites import Prerequisite


@dataclass(frozen=True)
class KeyChange:
    """The API keys that are kept, those that are to be, and what that means in words. `written`: they are kept as
    digests; `old_file`: they lie there as plain text, or still do."""

    present: KeyRing = NO_KEYS
    wanted: KeyRing = NO_KEYS
    why: str = ""
    written: bool = False
    old_file: bool = False


@dataclass(frozen=True)
class GatewaySpec:
    """The addresses where it listens, where it is to run if it does not yet, and what that takes; `renew`: by this
    program, whatever runs. `origins` are whose pages it lets in besides its own, `limits` what its clients may
    take where that is not what it is without."""

    listeners: tuple[Listener, ...]
    target: str = LOCAL
    prerequisites: tuple[Prerequisite, ...] = ()
    renew: bool = False
    origins: tuple[str, ...] = ()
    keys: KeyChange = KeyChange()
    limits: tuple[str, ...] = ()

    @property
    def listen(self) -> str:
        """Its first address, which clients are told."""
        return self.listeners[0].address
