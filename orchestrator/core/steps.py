"""Everything that orch does to what serves, as values: what a Plan is made of, besides its prerequisites.

A Step is to be done; it says `what` in plain words. `Ensure`, not `Start`: the driver decides from live state, because
the snapshot that a plan was made from is already stale.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from orchestrator.core.deployment import Adapter, Deployment, Desired
from orchestrator.core.gateway_status import GATEWAY
from orchestrator.core.progress_view import amount
from orchestrator.core.routes import Route

# How long memory may linger after the end of the process that held it.
MEMORY_S = 60.0


class Duration(StrEnum):
    """How long a step may take, for whoever watches: over before anybody looks, or long enough to say so beforehand."""

    SHORT = "short"
    LONG = "long"


class Step(ABC):
    """Base of everything that can be done: a frozen dataclass each. How it is done lies in perform/."""

    duration: ClassVar[Duration] = Duration.SHORT

    @property
    @abstractmethod
    def what(self) -> str:
        """The step in plain words, as an imperative."""

    @property
    def limit_s(self) -> float:
        """Seconds after which it waits no longer; 0: it has no such limit."""
        return 0.0


@dataclass(frozen=True)
class WriteFile(Step):
    """Write one of an instance's files (atomically, before it starts)."""

    target: str
    instance: str
    name: str
    text: str

    @property
    def what(self) -> str:
        return f"write {self.name} of {self.instance}"


@dataclass(frozen=True)
class ReadAhead(Step):
    """Read what an engine is about to load, as far as memory has room for it, so that it need not wait for the disk."""

    duration = Duration.LONG

    key: str
    path: str

    @property
    def what(self) -> str:
        return f"read {self.key} into the page cache"


@dataclass(frozen=True)
class EnsureEngine(Step):
    """Have this generation run, supervised, with exactly this launch."""

    deployment: Deployment

    @property
    def what(self) -> str:
        return f"start {self.deployment.instance}"


@dataclass(frozen=True)
class AwaitMemory(Step):
    """Wait until so many bytes of a GPU are free, or of this machine's memory where none is named: what a process held
    may linger after its end."""

    duration = Duration.LONG

    gpu: str
    size: int

    @property
    def what(self) -> str:
        return f"wait for {self.size / 2**30:.1f} GiB of {'GPU memory' if self.gpu else 'memory'}"

    @property
    def limit_s(self) -> float:
        return MEMORY_S


@dataclass(frozen=True)
class ImportArtifact(Step):
    """Hand artifact and adapters to an engine that keeps a store of its own (Ollama), as soon as it answers. What is
    there already is not handed over again. `size` are the bytes of disk that it takes there, `peak` those meanwhile; 0
    where that is not known."""

    duration = Duration.LONG

    deployment: Deployment
    size: int = 0
    peak: int = 0

    @property
    def what(self) -> str:
        room = f" ({amount(self.peak)} of disk meanwhile, then {amount(self.size)})" if self.size else ""
        return f"import {self.deployment.artifact_key} into {self.deployment.instance}{room}"


@dataclass(frozen=True)
class AwaitReady(Step):
    """Wait until the engine answers one real token under its served name and of each adapter, or is dead, or the
    deadline passed. Adapters in `proved` have answered in another process of the same, and are not asked again. How
    long it takes is kept where it is the whole of its start (`timed`)."""

    duration = Duration.LONG

    deployment: Deployment
    timeout_s: float
    proved: tuple[str, ...] = ()
    timed: bool = False

    @property
    def what(self) -> str:
        return f"wait for {self.deployment.instance} to answer"

    @property
    def limit_s(self) -> float:
        return self.timeout_s


@dataclass(frozen=True)
class AskBefore(Step):
    """Ask the engine that serves what the new one's answers are compared with, as far as it answers within seconds."""

    deployment: Deployment

    @property
    def what(self) -> str:
        return f"ask {self.deployment.instance} what its successor is compared with"


@dataclass(frozen=True)
class ProveEngine(Step):
    """Have an engine that no client has met show that it does as it must, beside what the one `before` (an instance;
    empty: there is nothing to compare) has said; without the probes that are to be `skipped`."""

    duration = Duration.LONG

    deployment: Deployment
    before: str
    skipped: tuple[str, ...] = ()

    @property
    def what(self) -> str:
        return f"probe {self.deployment.instance}" + (f", but for {', '.join(self.skipped)}" if self.skipped else "")


@dataclass(frozen=True)
class LoadAdapter(Step):
    """Load an adapter into a running engine; `deployment` is what it is afterwards."""

    deployment: Deployment
    adapter: Adapter

    @property
    def what(self) -> str:
        return f"load adapter {self.adapter.name} into {self.deployment.instance}"


