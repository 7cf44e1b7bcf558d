"""Routes: what the gateway is told, and keeps.

Everything here has a JSON form (`to_json`, `from_json`); `from_json` raises ValueError with the place of the fault.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from urllib.parse import urlsplit

from orchestrator.core import json_fields as fields
from orchestrator.core.model_card import ModelCard
from orchestrator.errors import PlanRefused

# Of what the two sides of the gateway's admin socket say to each other, and of the routes that it keeps on disk. Where
# no number is told it is 1: no hand-over, one backend to a route, and a field that is not known is an error. Since 2
# routes are what they are; since 3 the gateway reads digests of keys, and adds what engines ask for; since 4 a route
# says whether its model chats; since 5 it says what is served, and which server's own API is beside OpenAI's; since 6 a
# pause outlives the gateway, says who waits, and lets orch's own questions pass.
PROTOCOL = 6
ROUTES_SINCE = 2
FIRST_WITH_DIGESTS = 3
FIRST_WITH_CARDS = 5
# The APIs that engines know: those that others have taken up, and those of one server, beside OpenAI's.
OPENAI, ANTHROPIC, OLLAMA = "openai", "anthropic", "ollama"
LLAMA_SERVER, VLLM = "llama-server", "vllm"
_OF_ONE_SERVER = (LLAMA_SERVER, VLLM)


@dataclass(frozen=True)
class Backend:
    """An engine instance that answers: its name ("tiny-llamacpp-g1"), the target that it runs on, and its address there
    ("http://127.0.0.1:PORT", no path)."""

    instance: str
    url: str
    place: str = ""

    @classmethod
    def from_json(cls, value: object) -> Backend:
        """Read what `asdict` wrote; ValueError says which field is wrong."""
        document = fields.mapping(value, "backend")
        url = fields.text(document, "url")
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.path or parts.query:
            raise ValueError(f"url: http://HOST:PORT is needed, not {url!r}")
        place = document.get("place", "")
        if not isinstance(place, str):
            raise ValueError(f"place: a string is needed, not {place!r}")
        return cls(fields.text(document, "instance"), url, place)


@dataclass(frozen=True, eq=False)
class Route:
    """One public name and where it is answered.

    `name` is the public model name (base or adapter), `owner` the profile that owns it, `backends` the instances that
    answer (one, for now), `speaks` whose APIs they know. `upstream` is the name that the engine knows, where it differs
    from the public one. `patch` is plain JSON merged over the top level of every request body, `defaults` fills in what
    a request does not say; with neither and no `upstream` bytes pass through as they are. `patch_paths` are the HTTP
    paths on which the engine heeds the patch (None: on all); on others it would answer as if there were none. Without
    `chats` the model has no chat template, and an engine that is asked to chat would make one up. `card` says what is
    served, to clients that ask; an earlier version of orch had none. `at_once` requests are computed together (0: an
    earlier version did not say how many).
    """

    name: str
    owner: str
    backends: tuple[Backend, ...]
    speaks: tuple[str, ...] = (OPENAI,)
    upstream: str | None = None
    patch: Mapping[str, object] = field(default_factory=dict)
    defaults: Mapping[str, object] = field(default_factory=dict)
    patch_paths: tuple[str, ...] | None = None
    chats: bool = True
    card: ModelCard | None = None
    at_once: int = 0

    def __post_init__(self) -> None:
        """Keep copies of `patch` and `defaults` that nobody else can change; ValueError when they are not JSON."""
        for name in ("patch", "defaults"):
            try:
                copied = json.loads(json.dumps(dict(getattr(self, name)), allow_nan=False))
            except TypeError as error:
                raise ValueError(f"{name}: {error}") from error
            object.__setattr__(self, name, copied)

    def takes_patch(self, path: str) -> bool:
        """Whether the engine heeds the patch, if there is one, of a request for `path`."""
        return not self.patch or self.patch_paths is None or path in self.patch_paths

    def filled(self, body: Mapping[str, object]) -> dict[str, object]:
        """A body that was made for this route: under the engine's name for the model, with what the route adds."""
        return {**self.defaults, **body, "model": self.upstream or self.name, **self.patch}

    @property
    def answers_as_another(self) -> bool:
        """Whether its engine may call itself something else than the public name."""
        return self.upstream is not None or bool(self.patch)

    @property
    def key(self) -> str:
        """The route as canonical JSON: equal routes have equal keys."""
        # Without copies: beside 40 adapters each route has a patch of 40.
        card = vars(self.card) if self.card is not None else None
        return json.dumps(
            {**vars(self), "backends": [vars(one) for one in self.backends], "card": card}, sort_keys=True
        )

    def __eq__(self, other: object) -> bool:
        return self.key == other.key if isinstance(other, Route) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def backend(self) -> Backend:
        """The one that answers."""
        return self.backends[0]

    def led_to(self, backend: Backend) -> Route:
        """The same name, answered by another instance."""
        return replace(self, backends=(backend,))

    def known_to(self, protocol: int) -> Route:
        """As much of it as can be said in an earlier protocol; all, where what is left out would change an answer."""
        if protocol >= FIRST_WITH_CARDS:
            return self
        speaks = tuple(name for name in self.speaks if name not in _OF_ONE_SERVER)
        known = replace(self, card=None, at_once=0, speaks=speaks)
        if protocol >= ROUTES_SINCE or (self.patch and self.patch_paths is not None):
            return known
        placeless = replace(self.backend, place="")
        return replace(known, backends=(placeless,), speaks=(OPENAI,), patch_paths=None)

    @property
    def as_planned(self) -> Route:
        """Without what changes no answer, and is told with the next change: what of its card is known only once the
        artifact is there, and how many are computed at once."""
        return replace(self, card=self.card and self.card.as_planned, at_once=0)

    def to_json(self) -> dict[str, object]:
        """The route as a plain JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> Route:
        """Read what `to_json` wrote, in this protocol or another; ValueError says which field is wrong."""
        document = fields.mapping(value, "route")
        if "backends" in document:
            backends = tuple(map(Backend.from_json, fields.listed(document["backends"], "backends")))
        else:
            backends = (Backend.from_json({"url": document.get("url"), "instance": document.get("backend")}),)
        if not backends:
            raise ValueError("backends: none")
        return cls(
            name=fields.text(document, "name"),
            owner=fields.text(document, "owner"),
            backends=backends,
            speaks=fields.texts({"speaks": [OPENAI], **document}, "speaks"),
            upstream=None if document.get("upstream") is None else fields.text(document, "upstream"),
            patch=fields.mapping(document.get("patch", {}), "patch"),
            defaults=fields.mapping(document.get("defaults", {}), "defaults"),
            patch_paths=None if document.get("patch_paths") is None else fields.texts(document, "patch_paths"),
            chats=document.get("chats") is not False,
            card=None if document.get("card") is None else ModelCard.from_json(document["card"]),
            at_once=fields.whole({"at_once": 0, **document}, "at_once"),
        )


class RouteTable:
    """All routes by public name. Immutable: a change makes a new table, so a switch is one assignment."""

    def __init__(self, routes: Iterable[Route] = ()) -> None:
        """Raises ValueError when two routes have one name."""
        self._by_name: dict[str, Route] = {}
        for route in sorted(routes, key=lambda route: route.name):
            if route.name in self._by_name:
                raise ValueError(f"the name {route.name!r} occurs twice")
            self._by_name[route.name] = route
        self._alike = {name.casefold(): route for name, route in self._by_name.items()}

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

    def card_of(self, route: Route) -> ModelCard | None:
        """What there is to say of the model behind a route: an adapter is nearly all that its base is."""
        base = self.find(route.card.base) if route.card is not None and route.card.base else None
        return base.card if base is not None else route.card

    def find_alike(self, name: str) -> Route | None:
        """The same without regard to case, where no name is just this."""
        return self._by_name.get(name) or self._alike.get(name.casefold())

    def owned_by(self, owner: str) -> tuple[Route, ...]:
        """The routes of one profile, sorted by name."""
        return tuple(route for route in self if route.owner == owner)

    def replaced(self, owner: str, routes: Iterable[Route]) -> RouteTable:
        """This table with all routes of `owner` replaced by `routes` (none: removed).

        Raises PlanRefused when a name belongs to another owner, ValueError when a route is not `owner`'s
        or a name occurs twice.
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
        return cls(map(Route.from_json, fields.listed(value, "routes")))
