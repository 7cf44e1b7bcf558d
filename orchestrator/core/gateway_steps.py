"""What orch does to the gateway, and to the keys that its clients show, as values: see steps.py."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.gateway_status import GATEWAY, Listener
from orchestrator.core.keys import KeyRing
from orchestrator.core.steps import Duration, Step

# By then a gateway that was started answers, or something is wrong.
GATEWAY_START_S = 30.0


def _open_to(origins: tuple[str, ...]) -> str:
    return f", open to pages of {', '.join(origins)}" if origins else ""


@dataclass(frozen=True)
class EnsureGateway(Step):
    """Have the gateway run, supervised, at its addresses; it answers a little later."""

    target: str
    listeners: tuple[Listener, ...]
    instance: str = GATEWAY
    origins: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()

    @property
    def what(self) -> str:
        addresses = ", ".join(listener.address for listener in self.listeners)
        return f"start the gateway at {addresses}{_open_to(self.origins)}"


@dataclass(frozen=True)
class AwaitGateway(Step):
    """Wait until a gateway that was started answers, or is dead: time that an engine, started meanwhile, loads in."""

    target: str
    listeners: tuple[Listener, ...]
    instance: str = GATEWAY

    @property
    def what(self) -> str:
        return "wait for the gateway to answer"

    @property
    def limit_s(self) -> float:
        return GATEWAY_START_S


@dataclass(frozen=True)
class WriteKeys(Step):
    """Keep these API keys, of which a plan has the digests only; `why` are its words. A gateway that is started reads
    them."""

    keys: KeyRing
    why: str

    @property
    def what(self) -> str:
        return self.why


@dataclass(frozen=True)
class ReadKeys(Step):
    """Have the gateway that runs go by the API keys that are kept, while requests go on."""

    @property
    def what(self) -> str:
        return "have the gateway read the API keys"


@dataclass(frozen=True)
class DropOldKeyFile(Step):
    """Remove the key file of an earlier version, whose keys are kept as digests by then."""

    @property
    def what(self) -> str:
        return "remove the file that has API keys as plain text"


@dataclass(frozen=True)
class ReplaceGateway(Step):
    """Have another gateway take over: its listening sockets and its table, while requests go on with the old one."""

    duration = Duration.LONG

    target: str
    old: str
    new: str
    listeners: tuple[Listener, ...]
    origins: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()

    @property
    def what(self) -> str:
        return f"replace the gateway with {self.new}{_open_to(self.origins)}"


@dataclass(frozen=True)
class RestartGateway(Step):
    """The same where the old one cannot hand over: it is ended once it is idle, and the other one started."""

    duration = Duration.LONG

    target: str
    old: str
    new: str
    listeners: tuple[Listener, ...]
    timeout_s: float
    origins: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()

    @property
    def what(self) -> str:
        which = f"{self.new}{_open_to(self.origins)}"
        return f"restart the gateway as {which} when it is idle: it cannot hand over, and is gone for a second"

    @property
    def limit_s(self) -> float:
        return self.timeout_s


@dataclass(frozen=True)
class ClearGateway(Step):
    """Remove what is left of a gateway that was replaced, if it has left by then; a later plan does it otherwise."""

    target: str
    instance: str

    @property
    def what(self) -> str:
        return f"clear {self.instance} away if it has left"


@dataclass(frozen=True)
class KeepGateway(Step):
    """What takes a replacement back: where the new gateway does not serve, it goes, and the old one stays for good."""

    target: str
    old: str
    new: str
    listeners: tuple[Listener, ...]

    @property
    def what(self) -> str:
        return f"keep the gateway that serves, {self.old} or {self.new}"