@dataclass(frozen=True)
class UnloadAdapter(Step):
    """Take an adapter out of a running engine; `deployment` is what it is afterwards, `before` what it is now."""

    deployment: Deployment
    name: str
    before: Deployment

    @property
    def what(self) -> str:
        return f"unload adapter {self.name} from {self.deployment.instance}"


@dataclass(frozen=True)
class UnloadModel(Step):
    """Have a server that can go on without its model give that one's memory back, and stand by."""

    deployment: Deployment

    @property
    def what(self) -> str:
        name = self.deployment.instance
        return f"put {name} to sleep" if self.deployment.asleep else f"unload the model of {name}, which stands by"

    @property
    def limit_s(self) -> float:
        return MEMORY_S


@dataclass(frozen=True)
class WakeEngine(Step):
    """Have an engine that sleeps answer again."""

    duration = Duration.LONG

    deployment: Deployment
    timeout_s: float

    @property
    def what(self) -> str:
        return f"wake {self.deployment.instance}"

    @property
    def limit_s(self) -> float:
        return self.timeout_s


@dataclass(frozen=True)
class TidyStore(Step):
    """Remove from an engine's own store the models of adapters that are none of its own any more. `spare` says what
    that is, as far as it can be known before."""

    deployment: Deployment
    spare: tuple[str, ...]

    @property
    def what(self) -> str:
        spare = ", ".join(self.spare)
        return f"remove from the store of {self.deployment.instance} what nothing needs any more: {spare}"


@dataclass(frozen=True)
class RecordDesired(Step):
    """Write down what is wanted of a profile (None: nothing any more)."""

    profile: str
    desired: Desired | None

    @property
    def what(self) -> str:
        if self.desired is None:
            return f"forget {self.profile}"
        if self.desired.stopped:
            return f"record {self.profile} as stopped"
        return f"record {self.profile} on {self.desired.spec.engine}"


@dataclass(frozen=True)
class SetRoute(Step):
    """Point all names of a profile at an instance, in one switch; each Route's url is filled in when it is done, and
    what its card says of the artifact. `only_tells`: they lead there already, and the gateway is told more of them."""

    target: str
    owner: str
    routes: tuple[Route, ...]
    only_tells: bool = False

    @property
    def what(self) -> str:
        backends = ", ".join(sorted({route.backend.instance for route in self.routes}))
        return f"route {self.owner} to {backends}"


@dataclass(frozen=True)
class RemoveRoute(Step):
    """Take all names of a profile off the gateway."""

    owner: str

    @property
    def what(self) -> str:
        return f"remove the routes of {self.owner}"


@dataclass(frozen=True)
class VerifyRoute(Step):
    """One token through the gateway, under each of these public names. A new adapter may have to be loaded for it."""

    names: tuple[str, ...]
    timeout_s: float = 120.0

    @property
    def what(self) -> str:
        return f"ask {', '.join(self.names)} through the gateway"


@dataclass(frozen=True)
class HoldRequests(Step):
    """Have new requests for the names of a profile wait at the gateway. A hold that nobody renews expires by itself, a
    minute after the longest that a request may wait."""

    owner: str
    longest_s: float

    @property
    def what(self) -> str:
        return f"hold new requests to {self.owner}, each for {self.longest_s:.0f} s at most"


@dataclass(frozen=True)
class ReleaseRequests(Step):
    """Let the requests that are held go on, to what serves them now."""

    owner: str

    @property
    def what(self) -> str:
        return f"let the requests to {self.owner} that were held go on"


@dataclass(frozen=True)
class Drain(Step):
    """Wait until nothing is in flight on an instance; what is left at the deadline is cut with an error event, or,
    where it must not `cut`, is why the step fails."""

    duration = Duration.LONG

    instance: str
    timeout_s: float
    cut: bool = True

    @property
    def what(self) -> str:
        return f"drain {self.instance}"

    @property
    def limit_s(self) -> float:
        return self.timeout_s


@dataclass(frozen=True)
class StopEngine(Step):
    """End an instance, its whole process group, and its keeper."""

    target: str
    instance: str

    @property
    def what(self) -> str:
        return f"stop {'the gateway' if self.instance == GATEWAY else self.instance}"


@dataclass(frozen=True)
class RemoveEngine(Step):
    """Remove what a stopped instance left behind, its log excepted."""

    target: str
    instance: str

    @property
    def what(self) -> str:
        return f"remove {'the gateway' if self.instance == GATEWAY else self.instance}"
