"""What a running gateway is called, and what it says of itself.

The latter has a JSON form (`to_json`, `from_json`); `from_json` raises ValueError with the place of the fault, and
takes what another protocol says besides.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum

from orchestrator.core import json_fields as fields
from orchestrator.core.routes import PROTOCOL, RouteTable

# The first; its successors are numbered from 2: gateway-g2.
GATEWAY = "gateway"
_NAME = re.compile(rf"{GATEWAY}(?:-g(\d+))?")


def is_gateway(instance: str) -> bool:
    """Whether an instance is a gateway, by its name: engines are called PROFILE-ENGINE-gN."""
    return _NAME.fullmatch(instance) is not None


def generation_of(instance: str) -> int:
    """Which gateway it is, counted from 1."""
    found = _NAME.fullmatch(instance)
    if found is None:
        raise ValueError(f"{instance} is not a gateway")
    return int(found[1] or 1)


def successor_of(instance: str) -> str:
    """The name of the next one."""
    return f"{GATEWAY}-g{generation_of(instance) + 1}"


class Phase(StrEnum):
    """A gateway that is to replace another waits for its sockets; one that has handed them over answers what is open
    with it, and leaves."""

    WAITING = "waiting"
    SERVING = "serving"
    LEAVING = "leaving"


@dataclass(frozen=True)
class Listener:
    """An address at which the gateway listens: "127.0.0.1:8484"."""

    address: str


def gateway_label(listeners: tuple[Listener, ...]) -> str:
    """What a gateway's process bears."""
    return json.dumps({"version": PROTOCOL, "listeners": [asdict(listener) for listener in listeners]})


def listeners_of(label: str) -> tuple[Listener, ...]:
    """What `gateway_label` wrote, in this version or another; version 1 was the address alone. None of it: ()."""
    if not label.startswith("{"):
        return (Listener(label),) if label else ()
    try:
        listed = fields.listed(fields.mapping(json.loads(label), "label").get("listeners"), "listeners")
        return tuple(Listener(fields.text(fields.mapping(one, "listener"), "address")) for one in listed)
    except ValueError:
        return ()


@dataclass(frozen=True)
class Counts:
    """What happened since the gateway started, to one backend or in all.

    `requests` and `errors` of a backend count tries (a request tried again counts twice), in the totals they
    count answers to clients. An error is a lost or unreachable engine, or its 5xx; a client that left is none.
    `streams` counts server-sent event answers.
    """

    requests: int = 0
    errors: int = 0
    streams: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.requests + other.requests, self.errors + other.errors, self.streams + other.streams)

    @classmethod
    def from_json(cls, value: object) -> Counts:
        """Read the JSON form; ValueError says which field is wrong."""
        document = fields.mapping(value, "counts")
        return cls(*(fields.whole(document, key) for key in ("requests", "errors", "streams")))


@dataclass(frozen=True)
class BackendLoad:
    """One backend now: requests in flight, how many of them are open streams, and its counts so far by public name; and
    what of the former is under which name (a gateway of an earlier version does not tell)."""

    in_flight: int = 0
    open_streams: int = 0
    by_route: Mapping[str, Counts] = field(default_factory=dict)
    in_flight_by_route: Mapping[str, int] = field(default_factory=dict)

    @property
    def counts(self) -> Counts:
        """Under all names."""
        return sum(self.by_route.values(), Counts())

    def __add__(self, other: BackendLoad) -> BackendLoad:
        names = dict.fromkeys((*self.by_route, *other.by_route))
        none = Counts()
        by_route = {name: self.by_route.get(name, none) + other.by_route.get(name, none) for name in names}
        in_flight = Counter(self.in_flight_by_route) + Counter(other.in_flight_by_route)
        return BackendLoad(
            self.in_flight + other.in_flight, self.open_streams + other.open_streams, by_route, in_flight
        )

    def to_json(self) -> dict[str, object]:
        """One JSON object; the sums are for people."""
        by_route = {name: asdict(counts) for name, counts in self.by_route.items()}
        sums = asdict(self.counts)
        load = {"in_flight": self.in_flight, "open_streams": self.open_streams}
        return {**load, **sums, "by_route": by_route, "in_flight_by_route": dict(self.in_flight_by_route)}

    @classmethod
    def from_json(cls, value: object) -> BackendLoad:
        """Read what `to_json` wrote; ValueError says which field is wrong. Protocol 1 told the sums only."""
        document = fields.mapping(value, "backend")
        by_route = fields.mapping(document.get("by_route", {"": document}), "by_route")
        named = fields.mapping(document.get("in_flight_by_route", {}), "in_flight_by_route")
        return cls(
            fields.whole(document, "in_flight"),
            fields.whole(document, "open_streams"),
            {name: Counts.from_json(counts) for name, counts in by_route.items()},
            {name: fields.whole(named, name) for name in named},
        )


