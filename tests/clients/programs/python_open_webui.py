"""The calls that Open WebUI makes to Ollama, in the order and with the bodies of its own source.

backend/open_webui/routers/ollama.py, by aiohttp and requests as there: a connection is verified by /api/version, then
/api/tags and /api/ps are merged to its list, a name without a tag gets `:latest`, chats stream through unread.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import aiohttp
import requests
from asking import Stream, answer
from questions import GREEDY, SCHEMA, TOOLS, said

TIMEOUT_S = 60


class WebUIError(Exception):
    """What its user is shown: `detail`, under a status."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status_code = status


def headers(key: str = "") -> dict[str, str]:
    return {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}


def bearer(given: dict[str, str] | None) -> str:
    """The key that its connection is set up with."""
    return (given or {}).get("Authorization", "").removeprefix("Bearer ")


async def _get(url: str, key: str) -> Any:
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with (
        aiohttp.ClientSession(timeout=timeout, trust_env=True) as session,
        session.get(url, headers=headers(key)) as response,
    ):
        return await response.json()


async def _models(url: str, key: str) -> dict[str, Any]:
    """Its list, by the id that a chat names."""
    tags, loaded = await asyncio.gather(_get(f"{url}/api/tags", key), _get(f"{url}/api/ps", key))
    if "models" not in tags:
        raise WebUIError(500, f"Ollama: {tags.get('error')}")
    found: dict[str, Any] = {model["model"]: model for model in tags["models"]}
    expires = {model["name"]: model["expires_at"] for model in loaded["models"] if "expires_at" in model}
    for model in found.values():
        if model["name"] in expires:
            # "2026-01-31T12:00:00.123456789Z": with its own parser for such.
            model["expires_at"] = int(datetime.fromisoformat(expires[model["name"]]).timestamp())
    return found


async def _post(url: str, payload: dict[str, Any], key: str, read: Callable[[Any], Awaitable[Any]]) -> Any:
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with (
        aiohttp.ClientSession(trust_env=True, timeout=timeout) as session,
        session.post(url, data=json.dumps(payload), headers=headers(key)) as response,
    ):
        if not response.ok:
            try:
                told = await response.json()
            except (aiohttp.ContentTypeError, ValueError) as error:
                raise WebUIError(response.status, "Open WebUI: Server Connection Error") from error
            raise WebUIError(response.status, told["error"])
        return await read(response)


def _named(model: str) -> str:
    return model if ":" in model else f"{model}:latest"


def chat(url: str, model: str, question: str, headers: dict[str, str] | None = None, **more: Any) -> Any:
    key, name = bearer(headers), _named(model)
    if name not in asyncio.run(_models(url, key)):
        raise WebUIError(400, f"Model '{model}' was not found")
    return asyncio.run(post_chat(url, name, question, key, stream=False, **more))


async def post_chat(url: str, name: str, question: str, key: str = "", **more: Any) -> Any:
    payload = {"model": name, "messages": said(question), "options": GREEDY, **more}
    return await _post(f"{url}/api/chat", payload, key, lambda response: response.json())


def stream(url: str, model: str, question: str, **more: Any) -> Stream:
    """The bytes go on to its page, which reads them as its middleware does: line by line, each a JSON object."""
    payload = {"model": _named(model), "messages": said(question), "options": GREEDY, "stream": True, **more}
    loop = asyncio.new_event_loop()
    lines = _lines(f"{url}/api/chat", payload)
    last: Any = None
    try:
        while True:
            try:
                line = loop.run_until_complete(anext(lines))
            except StopAsyncIteration:
                return last
            last = json.loads(line)
            if "error" in last:
                raise WebUIError(200, last["error"])
            if text := last["message"]["content"]:
                yield text
    finally:
        loop.run_until_complete(lines.aclose())
        loop.close()


async def _lines(url: str, payload: dict[str, Any]) -> Any:
    async with (
        aiohttp.ClientSession(trust_env=True) as session,
        session.post(url, data=json.dumps(payload), headers=headers()) as response,
    ):
        if not response.ok:
            raise WebUIError(response.status, (await response.json())["error"])
        async for line in response.content:
            yield line


def _asked(url: str, path: str, form: dict[str, Any]) -> Any:
    """By requests, as where it shows, embeds or deletes; what is wrong is told as `Ollama: text`."""
    method = "DELETE" if path == "/api/delete" else "POST"
    response = requests.request(method, f"{url}{path}", headers=headers(), data=json.dumps(form).encode(), timeout=60)
    if not response.ok:
        raise WebUIError(response.status_code, f"Ollama: {response.json()['error']}")
    return response.json()


def version(url: str) -> Any:
    told = asyncio.run(_get(f"{url}/api/version", ""))
    # The lowest of several; so that it can be compared it has to look like one.
    return [int(part) for part in told["version"].removeprefix("v").split("-")[0].split(".")]


def unload(url: str, model: str) -> Any:
    payload = {"model": _named(model), "keep_alive": 0, "prompt": ""}
    read = lambda response: response.json()  # noqa: E731
    return asyncio.run(_post(f"{url}/api/generate", payload, "", read))


def tools(url: str, model: str, question: str, result: str) -> Any:
    name = _named(model)
    messages: list[Any] = [*said(question)]

    def ask() -> Any:
        payload = {"model": name, "messages": messages, "options": GREEDY, "stream": False, "tools": TOOLS}
        return asyncio.run(_post(f"{url}/api/chat", payload, "", lambda response: response.json()))["message"]

    first = ask()
    calls = first.get("tool_calls", [])
    messages.append(first)
    messages += [{"role": "tool", "content": result} for _ in calls]
    return {"calls": calls, "then": ask()["content"]}


def thinking(url: str, model: str, question: str, think: Any = True) -> Any:
    message = chat(url, model, question, think=think)["message"]
    return {"thinking": message.get("thinking", ""), "content": message["content"]}


answer(
    {
        "chat": chat,
        "schema": lambda url, model, question: chat(url, model, question, format=SCHEMA)["message"]["content"],
        "tools": tools,
        "thinking": thinking,
        "embed": lambda url, model, text: _asked(url, "/api/embed", {"model": model, "input": [text]}),
        "show": lambda url, model: _asked(url, "/api/show", {"model": model}),
        "models": lambda url: asyncio.run(_models(url, "")),
        "version": version,
        "unload": unload,
        "unknown": lambda url, model, question: asyncio.run(post_chat(url, model, question, stream=False)),
        "bad_option": lambda url, model, question: asyncio.run(
            post_chat(url, model, question, stream=False, options={"num_ctx": "many"})
        ),
    },
    {"stream": stream},
)
