"""Routes and what the gateway says of itself: the values that both sides of its admin socket speak.

Everything here has a JSON form (`to_json`, `from_json`); `from_json` raises ValueError with the place of the fault.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from urllib.parse import urlsplit

from orchestrator.errors import PlanRefused


def _text(document: Mapping[str, object], key: str) -> str:
    value = document.get(key)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key}: a non-empty string is needed, not {value!r}")
    return value


def _whole(document: Mapping[str, object], key: str) -> int:
    value = document.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{key}: a whole number is needed, not {value!r}")
    return value


def _object(value: object, what: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise ValueError(f"{what}: a JSON object is needed, not {type(value).__name__}")
    return value


@dataclass(frozen=True, eq=False)
class Route:
    """One public name and where it is answered.

    `name` is the public model name (base or adapter), `owner` the profile that owns it, `backend` the engine
    instance that answers ("tiny-llamacpp-g1"), `url` its address ("http://127.0.0.1:PORT", no path).
    `upstream` is the name that the engine knows, where it differs from the public one. `patch` is plain JSON
    merged over the top level of every request body, `defaults` fills in what a request does not say; with neither and
    no `upstream` bytes pass through as they are.
    """

    name: str
    owner: str
    backend: str
    url: str
    upstream: str | None = None
    patch: Mapping[str, object] = field(default_factory=dict)
    defaults: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Keep copies of `patch` and `defaults` that nobody else can change; ValueError when they are not JSON."""
        for name in ("patch", "defaults"):
            try:
                copied = json.loads(json.dumps(dict(getattr(self, name)), allow_nan=False))
            except TypeError as error:
                raise ValueError(f"{name}: {error}") from error
            object.__setattr__(self, name, copied)

    @property
    def key(self) -> str:
        """The route as canonical JSON: equal routes have equal keys."""
        return json.dumps(self.to_json(), sort_keys=True)

    def __eq__(self, other: object) -> bool:
        return self.key == other.key if isinstance(other, Route) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.key)

    def to_json(self) -> dict[str, object]:
        """The route as a plain JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> Route:
        """Read what `to_json` wrote; ValueError says which field is wrong."""
        document = _object(value, "route")
        unknown = sorted(set(document) - set(cls.__dataclass_fields__))
        if unknown:
            raise ValueError(f"route: unknown field {unknown[0]!r}")
        url = _text(document, "url")
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.path or parts.query:
            raise ValueError(f"url: http://HOST:PORT is needed, not {url!r}")
        return cls(
            name=_text(document, "name"),
            owner=_text(document, "owner"),
            backend=_text(document, "backend"),
            url=url,
            upstream=None if document.get("upstream") is None else _text(document, "upstream"),
            patch=_object(document.get("patch", {}), "patch"),
            defaults=_object(document.get("defaults", {}), "defaults"),
        )


class RouteTable:
    """All routes by public name. Immutable: a change makes a new table, so a switch is one assignment."""

    def __init__(self, routes: Iterable[Route] = ()) -> None:
        """Raises ValueError when two routes have one name."""
        self._by_name: dict[str, Route] = {}
        for route in sorted(routes, key=lambda route: route.name):
            if route.name in self._by_name:
                raise ValueError(f"the name {route.name!r} stands twice")
            self._by_name[route.name] = route

    def __iter__(self) -> Iterator[Route]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, RouteTable) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    @property
    def names(self) -> tuple[str, ...]:
        """The public names, sorted."""
        return tuple(self._by_name)

    def find(self, name: str) -> Route | None:
        """The route of a public name, or None."""
        return self._by_name.get(name)

    def owned_by(self, owner: str) -> tuple[Route, ...]:
        """The routes of one profile, sorted by name."""
        return tuple(route for route in self if route.owner == owner)

    def replaced(self, owner: str, routes: Iterable[Route]) -> RouteTable:
        """This table with all routes of `owner` replaced by `routes` (none: removed).

        Raises PlanRefused when a name belongs to another owner, ValueError when a route is not `owner`'s
        or a name stands twice.
        """
        routes = tuple(routes)
        for route in routes:
            if route.owner != owner:
                raise ValueError(f"the route {route.name!r} belongs to {route.owner!r}, not to {owner!r}")
            present = self.find(route.name)
            if present is not None and present.owner != owner:
                raise PlanRefused(
                    f"The name {route.name!r} is already served by {present.owner!r}.",
                    hint=f"Take {present.owner!r} down first, or serve under another name.",
                )
        return RouteTable([*(route for route in self if route.owner != owner), *routes])

    def to_json(self) -> list[dict[str, object]]:
        """The routes as a plain JSON list."""
        return [route.to_json() for route in self]

    @classmethod
    def from_json(cls, value: object) -> RouteTable:
        """Read what `to_json` wrote; ValueError says what is wrong."""
        if not isinstance(value, list):
            raise ValueError(f"routes: a JSON list is needed, not {type(value).__name__}")
        return cls(Route.from_json(item) for item in value)


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

    @classmethod
    def from_json(cls, value: object) -> Counts:
        """Read the JSON form; ValueError says which field is wrong."""
        document = _object(value, "counts")
        return cls(_whole(document, "requests"), _whole(document, "errors"), _whole(document, "streams"))


@dataclass(frozen=True)
class BackendLoad:
    """One backend now: requests in flight, how many of them are open streams, and its counts so far."""

    in_flight: int
    open_streams: int
    counts: Counts

    def to_json(self) -> dict[str, int]:
        """One flat JSON object."""
        return {"in_flight": self.in_flight, "open_streams": self.open_streams, **asdict(self.counts)}

    @classmethod
    def from_json(cls, value: object) -> BackendLoad:
        """Read what `to_json` wrote; ValueError says which field is wrong."""
        document = _object(value, "backend")
        return cls(_whole(document, "in_flight"), _whole(document, "open_streams"), Counts.from_json(document))


@dataclass(frozen=True)
class GatewayStatus:
    """What a running gateway says of itself.

    `listen` is the bound address ("127.0.0.1:8484"), `started_at` UTC, ISO 8601; `paused` maps owners to the
    seconds until their pause expires, `held` is the number of requests that wait for it. `keys` says whether an API
    key is demanded of clients.
    """

    pid: int
    version: str
    listen: str
    started_at: str
    routes: RouteTable
    backends: Mapping[str, BackendLoad]
    totals: Counts
    paused: Mapping[str, float]
    held: int
    keys: bool = False

    def to_json(self) -> dict[str, object]:
        """The answer to GET /status."""
        return {
            "pid": self.pid,
            "version": self.version,
            "listen": self.listen,
            "started_at": self.started_at,
            "routes": self.routes.to_json(),
            "backends": {name: load.to_json() for name, load in self.backends.items()},
            "totals": asdict(self.totals),
            "paused": dict(self.paused),
            "held": self.held,
            "keys": self.keys,
        }

    @classmethod
    def from_json(cls, value: object) -> GatewayStatus:
        """Read what `to_json` wrote; ValueError says which field is wrong."""
        document = _object(value, "status")
        paused = _object(document.get("paused"), "paused")
        # A gateway of an earlier version, which may still run, does not say it and demands none.
        keys = document.get("keys", False)
        if not isinstance(keys, bool):
            raise ValueError(f"keys: true or false is needed, not {keys!r}")
        return cls(
            pid=_whole(document, "pid"),
            version=_text(document, "version"),
            listen=_text(document, "listen"),
            started_at=_text(document, "started_at"),
            routes=RouteTable.from_json(document.get("routes")),
            backends={
                name: BackendLoad.from_json(load)
                for name, load in _object(document.get("backends"), "backends").items()
            },
            totals=Counts.from_json(document.get("totals")),
            paused={owner: float(str(left)) for owner, left in paused.items()},
            held=_whole(document, "held"),
            keys=keys,
        )