@dataclass(frozen=True)
class HeldLoad:
    """What waits for the end of one owner's pause: so many requests, with bodies of so many bytes together, the oldest
    since so many seconds (0: none waits). A gateway of an earlier version tells the requests alone."""

    requests: int = 0
    size: int = 0
    oldest_s: float = 0.0

    def __add__(self, other: HeldLoad) -> HeldLoad:
        oldest_s = max(self.oldest_s, other.oldest_s)
        return HeldLoad(self.requests + other.requests, self.size + other.size, oldest_s)

    @classmethod
    def from_json(cls, value: object) -> HeldLoad:
        """Read the JSON form; ValueError says which field is wrong."""
        document = fields.mapping(value, "hold")
        oldest_s = float(str(document.get("oldest_s", 0.0)))
        return cls(fields.whole(document, "requests"), fields.whole(document, "size"), oldest_s)


@dataclass(frozen=True)
class Traffic:
    """What goes through a gateway, or went: by backend, and in all; `holds` is what waits for a pause to end, by owner,
    `waiting` by public name for their turn. `turned_away` counts clients that took more than they may, by reason. A
    gateway of an earlier version has neither."""

    backends: Mapping[str, BackendLoad] = field(default_factory=dict)
    totals: Counts = field(default_factory=Counts)
    holds: Mapping[str, HeldLoad] = field(default_factory=dict)
    waiting: Mapping[str, int] = field(default_factory=dict)
    turned_away: Mapping[str, int] = field(default_factory=dict)

    @property
    def held(self) -> int:
        """Requests that wait for a pause to end."""
        return sum(load.requests for load in self.holds.values())

    @property
    def in_flight(self) -> int:
        """Requests that have no whole answer yet."""
        return self.held + sum(self.waiting.values()) + sum(load.in_flight for load in self.backends.values())

    def __add__(self, other: Traffic) -> Traffic:
        names = dict.fromkeys((*self.backends, *other.backends))
        idle = BackendLoad()
        backends = {name: self.backends.get(name, idle) + other.backends.get(name, idle) for name in names}
        waiting = Counter(self.waiting) + Counter(other.waiting)
        turned_away = Counter(self.turned_away) + Counter(other.turned_away)
        owners = dict.fromkeys((*self.holds, *other.holds))
        holds = {one: self.holds.get(one, HeldLoad()) + other.holds.get(one, HeldLoad()) for one in owners}
        return Traffic(backends, self.totals + other.totals, holds, waiting, turned_away)

    def over(self) -> Traffic:
        """What stays of it when the gateway has ended: the counts."""
        backends = {name: BackendLoad(by_route=load.by_route) for name, load in self.backends.items()}
        return Traffic(backends, self.totals, turned_away=self.turned_away)

    def to_json(self) -> dict[str, object]:
        """As it stands in a status."""
        backends = {name: load.to_json() for name, load in self.backends.items()}
        return {
            "backends": backends,
            "totals": asdict(self.totals),
            "held": self.held,
            "holds": {owner: asdict(load) for owner, load in self.holds.items()},
            "waiting": dict(self.waiting),
            "turned_away": dict(self.turned_away),
        }

    @classmethod
    def from_json(cls, value: object) -> Traffic:
        """Read what `to_json` wrote; ValueError says which field is wrong."""
        document = fields.mapping(value, "traffic")
        backends = fields.mapping(document.get("backends"), "backends")
        waiting = fields.mapping(document.get("waiting", {}), "waiting")
        untold = {"": {"requests": fields.whole(document, "held"), "size": 0, "oldest_s": 0}}
        holds = fields.mapping(document.get("holds", untold), "holds")
        turned_away = fields.mapping(document.get("turned_away", {}), "turned_away")
        return cls(
            {name: BackendLoad.from_json(load) for name, load in backends.items()},
            Counts.from_json(document.get("totals")),
            {owner: HeldLoad.from_json(load) for owner, load in holds.items()},
            {name: fields.whole(waiting, name) for name in waiting},
            {reason: fields.whole(turned_away, reason) for reason in turned_away},
        )


