"""One request on its way to an engine and its answer on the way back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

import aiohttp
from aiohttp import hdrs, web

from orchestrator.core.model_card import ModelCard
from orchestrator.core.routes import Route, RouteTable
from orchestrator.gateway import refusals, upstreams
from orchestrator.gateway.bodies import PIECE, Body
from orchestrator.gateway.dialects.base import (
    Call,
    Dialect,
    EndedEarlyError,
    Endpoint,
    NoAnswerError,
    Question,
    Reply,
    Said,
)
from orchestrator.gateway.early import Early
from orchestrator.gateway.holds import HoldFullError
from orchestrator.gateway.keys import CREDENTIALS
from orchestrator.gateway.measures import ENGINE_LOST, Passage
from orchestrator.gateway.refusals import Refusal
from orchestrator.gateway.secrets import EngineSecrets
from orchestrator.gateway.switchboard import (
    Asker,
    Claim,
    CrowdedError,
    StoppingError,
    Switchboard,
    Tally,
    UnknownNameError,
)

log = logging.getLogger("orchestrator.gateway")

# Seconds before each new try of a request of which the client has seen nothing yet: about 3 s in all.
# The first is at once: an idle connection that the engine was just closing is the usual cause.
PAUSES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.4)
# Seconds of tries and pauses after which no new try is begun: an address that nobody has (a container that was stopped)
# costs 3 s a try.
GIVE_UP_S = 6.0
# How often an engine may be lost after it was sent a request. A request that kills every engine it meets
# must not be handed on and on.
LOSSES = 2
# How long a client that reads slowly may take over the last event of a broken stream.
FAREWELL_S = 2.0

_HOP_BY_HOP = frozenset(
    {
        "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
        "transfer-encoding", "upgrade",
    }
)  # fmt: skip
# Length, host and expectation belong to one hop too; a compressed body was unpacked; which pages may ask is decided
# here, and an engine that has another opinion (Ollama) must not be asked for it. What a client shows is not for it,
# nor are the cookies of whoever stands before the gateway: llama.cpp's server takes 8 KB of a header.
# The body was read as JSON, so it is sent as JSON: vLLM refuses what llama.cpp takes under any type.
_NOT_SENT_ON = (
    _HOP_BY_HOP
    | CREDENTIALS
    | {"host", "content-length", "content-encoding", "content-type", "expect", "origin", "cookie"}
)
# Characters of a header that an engine may be sent: none has a use for more.
_LONGEST_SENT = 4096
# What engines tell browsers: llama.cpp allows every page.
_CORS = "access-control-"
_JSON = (hdrs.CONTENT_TYPE, "application/json")
# Bytes of a whole answer that is read to be changed.
LARGEST_ANSWER = 64 << 20
_STREAMS = ("text/event-stream", "application/x-ndjson")


def end_to_end(headers: Mapping[str, str], dropped: frozenset[str]) -> list[tuple[str, str]]:
    """`headers` without `dropped` and without those that its Connection header names."""
    named = {token.strip().lower() for token in headers.get(hdrs.CONNECTION, "").split(",")}
    return [
        (name, value) for name, value in headers.items() if (low := name.lower()) not in dropped and low not in named
    ]


class BackendLostError(NoAnswerError):
    """The engine could not be reached (`sent` is false) or was lost after it had the request."""

    def __init__(self, reason: str, sent: bool, final: bool = False) -> None:
        super().__init__(reason)
        self.sent = sent
        self.final = final


@dataclass(frozen=True)
class Arrival:
    """A request that an engine is to answer: at which `path`, in whose words, with what body. `depart` is told of the
    head of an answer before that is sent; `early` is one that was begun before an engine was asked. `own`: it is orch
    itself that asks."""

    request: web.BaseRequest
    path: str
    dialect: Dialect
    endpoint: Endpoint
    body: Body
    depart: Callable[[web.StreamResponse], None]
    early: Early
    own: bool = False


async def relay(arrival: Arrival, board: Switchboard, clients: Clients) -> web.StreamResponse:
    """Answer a request from the engine that its public name leads to; raises Refusal while nothing of it is out."""
    try:
        try:
            return await arrival.early.ended(await _answered(arrival, board, clients))
        except Refusal as refusal:
            board.totals.errors += refusal.status >= HTTPStatus.INTERNAL_SERVER_ERROR
            if arrival.early.answer is None:
                raise
            return await arrival.early.refused(refusal)
    except ConnectionError:
        # The engine's are BackendLostError, so it is the client that went away under a write. Nobody gets this answer.
        return web.Response(status=499)


async def _answered(arrival: Arrival, board: Switchboard, clients: Clients) -> web.StreamResponse:
    """The answer; raises Refusal while nothing of it is out.

    The answer's end is left to the server side, which writes it when the claim is released already: a client that
    does not read the end of a finished answer must not keep the engine in use.
    """
    dialect = arrival.dialect
    call = dialect.parse(arrival.path, arrival.body.data)
    if len(arrival.body.data) > PIECE:
        # Looked through once, and to be looked through again: others have their turn between.
        await asyncio.sleep(0)
    route = dialect.find(board.table, call.name)
    if route is None:
        raise dialect.unknown_name(call.name, arrival.path, board.table)
    board.totals.requests += 1
    with board.measures.passage(route, arrival.endpoint.operation, arrival.own) as passage:
        try:
            return await _with_retries(arrival, call, route.name, board, clients, passage)
        except UnknownNameError:
            raise dialect.unknown_name(call.name, arrival.path, board.table) from None
        except StoppingError:
            raise refusals.unavailable("The gateway is stopping.") from None
        except CrowdedError:
            raise refusals.crowded(call.name) from None
        except HoldFullError:
            raise refusals.too_many_held(call.name) from None


async def _with_retries(
    arrival: Arrival, call: Call, name: str, board: Switchboard, clients: Clients, passage: Passage
) -> web.StreamResponse:
    losses = 0
    came = end_to_end(arrival.request.headers, _NOT_SENT_ON)
    headers = [*(pair for pair in came if len(pair[1]) <= _LONGEST_SENT), _JSON]
    again = False
    clock = asyncio.get_running_loop().time
    asker, patience = Asker(clock(), len(arrival.body.data), arrival.own), GIVE_UP_S
    for pause in (*PAUSES, None):
        with await arrival.early.admitted(board.admit(name, asker, again), call.streams) as claim:
            began = clock()
            passage.leads_to(claim.route)
            if (instead := arrival.endpoint.instead_of_chats) and not claim.route.chats:
                raise refusals.no_chat_template(call.name, arrival.path, instead)
            kept = not again and (not call.streams or upstreams.keeps_connections(claim.route))
            engine = Behind(claim.route, clients, board.table)
            attempt = Attempt(arrival, headers, claim, board.totals, engine, passage)
            try:
                return await attempt.run(clients.kept if kept else clients.fresh, call, last=pause is None)
            except BackendLostError as lost:
                claim.tally.errors += 1
                losses += lost.sent
                if attempt.answer is not None:
                    board.totals.errors += 1
                    passage.failed(ENGINE_LOST, ours=True)
                    return await attempt.break_off(attempt.answer, str(lost))
                patience -= clock() - began
                if pause is None or patience < 0 or lost.final or losses > LOSSES:
                    break
        again = True
        patience -= pause
        # Not claimed while it waits: a drain of the lost backend need not wait for this.
        await asyncio.sleep(pause)
    raise refusals.unavailable(f"The engine behind `{call.name}` does not answer now; try again in a moment.")


@dataclass(frozen=True)
class Clients:
    """The two ways to an engine: over connections that are kept for the next request, or over a new one each time.

    Streams take a new one where the engine does not keep them; so does everything that is tried again: it met one that
    was closing.
    `secrets` are what the engines ask for.
    """

    kept: aiohttp.ClientSession
    fresh: aiohttp.ClientSession
    secrets: EngineSecrets


@dataclass(frozen=True)
class Behind:
    """The engine behind a route; see dialects.base.Engine."""

    route: Route
    clients: Clients
    table: RouteTable

    @property
    def card(self) -> ModelCard | None:
        """See Engine."""
        return self.table.card_of(self.route)

    @property
    def secret(self) -> Iterable[tuple[str, str]]:
        """What the engine asks of the gateway."""
        return self.clients.secrets.headers(self.route.backend.instance)

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """See Engine; raises BackendLostError."""
        headers = [_JSON, *self.secret]
        try:
            async with self.clients.fresh.request(
                method, f"{self.route.backend.url}{path}", data=body or None, headers=headers, allow_redirects=False
            ) as answer:
                return answer.status, await _whole(answer, b"")
        except (aiohttp.ClientError, OSError) as error:
            raise BackendLostError("The engine was lost before it answered.", False) from error


@dataclass
class Attempt:
    """One try; the engine is sent `headers`.

    `answer` is set once the client has been sent something; from then on there is no other try, and the request's
    body is let go of.
    """

    arrival: Arrival
    headers: list[tuple[str, str]]
    claim: Claim
    totals: Tally
    engine: Behind
    passage: Passage
    answer: web.StreamResponse | None = None
    _streaming: bool = False
    _sent: bytes = b""

    async def run(self, session: aiohttp.ClientSession, call: Call, last: bool) -> web.StreamResponse:
        """Send the request and copy the answer; raises BackendLostError, also when the claim is cut, and Refusal.

        503 is what llama.cpp's server says while it loads, so it is passed on only by the last try.
        """
        try:
            async with self.claim.cuttable():
                question = await self._question(call)
                if isinstance(question, Said):
                    return respond(question)
                while True:
                    upstream, first = await self._send(session, question)
                    reply, begins = question.reply, question.begins
                    del question
                    try:
                        self._check(upstream, last)
                        answered = await self._answer(upstream, first, reply, begins)
                    finally:
                        if not upstream.content.is_eof():
                            upstream.close()  # tells the engine that nobody listens any more
                    if not isinstance(answered, Question):
                        return answered
                    question = answered
        except TimeoutError as error:
            raise BackendLostError("The request was ended because its engine is being taken away.", True) from error

    def _check(self, upstream: aiohttp.ClientResponse, last: bool) -> None:
        """Whether it is an answer to the client at all; raises BackendLostError and Refusal."""
        if upstream.status == HTTPStatus.SERVICE_UNAVAILABLE and not last:
            raise BackendLostError("The engine is not ready.", False)
        if upstream.status == HTTPStatus.UNAUTHORIZED:
            # It asks the gateway, not the client, whose own key is good.
            log.error("%s refuses the secret that it was sent.", self.claim.route.backend.instance)
            self.claim.tally.errors += 1
            raise refusals.engine_refuses()
        if upstream.status < HTTPStatus.BAD_REQUEST:
            self.claim.answered()

    async def _question(self, call: Call) -> Question | Said:
        """What the engine is to be asked; raises Refusal."""
        arrival, route = self.arrival, self.claim.route
        question = await arrival.dialect.question(call, arrival.path, arrival.body.data, self.engine)
        if isinstance(question, Question) and not route.takes_patch(question.path):
            raise refusals.adapters_lost(call.name, arrival.path, route.patch_paths or ())
        return question

    async def _send(self, session: aiohttp.ClientSession, question: Question) -> tuple[aiohttp.ClientResponse, bytes]:
        """Send the request, see `_open`; returns its answer's head and first bytes."""
        arrival, sent = self.arrival, question.body
        url = f"{self.claim.route.backend.url}{question.path}"
        if question.path == arrival.path and (query := arrival.request.rel_url.raw_query_string):
            url = f"{url}?{query}"
        came = arrival.body.data
        arrival.body.count(len(came) + (len(sent) if sent is not came else 0))
        headers = [*self.headers, *self.engine.secret]
        if not question.reply.passes:
            headers = [pair for pair in headers if pair[0].lower() != "accept-encoding"]
        return await _open(session, url, headers, sent)

    async def _answer(
        self, upstream: aiohttp.ClientResponse, first: bytes, reply: Reply, begins: bytes
    ) -> web.StreamResponse | Question:
        status, route = upstream.status, self.claim.route
        self.passage.answered(status)
        self._streaming = is_stream(upstream.headers)
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR and not self._streaming:
            first = await _whole(upstream, first)
            if upstreams.lost_its_runner(route, first):
                raise BackendLostError("The engine lost the model.", True)
            self.claim.tally.errors += 1
            self.totals.errors += 1
        if self._streaming and reply.gathers:
            return respond(await self._gathered(upstream, first, reply))
        if self._streaming or (reply.passes and self.arrival.early.answer is None):
            return await self._copy(upstream, first, reply, begins)
        body = await _whole(upstream, first)
        self.passage.took_all(body)
        said = Said(body, status) if reply.passes else await reply.whole(status, body)
        if isinstance(said, Question):
            return said
        self.arrival.body.release()
        return respond(said)

    async def _gathered(self, upstream: aiohttp.ClientResponse, chunk: bytes, reply: Reply) -> Said:
        read = 0
        while chunk:
            self.passage.took(chunk)
            reply.part(chunk)
            read += len(chunk)
            if read > LARGEST_ANSWER:
                raise _oversized()
            chunk = b"" if reply.done else await _more(upstream)
        try:
            said = Said(await reply.end())
        except EndedEarlyError as error:
            raise BackendLostError("The engine ended its answer too early.", True) from error
        self.arrival.body.release()
        return said

    async def _copy(
        self, upstream: aiohttp.ClientResponse, chunk: bytes, reply: Reply, begins: bytes
    ) -> web.StreamResponse:
        if self._streaming:
            self.claim.streaming()
            self.totals.streams += 1
        if self.arrival.early.answer is not None:
            answer = self.answer = self.arrival.early.answer
            self.arrival.body.release()
        else:
            answer = self.answer = self._head(upstream, reply)
            self.arrival.body.release()
            self.arrival.depart(answer)
            await answer.prepare(self.arrival.request)
        by_itself, tail = self._streaming and upstreams.may_end_by_itself(self.claim.route), b""
        took, first = self.passage.took, begins if self._streaming else None
        # Of a stream whose tokens are counted by its reply only the beginning is looked at.
        looks, counted = True, self._streaming and reply.counts is not None
        while chunk:
            if looks and took(chunk, first) and counted:
                looks = False
            sent = reply.part(chunk) if self._streaming else chunk
            if sent:
                await answer.write(sent)
                self._sent = sent
            if by_itself:
                tail = (tail + chunk)[-upstreams.TAIL :]
            chunk = b"" if reply.done else await _more(upstream)
        if self._streaming:
            self.passage.streamed(reply.counts)
            try:
                rest = await reply.end()
            except EndedEarlyError as error:
                if not (by_itself and upstreams.ended_by_itself(tail)):
                    raise BackendLostError("The engine ended its answer too early.", True) from error
                rest = b""
            if rest:
                await answer.write(rest)
        return answer

    def _head(self, upstream: aiohttp.ClientResponse, reply: Reply) -> web.StreamResponse:
        headers = end_to_end(upstream.headers, _HOP_BY_HOP)
        answer = web.StreamResponse(
            status=upstream.status,
            reason=upstream.reason,
            headers=[pair for pair in headers if not pair[0].lower().startswith(_CORS)],
        )
        if self._streaming and reply.stream_type:
            answer.headers[hdrs.CONTENT_TYPE] = reply.stream_type
        return answer

    async def break_off(self, answer: web.StreamResponse, reason: str) -> web.StreamResponse:
        """End an answer of which a part is out: an error in a stream's own words, a cut connection anywhere else."""
        transport = self.arrival.request.transport
        if self._streaming:
            try:
                async with asyncio.timeout(FAREWELL_S):
                    await answer.write(self.arrival.dialect.broken(refusals.interrupted(reason), self._sent))
                return answer
            except TimeoutError:
                pass
        # Whole answers carry a length or a last chunk; without it every client sees that this one is not whole.
        if transport is not None:
            transport.abort()
        return answer


