"""A server of streams whose times are known: it does with each request what the body's `script` says."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web


class Scripted:
    """`script` has `first` (seconds until the first token), `gaps` (until each other), `opens` (a piece with a role
    alone comes at once), `status`, `tokens` (what usage says; null: it says nothing), `cut` (after so many tokens the
    connection is), `hangs`. `most` is how many were open at a time."""

    def __init__(self) -> None:
        self.url = ""
        self.open = self.most = self.asked = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        script: dict[str, Any] = (await request.json())["script"]
        self.asked += 1
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            return await self._answered(request, script)
        finally:
            self.open -= 1

    async def _answered(self, request: web.Request, script: dict[str, Any]) -> web.StreamResponse:
        if (status := script.get("status", 200)) != 200:
            return web.Response(status=status)
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        times = [script.get("first", 0.0), *script.get("gaps", ())]
        if script.get("opens"):
            await self._event(answer, {"choices": [{"delta": {"role": "assistant"}}]})
        for number, pause in enumerate(times):
            if number == script.get("cut"):
                assert request.transport is not None
                request.transport.abort()
                return answer
            await asyncio.sleep(pause)
            await self._event(answer, {"choices": [{"delta": {"content": "x"}}]})
        if script.get("hangs"):
            await asyncio.sleep(60)
        tokens = script.get("tokens", len(times))
        usage = {"prompt_tokens": 7, "completion_tokens": tokens} if tokens is not None else None
        await self._event(answer, {"choices": [], "usage": usage})
        await answer.write(b"data: [DONE]\n\n")
        return answer

    async def _event(self, answer: web.StreamResponse, event: dict[str, Any]) -> None:
        await answer.write(b"data: " + json.dumps(event).encode() + b"\n\n")


@contextmanager
def scripted() -> Iterator[Scripted]:
    """One that serves, in a thread of its own."""
    server, loop = Scripted(), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", server.answer)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        server.url = f"http://127.0.0.1:{port}/v1/chat/completions"
        return runner

    runner = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