@dataclass(frozen=True)
class GatewayStatus:
    """What a running gateway says of itself.

    `listeners` are its bound addresses, `started_at` UTC, ISO 8601; `traffic` counts in the gateway that it replaced;
    `paused` maps owners to the seconds until their pause expires. `keys` says whether an API key is demanded of
    clients, `keys_mark` which ones it has read (see KeyRing); `origins` are those that were added to the allowed ones,
    `limits` what its operator has said of them (see gateway/limits.py).
    """

    pid: int
    version: str
    listeners: tuple[Listener, ...]
    started_at: str
    routes: RouteTable
    traffic: Traffic = field(default_factory=Traffic)
    paused: Mapping[str, float] = field(default_factory=dict)
    keys: bool = False
    keys_mark: str = ""
    origins: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    protocol: int = PROTOCOL
    phase: Phase = Phase.SERVING

    @property
    def listen(self) -> str:
        """Its first address, which clients were told."""
        return self.listeners[0].address

    def load_of(self, backend: str) -> BackendLoad:
        """A backend's load; one that was never used has none."""
        return self.traffic.backends.get(backend, BackendLoad())

    def to_json(self) -> dict[str, object]:
        """The answer to GET /status."""
        return {
            "pid": self.pid,
            "version": self.version,
            "protocol": self.protocol,
            "phase": self.phase.value,
            "listeners": [asdict(listener) for listener in self.listeners],
            "started_at": self.started_at,
            "routes": self.routes.to_json(),
            **self.traffic.to_json(),
            "paused": dict(self.paused),
            "keys": self.keys,
            "keys_mark": self.keys_mark,
            "origins": list(self.origins),
            "limits": list(self.limits),
        }

    @classmethod
    def from_json(cls, value: object) -> GatewayStatus:
        """Read what `to_json` wrote, in this protocol or another; ValueError says which field is wrong."""
        document = fields.mapping(value, "status")
        paused = fields.mapping(document.get("paused"), "paused")
        # What protocol 1 did not say is what it was.
        said = {"protocol": 1, "phase": Phase.SERVING.value, "keys": False, "origins": [], "limits": [], **document}
        return cls(
            pid=fields.whole(said, "pid"),
            version=fields.text(said, "version"),
            protocol=fields.whole(said, "protocol"),
            phase=Phase(fields.text(said, "phase")),
            listeners=tuple(_listeners(said)),
            started_at=fields.text(said, "started_at"),
            routes=RouteTable.from_json(said.get("routes")),
            traffic=Traffic.from_json(said),
            paused={owner: float(str(left)) for owner, left in paused.items()},
            keys=fields.truth(said, "keys"),
            keys_mark=str(said.get("keys_mark", "")),
            origins=fields.texts(said, "origins"),
            limits=fields.texts(said, "limits"),
        )


def _listeners(status: Mapping[str, object]) -> Iterator[Listener]:
    """One at least; protocol 1 told its only address as `listen`."""
    listed = status.get("listeners", [{"address": status.get("listen")}])
    for listener in fields.listed(listed, "listeners") or [{}]:
        yield Listener(fields.text(fields.mapping(listener, "listener"), "address"))


@dataclass(frozen=True)
class GatewayState:
    """What a gateway keeps on disk: its routes, the admin socket of the gateway that it has replaced, until that one
    has left ("": there is none), and when the pause of each owner expires, in seconds since 1970."""

    routes: RouteTable = field(default_factory=RouteTable)
    predecessor: str = ""
    paused_until: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """As it is written."""
        return {
            "version": PROTOCOL,
            "routes": self.routes.to_json(),
            "predecessor": self.predecessor,
            "paused_until": dict(self.paused_until),
        }

    @classmethod
    def from_json(cls, value: object) -> GatewayState:
        """Read what `to_json` wrote, in this protocol or another: the first was the list of routes."""
        if isinstance(value, list):
            return cls(RouteTable.from_json(value))
        document = fields.mapping(value, "state")
        predecessor = document.get("predecessor") or ""
        if not isinstance(predecessor, str):
            raise ValueError(f"predecessor: a path is needed, not {predecessor!r}")
        paused = fields.mapping(document.get("paused_until", {}), "paused_until")
        return cls(
            RouteTable.from_json(document.get("routes")),
            predecessor,
            {owner: float(str(until)) for owner, until in paused.items()},
        )
