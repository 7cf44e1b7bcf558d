"""What a dialect is: an API as clients speak it, whatever the engine behind the gateway knows of it.

The front asks the dialect of a path for its `Endpoint`. A request that an engine is to answer is parsed to a `Call`;
for each route that it may take the dialect makes a `Question` of it, with the `Reply` that turns what the engine says
into what the client reads. All else is for the dialect to `tell` by itself. What goes wrong has its shape, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.core.model_card import ModelCard
from orchestrator.core.routes import Route, RouteTable
from orchestrator.gateway.refusals import Refusal

JSON = "application/json"
EVENTS = "text/event-stream"


@dataclass(frozen=True)
class Endpoint:
    """A path of an API and the methods that it is for. `relayed`: the engine behind the model that the body names
    answers; else the gateway does, and `reads` the body for it or not. `instead_of_chats`: what is asked for is a turn
    in a conversation, which a model without a chat template cannot give; there it can be asked to complete a text.
    `operation` is what metrics call it: chat, text_completion and embeddings are OpenTelemetry's words."""

    methods: tuple[str, ...] = ("GET", "HEAD")
    relayed: bool = False
    reads: bool = False
    instead_of_chats: str = ""
    operation: str = "chat"


@dataclass(frozen=True)
class Said:
    """A whole answer."""

    body: bytes
    status: int = 200
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """What a request asks for: a model by the name that the client knows, and whether a stream is wanted."""

    name: str
    streams: bool


class EndedEarlyError(Exception):
    """An engine's stream is over, and was not at its end."""


class NoAnswerError(Exception):
    """An engine was asked, and has not answered."""


class Reply(Protocol):
    """How one answer of an engine becomes the client's.

    `passes`: a whole answer goes on as it comes, head and all. `stream_type` is the Content-Type of a stream where it
    is not the engine's own. `gathers`: of a stream, too, the client is told one whole answer, which is what its `end`
    gives. `done`: what came is all that is wanted, and the engine is not heard out. `counts` are the tokens of prompt
    and answer where it looks for them itself, as it has found them so far; None: it does not.
    """

    @property
    def passes(self) -> bool: ...

    @property
    def stream_type(self) -> str: ...

    @property
    def gathers(self) -> bool: ...

    @property
    def done(self) -> bool: ...

    @property
    def counts(self) -> tuple[int | None, int | None] | None: ...

    async def whole(self, status: int, body: bytes) -> Said | Question:
        """The answer to one that came in one piece, or what to ask in its place; where it `passes`, nobody asks."""
        ...

    def part(self, data: bytes) -> bytes:
        """What some bytes of a stream, cut anywhere, add to the client's; nothing, where they wait for what follows."""
        ...

    async def end(self) -> bytes:
        """What comes after the last of them, which the engine may be asked for; raises EndedEarlyError, and Refusal
        where nothing of it is out."""
        ...


@dataclass(frozen=True)
class Question:
    """What an engine is asked, and how to read its answer. A stream that has events before the first token has
    `begins` in the first event with one."""

    path: str
    body: bytes
    reply: Reply
    begins: bytes = b""


class Engine(Protocol):
    """The engine behind a route, for what a dialect has to know of it before it can ask, or tell."""

    @property
    def route(self) -> Route: ...

    @property
    def card(self) -> ModelCard | None:
        """What is served there, if that is known; for an adapter its base's, which it is like in all but its name."""
        ...

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """The status and the whole answer; raises NoAnswerError, after which, unless that is seen to, the request that
        this is for is tried again."""
        ...


@dataclass(frozen=True)
class Visit:
    """A request that the gateway answers by itself, and what there is to say. `engine` is the one behind a route,
    `started` when the gateway was, in Unix seconds."""

    method: str
    path: str
    body: bytes
    table: RouteTable
    started: int
    engine: Callable[[Route], Engine]


class Dialect(Protocol):
    """One API. Its streams may have comments (`has_comments`), where they are events."""

    has_comments: bool

    def endpoint(self, path: str) -> Endpoint | None:
        """What there is at a path."""
        ...

    def parse(self, path: str, body: bytes) -> Call:
        """What the body asks for; raises Refusal."""
        ...

    def find(self, table: RouteTable, name: str) -> Route | None:
        """The route of a name, as this API writes names."""
        ...

    async def question(self, call: Call, path: str, body: bytes, engine: Engine) -> Question | Said:
        """What to ask the engine, or the answer where it need not be asked; raises Refusal."""
        ...

    async def tell(self, visit: Visit) -> Said:
        """What the gateway says by itself; raises Refusal."""
        ...

    def unknown_name(self, name: str, path: str, table: RouteTable) -> Refusal:
        """There is no such model."""
        ...

    def refused(self, refusal: Refusal) -> Said:
        """A whole answer that says why there is no other."""
        ...

    def broken(self, refusal: Refusal, sent: bytes) -> bytes:
        """What ends a stream that broke, so that clients see it; `sent` is the last that they were sent."""
        ...
