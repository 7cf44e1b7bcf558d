"""One request on its way to an engine and its answer on the way back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus

import aiohttp
from aiohttp import hdrs, web

from orchestrator.gateway import openai, refusals
from orchestrator.gateway.answers import shape_of
from orchestrator.gateway.bodies import PIECE, Body
from orchestrator.gateway.keys import CREDENTIALS
from orchestrator.gateway.refusals import Refusal
from orchestrator.gateway.secrets import EngineSecrets
from orchestrator.gateway.switchboard import Claim, StoppingError, Switchboard, Tally, UnknownNameError

log = logging.getLogger("orchestrator.gateway")

# Seconds before each new try of a request of which the client has seen nothing yet: about 3 s in all.
# The first is at once: an idle connection that the engine was just closing is the usual cause.
PAUSES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.4)
# When no new try is begun: an address that nobody has (a container that was stopped) costs 3 s a try.
GIVE_UP_S = 6.0
# How often an engine may be lost after it was sent a request. A request that kills every engine it meets
# must not be handed on and on.
LOSSES = 2
# How long a client that reads slowly may take over the last event of a broken stream.
FAREWELL_S = 2.0

# Where a request is a chat, and the model's template makes a prompt of it.
CHAT_PATHS = frozenset({"/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"})

_HOP_BY_HOP = frozenset(
    {
        "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
        "transfer-encoding", "upgrade",
    }
)  # fmt: skip
# Length, host and expectation belong to one hop too; a compressed body was unpacked; which pages may ask is decided
# here, and an engine that has another opinion (Ollama) must not be asked for it. What a client shows is not for it.
# The body was read as JSON, so it is sent as JSON: vLLM refuses what llama.cpp takes under any type.
_NOT_SENT_ON = (
    _HOP_BY_HOP | CREDENTIALS | {"host", "content-length", "content-encoding", "content-type", "expect", "origin"}
)
# What engines tell browsers: llama.cpp allows every page.
_CORS = "access-control-"
_JSON = (hdrs.CONTENT_TYPE, "application/json")


def end_to_end(headers: Mapping[str, str], dropped: frozenset[str]) -> list[tuple[str, str]]:
    """`headers` without `dropped` and without those that its Connection header names."""
    named = {token.strip().lower() for token in headers.get(hdrs.CONNECTION, "").split(",")}
    return [
        (name, value) for name, value in headers.items() if (low := name.lower()) not in dropped and low not in named
    ]


class BackendLostError(Exception):
    """The engine could not be reached (`sent` is false) or was lost after it had the request."""

    def __init__(self, reason: str, sent: bool, final: bool = False) -> None:
        super().__init__(reason)
        self.sent = sent
        self.final = final


async def relay(
    request: web.Request, path: str, body: Body, board: Switchboard, clients: Clients
) -> web.StreamResponse:
    """Answer a request from the engine that its public name leads to; raises Refusal while nothing of it is out.

    The answer's end is left to the server side, which writes it when the claim is released already: a client that
    does not read the end of a finished answer must not keep the engine in use.
    """
    call = openai.Call.parse(body.data)
    if board.table.find(call.name) is None:
        raise refusals.unknown_name(call.name, board.table)
    board.totals.requests += 1
    try:
        return await _with_retries(request, path, call, body, board, clients)
    except UnknownNameError:
        raise refusals.unknown_name(call.name, board.table) from None
    except StoppingError:
        board.totals.errors += 1
        raise refusals.unavailable("The gateway is stopping.") from None
    except Refusal as refusal:
        board.totals.errors += refusal.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        raise
    except ConnectionError:
        # The engine's are BackendLostError, so it is the client that went away under a write. Nobody gets this answer.
        return web.Response(status=499)


async def _with_retries(
    request: web.Request, path: str, call: openai.Call, body: Body, board: Switchboard, clients: Clients
) -> web.StreamResponse:
    losses = 0
    headers = [*end_to_end(request.headers, _NOT_SENT_ON), _JSON]
    session = clients.fresh if call.streams else clients.kept
    until = asyncio.get_running_loop().time() + GIVE_UP_S
    for pause in (*PAUSES, None):
        with await board.admit(call.name) as claim:
            if not claim.route.chats and path in CHAT_PATHS:
                raise refusals.no_chat_template(call.name, path)
            if not claim.route.takes_patch(path):
                raise refusals.adapters_lost(call.name, path, claim.route.patch_paths or ())
            own = clients.secrets.headers(claim.route.backend.instance)
            attempt = Attempt(request, path, body, [*headers, *own], claim, board.totals)
            try:
                return await attempt.run(session, call, last=pause is None)
            except BackendLostError as lost:
                claim.tally.errors += 1
                losses += lost.sent
                if attempt.answer is not None:
                    board.totals.errors += 1
                    return await attempt.break_off(attempt.answer, str(lost))
                late = asyncio.get_running_loop().time() > until
                if pause is None or late or lost.final or losses > LOSSES:
                    break
        session = clients.fresh
        # Not claimed while it waits: a drain of the lost backend need not wait for this.
        await asyncio.sleep(pause)
    raise refusals.unavailable(f"The engine behind `{call.name}` does not answer now; try again in a moment.")


@dataclass(frozen=True)
class Clients:
    """The two ways to an engine: over connections that are kept for the next request, or over a new one each time.

    Streams take a new one: llama.cpp's server closes after a stream, whatever its Keep-Alive header said, and a
    request that meets a closing connection is lost. So does everything that is tried again: it met one.
    `secrets` are what the engines ask for.
    """

    kept: aiohttp.ClientSession
    fresh: aiohttp.ClientSession
    secrets: EngineSecrets


@dataclass
class Attempt:
    """One try; the engine is sent `headers`.

    `answer` is set once the client has been sent something; from then on there is no other try, and the request's
    `body` is let go of.
    """

    request: web.Request
    path: str
    body: Body
    headers: list[tuple[str, str]]
    claim: Claim
    totals: Tally
    answer: web.StreamResponse | None = None
    _tail: bytes = b""

    async def run(self, session: aiohttp.ClientSession, call: openai.Call, last: bool) -> web.StreamResponse:
        """Send the request and copy the answer; raises BackendLostError, also when the claim is cut, and Refusal.

        503 is what llama.cpp's server says while it loads, so it is passed on only by the last try.
        """
        try:
            async with self.claim.cuttable():
                upstream, first = await self._send(session, call)
                try:
                    if upstream.status == HTTPStatus.SERVICE_UNAVAILABLE and not last:
                        raise BackendLostError("The engine is not ready.", False)
                    if upstream.status == HTTPStatus.UNAUTHORIZED:
                        # It asks the gateway, not the client, whose own key is good.
                        log.error("%s refuses the secret that it was sent.", self.claim.route.backend.instance)
                        self.claim.tally.errors += 1
                        raise refusals.engine_refuses()
                    return await self._copy(upstream, first)
                finally:
                    if not upstream.content.is_eof():
                        upstream.close()  # tells the engine that nobody listens any more
        except TimeoutError as error:
            raise BackendLostError("The request was ended because its engine is being taken away.", True) from error

    async def _send(self, session: aiohttp.ClientSession, call: openai.Call) -> tuple[aiohttp.ClientResponse, bytes]:
        """Send the request, see `_open`; when it has returned, nothing but `body` holds the bytes any more."""
        route, came = self.claim.route, self.body.data
        query = self.request.rel_url.raw_query_string
        url = f"{route.backend.url}{self.path}?{query}" if query else f"{route.backend.url}{self.path}"
        sent = call.body_for(route, came)
        self.body.count(len(came) + (len(sent) if sent is not came else 0))
        return await _open(session, url, self.headers, sent)

    async def _copy(self, upstream: aiohttp.ClientResponse, chunk: bytes) -> web.StreamResponse:
        headers = end_to_end(upstream.headers, _HOP_BY_HOP)
        answer = web.StreamResponse(
            status=upstream.status,
            reason=upstream.reason,
            headers=[pair for pair in headers if not pair[0].lower().startswith(_CORS)],
        )
        if upstream.status >= 500:
            self.claim.tally.errors += 1
            self.totals.errors += 1
        if is_event_stream(upstream.headers):
            self.claim.streaming()
            self.totals.streams += 1
        self.answer = answer
        self.body.release()
        await answer.prepare(self.request)
        content = upstream.content
        while chunk:
            await answer.write(chunk)
            self._tail = chunk
            try:
                chunk = await content.readany()
            except (aiohttp.ClientError, OSError) as error:
                raise BackendLostError("The engine was lost while it answered.", True) from error
        return answer

    async def break_off(self, answer: web.StreamResponse, reason: str) -> web.StreamResponse:
        """End an answer of which a part is out: an error event in a stream, a cut connection anywhere else."""
        transport = self.request.transport
        if is_event_stream(answer.headers):
            try:
                async with asyncio.timeout(FAREWELL_S):
                    between = self._tail.endswith((b"\n\n", b"\r\n\r\n"))
                    last = shape_of(self.path).stream_error(refusals.interrupted(reason))
                    await answer.write((b"" if between else b"\n\n") + last)
                return answer
            except TimeoutError:
                pass
        # Whole answers carry a length or a last chunk; without it every client sees that this one is not whole.
        if transport is not None:
            transport.abort()
        return answer


def is_event_stream(headers: Mapping[str, str]) -> bool:
    """Whether these are the headers of server-sent events in plain text, into which an event can be written."""
    kind = headers.get(hdrs.CONTENT_TYPE, "").lower()
    return kind.startswith("text/event-stream") and headers.get(hdrs.CONTENT_ENCODING, "identity") == "identity"


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
