"""One snapshot of the world: what `observe` read and `plan` decides from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from orchestrator.core.deployment import Deployment, Desired
from orchestrator.core.environment import EnvironmentObserved
from orchestrator.core.gateway_status import GatewayStatus, Listener, Phase, listeners_of
from orchestrator.core.host import Host
from orchestrator.core.images import ImageFacts
from orchestrator.core.launch import Instance, InstanceState
from orchestrator.core.routes import Route
from orchestrator.errors import HostError


@dataclass(frozen=True)
class EngineObserved:
    """A generation that exists. `answers`: it serves its model under its name, and it is ours;
    `loaded` are the adapters (name, path) that it serves at this moment, None when it could not be asked. `hangs`: its
    server answers, and what it has loaded does not. `spare` lies in its own store and is of no adapter of it. It
    `sleeps` where it was told to."""

    instance: Instance
    deployment: Deployment
    answers: bool
    loaded: tuple[tuple[str, str], ...] | None = None
    hangs: bool = False
    spare: tuple[str, ...] = ()
    sleeps: bool = False

    @property
    def running(self) -> bool:
        """Its process lives."""
        return self.instance.state is InstanceState.RUNNING

    @property
    def rests(self) -> bool:
        """Its server answers, and has no model in memory."""
        children = self.instance.children
        unloaded = self.deployment.own_store and children is not None and children.count == 0
        return self.answers and (unloaded or self.sleeps)

    @property
    def stopped(self) -> EngineObserved:
        """What StopEngine makes of it."""
        instance = replace(self.instance, state=InstanceState.STOPPED, supervised=False, pid=None)
        return EngineObserved(instance, self.deployment, answers=False)


@dataclass(frozen=True)
class OtherGateway:
    """A gateway beside the one that serves, and what it says of itself (None: it does not answer)."""

    instance: Instance
    status: GatewayStatus | None

    @property
    def leaves(self) -> bool:
        """It has handed over, and answers what is open with it."""
        return self.status is not None and self.status.phase is Phase.LEAVING


@dataclass(frozen=True)
class GatewayObserved:
    """The gateway's process (None: never started) and what it says of itself (None: it does not answer).

    `others` are what is left of those that it has replaced, and of those that were to replace it.
    """

    instance: Instance | None
    status: GatewayStatus | None
    others: tuple[OtherGateway, ...] = ()

    @property
    def all(self) -> tuple[Instance, ...]:
        """Every instance, the one that serves last."""
        own = (self.instance,) if self.instance is not None else ()
        return (*(other.instance for other in self.others), *own)

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """Where clients know it; () when nothing tells."""
        if self.status is not None:
            return self.status.listeners
        return listeners_of(self.instance.label) if self.instance is not None else ()

    @property
    def well(self) -> bool:
        """It answers, is supervised, and is as it was started."""
        kept = self.instance is not None and self.instance.supervised and not self.instance.drift
        return self.status is not None and kept


@dataclass(frozen=True)
class Observed:
    """engines of all profiles; `finished` are the keys in the store, with their size in bytes.

    `damaged` are instances whose record cannot be read, each with its problem: they can be stopped, and no more.
    `unreadable` are sentences about other records that could not be read. `images` are those of the Docker daemon, by
    everything that names them; `unreachable` tells of targets that are in use and could not be asked, and why. `starts`
    are the seconds that engines took to answer when they were started here last, by Deployment.start_key.
    """

    host: Host
    engines: tuple[EngineObserved, ...]
    gateway: GatewayObserved
    finished: Mapping[str, int]
    environments: Mapping[str, EnvironmentObserved]
    desired: Mapping[str, Desired]
    damaged: tuple[Instance, ...] = ()
    unreadable: tuple[str, ...] = ()
    images: Mapping[str, ImageFacts] = field(default_factory=dict)
    unreachable: Mapping[str, HostError] = field(default_factory=dict)
    starts: Mapping[str, float] = field(default_factory=dict)

    @property
    def deployed(self) -> tuple[str, ...]:
        """The profiles that are to be served, sorted."""
        return tuple(sorted(name for name, desired in self.desired.items() if not desired.stopped))

    def damaged_of(self, profile: str) -> tuple[Instance, ...]:
        """Damaged instances that are the profile's by their name, which is all that is known of them."""
        return tuple(instance for instance in self.damaged if instance.name.startswith(f"{profile}-"))

    def engines_of(self, profile: str) -> tuple[EngineObserved, ...]:
        """All generations of a profile, oldest first."""
        mine = (engine for engine in self.engines if engine.deployment.profile == profile)
        return tuple(sorted(mine, key=lambda engine: engine.deployment.generation))

    def routes_of(self, profile: str) -> tuple[Route, ...]:
        """The profile's routes, as the gateway has them now."""
        return self.gateway.status.routes.owned_by(profile) if self.gateway.status is not None else ()

    def holds(self, profile: str) -> bool:
        """Whether requests to the profile are held, since a change that was killed."""
        return self.gateway.status is not None and profile in self.gateway.status.paused

    def serving(self, profile: str) -> str | None:
        """The instance that the profile's routes point to."""
        return next((route.backend.instance for route in self.routes_of(profile)), None)