def respond(said: Said) -> web.Response:
    """A whole answer, as the server side sends it."""
    answer = web.Response(status=said.status, body=said.body, headers=dict(said.headers))
    answer.headers[hdrs.CONTENT_TYPE] = said.content_type
    return answer


def is_stream(headers: Mapping[str, str]) -> bool:
    """Whether these are the headers of a stream in plain text, into which something can be written."""
    kind = headers.get(hdrs.CONTENT_TYPE, "").lower()
    return kind.startswith(_STREAMS) and headers.get(hdrs.CONTENT_ENCODING, "identity") == "identity"


async def _whole(answer: aiohttp.ClientResponse, begun: bytes) -> bytes:
    """All of an answer that began with these bytes; raises BackendLostError."""
    read = bytearray(begun)
    while chunk := await _more(answer):
        read += chunk
        if len(read) > LARGEST_ANSWER:
            raise _oversized()
    return bytes(read)


async def _more(answer: aiohttp.ClientResponse) -> bytes:
    """What came of an answer, b"" at its end; raises BackendLostError."""
    try:
        return await answer.content.readany()
    except (aiohttp.ClientError, OSError) as error:
        raise BackendLostError("The engine was lost while it answered.", True) from error


def _oversized() -> BackendLostError:
    return BackendLostError(f"The engine's answer is larger than {LARGEST_ANSWER >> 20} MiB.", True, True)


