"""Streams that are begun before there is an answer, because their requests are held for long.

Some clients give up when no head comes in time. It commits the answer to 200, so an operator has to want it
(`held_head_s`): what goes wrong afterwards is told inside the stream.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

from aiohttp import hdrs, web

from orchestrator.gateway import refusals
from orchestrator.gateway.dialects.base import EVENTS, Dialect
from orchestrator.gateway.refusals import Refusal
from orchestrator.gateway.switchboard import Claim

# Every reader of events passes a comment over.
_COMMENT = b": waiting for the model\n\n"


class Early:
    """The answer to one request, if it is begun early: after each `every_s` seconds of waiting a comment is written (0:
    never). `depart` is told of its head before that is sent."""

    def __init__(
        self,
        request: web.BaseRequest,
        dialect: Dialect,
        depart: Callable[[web.StreamResponse], None],
        every_s: float,
    ) -> None:
        self.answer: web.StreamResponse | None = None
        self._request = request
        self._dialect = dialect
        self._depart = depart
        self._every_s = every_s

    async def admitted(self, admission: Coroutine[Any, Any, Claim], streams: bool) -> Claim:
        """The claim that is waited for, meanwhile beginning a stream where one is asked for."""
        if not (self._every_s and streams and self._dialect.has_comments):
            return await admission
        waiting = asyncio.ensure_future(admission)
        try:
            while not (await asyncio.wait({waiting}, timeout=self._every_s))[0]:
                await self._go_on()
            return waiting.result()
        except BaseException:
            waiting.cancel()
            if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                # It came just when the client went away.
                with waiting.result():
                    pass
            raise

    async def _go_on(self) -> None:
        if self.answer is None:
            self.answer = web.StreamResponse(headers={hdrs.CONTENT_TYPE: EVENTS, hdrs.CACHE_CONTROL: "no-cache"})
            self._depart(self.answer)
            await self.answer.prepare(self._request)
        await self.answer.write(_COMMENT)

    async def refused(self, refusal: Refusal) -> web.StreamResponse:
        """The end of a begun stream that says why there is no answer."""
        assert self.answer is not None, "nothing was begun"
        await self.answer.write(self._dialect.broken(refusal, _COMMENT))
        return self.answer

    async def ended(self, answer: web.StreamResponse) -> web.StreamResponse:
        """The end with an answer that came whole, which only errors do; any other is the stream that was begun."""
        if self.answer is None or answer is self.answer or not isinstance(answer, web.Response):
            return answer
        body = answer.body if isinstance(answer.body, bytes) else b""
        if answer.status < 400:
            return await self.refused(refusals.interrupted("The engine has not answered with a stream."))
        return await self.refused(Refusal(answer.status, "backend_refused", _message_of(body)))


def _message_of(body: bytes) -> str:
    """What an error says, in OpenAI's and in Anthropic's shape."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return body.decode(errors="replace")[:500]
