"""The gateway as it is wanted."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.gateway_status import Listener
from orchestrator.core.launch import LOCAL
from orchestrator.core.prerequisites import Prerequisite


@dataclass(frozen=True)
class GatewaySpec:
    """The addresses where it listens, where it is to run if it does not yet, and what that takes; `renew`: by this
    program, whatever runs. `origins` are whose pages it lets in besides its own. `takes_key`: an API key was given that
    clients are to show from now on."""

    listeners: tuple[Listener, ...]
    target: str = LOCAL
    prerequisites: tuple[Prerequisite, ...] = ()
    renew: bool = False
    origins: tuple[str, ...] = ()
    takes_key: bool = False

    @property
    def listen(self) -> str:
        """Its first address, which clients are told."""
        return self.listeners[0].address