async def _pieces(body: bytes) -> AsyncIterator[memoryview]:
    view = memoryview(body)
    for start in range(0, len(body), PIECE):
        yield view[start : start + PIECE]


async def _open(
    session: aiohttp.ClientSession, url: str, headers: list[tuple[str, str]], body: bytes
) -> tuple[aiohttp.ClientResponse, bytes]:
    """Send the request; returns the answer's head together with its first bytes (none: the body is empty).

    An engine sends the head of a stream at once, but the first token after the whole prompt. Waiting for both
    keeps the request repeatable until there is something to show.
    """
    data: bytes | AsyncIterator[memoryview] = body
    if len(body) > PIECE:
        # In pieces, as the engine takes them: at once, the connection would keep a copy of all that it has not.
        data, headers = _pieces(body), [*headers, (hdrs.CONTENT_LENGTH, str(len(body)))]
    try:
        upstream = await session.post(url, data=data, headers=headers, allow_redirects=False)
    except aiohttp.ConnectionTimeoutError as error:
        raise BackendLostError("The engine's address does not answer.", False, final=True) from error
    except aiohttp.ClientConnectorError as error:
        raise BackendLostError("The engine cannot be reached.", False) from error
    except (aiohttp.ClientError, OSError) as error:
        raise BackendLostError("The engine was lost before it answered.", True) from error
    try:
        return upstream, await upstream.content.readany()
    except (aiohttp.ClientError, OSError) as error:
        upstream.close()
        raise BackendLostError("The engine was lost before it answered.", True) from error
    except BaseException:
        upstream.close()
        raise
