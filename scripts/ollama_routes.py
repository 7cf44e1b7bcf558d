"""The stand-in's HTTP surface: which path does what, and how errors are shaped on each."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web
from ollama_answers import Answers, Dialect, End, Native, OpenAi, Piece, Question, openai_error
from ollama_create import Creation, pull, show, tag
from ollama_runners import Runners
from ollama_store import Model, Store
from ollama_words import VERSION, ApiError, Json, Settings, go_json, request_keep_alive, timestamp

Handle = Callable[[web.Request], Awaitable[web.StreamResponse]]

_NO_EMBEDDINGS = "This server does not support embeddings. Start it with `--embeddings`"
_OWN_NAMES = ("localhost", "")
_OWN_ENDS = (".localhost", ".local", ".internal")
_CHUNK = 2**20


class Server:
    """Ollama's routes over a store and runners."""

    def __init__(self, settings: Settings, store: Store, session: aiohttp.ClientSession) -> None:
        self.settings = settings
        self.store = store
        self.runners = Runners(settings, session)
        self.answers = Answers(settings, self.runners, session)

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._around], client_max_size=2**30)
        app.add_routes(
            [
                web.get("/", self.root),
                web.get("/api/version", self.version),
                web.get("/api/tags", self.tags),
                web.get("/api/ps", self.ps),
                web.post("/api/show", self.show),
                web.head("/api/blobs/{digest}", self.has_blob),
                web.post("/api/blobs/{digest}", self.add_blob),
                web.post("/api/create", self.create),
                web.post("/api/pull", self.pull),
                web.post("/api/copy", self.copy),
                web.delete("/api/delete", self.delete),
                web.post("/api/generate", self.generate),
                web.post("/api/chat", self.chat),
                web.post("/api/embed", self.embed),
                web.post("/api/embeddings", self.embed),
                web.get("/v1/models", self.v1_models),
                web.get("/v1/models/{model}", self.v1_model),
                web.post("/v1/chat/completions", self.v1_chat),
                web.post("/v1/completions", self.v1_completions),
                web.post("/v1/embeddings", self.embed),
            ]
        )
        return app

    @web.middleware
    async def _around(self, request: web.Request, handler: Handle) -> web.StreamResponse:
        """Strangers are refused, errors get their shape, and each request its line on stdout."""
        began = time.monotonic()
        try:
            answer = await handler(request) if self._welcome(request) else web.Response(status=403)
        except ApiError as error:
            openai = request.path.startswith("/v1/")
            answer = _json(openai_error(error) if openai else {"error": error.text}, error.status)
        except web.HTTPNotFound:
            answer = web.Response(status=404, text="404 page not found")
        except web.HTTPMethodNotAllowed as error:
            allowed = ", ".join(sorted(error.allowed_methods - {"HEAD"}))
            answer = web.Response(status=405, text="405 method not allowed", headers={"Allow": allowed})
        stamp, took = time.strftime("%Y/%m/%d - %H:%M:%S"), f"{time.monotonic() - began:.6f}s"
        line = f'{answer.status} | {took:>13} | {request.remote:>15} | {request.method:<8} "{request.path}"'
        sys.stdout.write(f"[GIN] {stamp} | {line}\n")
        sys.stdout.flush()
        return answer

    def _welcome(self, request: web.Request) -> bool:
        """Whether Host and Origin are of this machine; on an address for others, any Host is."""
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).hostname not in ("localhost", "127.0.0.1", "0.0.0.0"):
            return False
        if self.settings.host not in ("localhost", "127.0.0.1", "::1"):
            return True
        host = urlsplit(f"//{request.headers.get('Host', '')}").hostname or ""
        if host in _OWN_NAMES or host.endswith(_OWN_ENDS):
            return True
        try:
            return ipaddress.ip_address(host).is_private
        except ValueError:
            return False

    async def root(self, request: web.Request) -> web.Response:
        return web.Response(text="Ollama is running")

    async def version(self, request: web.Request) -> web.Response:
        return _json({"version": VERSION})

    async def tags(self, request: web.Request) -> web.Response:
        return _json({"models": list(_readable(self.store.models()))})

    async def ps(self, request: web.Request) -> web.Response:
        entries = []
        for runner in self.runners.loaded.values():
            model = runner.model
            entry: Json = {"name": str(model.name), "model": str(model.name), "size": runner.size}
            entry |= {"digest": model.digest, "details": model.details(""), "expires_at": timestamp(runner.expires_at)}
            entry |= {"size_vram": runner.size if self.settings.gpu else 0, "context_length": runner.num_ctx}
            entries.append(entry)
        return _json({"models": entries})

    async def show(self, request: web.Request) -> web.Response:
        body = await _read_body(request, "ShowRequest")
        if not (name := str(body.get("model") or body.get("name") or "")):
            raise ApiError(400, "model is required")
        return _json(show(self.store.find(name, _with_tag(name))))

    async def has_blob(self, request: web.Request) -> web.Response:
        exists = self.store.blob(request.match_info["digest"]).exists()
        return web.Response(status=200 if exists else 404)

    async def add_blob(self, request: web.Request) -> web.Response:
        path = self.store.blob(request.match_info["digest"])
        if path.exists():
            answer = web.Response(status=200)
            answer.force_close()  # the body that nobody reads would be in the way of the next request
            return answer
        partial = path.with_name(f"{path.name}-{os.getpid()}-{time.monotonic_ns()}")
        seen = hashlib.sha256()
        try:
            with partial.open("wb") as file:
                async for chunk in request.content.iter_chunked(_CHUNK):
                    seen.update(chunk)
                    file.write(chunk)
            wanted, found = (f"sha256:{digest}" for digest in (path.name[7:], seen.hexdigest()))
            if found != wanted:
                raise ApiError(400, f'digest mismatch, expected "{wanted}", got "{found}"')
            partial.replace(path)
        except OSError as error:
            # As Go words it; not recorded.
            raise ApiError(500, f"write {partial}: {(error.strerror or str(error)).lower()}") from error
        finally:
            partial.unlink(missing_ok=True)
        return web.Response(status=201)

    async def create(self, request: web.Request) -> web.StreamResponse:
        body = await _read_body(request, "CreateRequest")
        return await self._streamed(request, body, Creation(self.store, body, self.settings.create_s).run())

    async def pull(self, request: web.Request) -> web.StreamResponse:
        body = await _read_body(request, "PullRequest")
        return await self._streamed(request, body, pull(str(body.get("model") or body.get("name") or "")))

    async def _streamed(self, request: web.Request, body: Json, lines: Iterator[Json]) -> web.StreamResponse:
        """The lines as a stream, or the last one alone. An error that comes first, or alone, has its own status."""
        told = _in_thread(lines)
        if body.get("stream") is False:
            return _json([line async for line in told][-1])
        first = await anext(told)
        answer = web.StreamResponse(headers={"Content-Type": Native.content_type})
        await answer.prepare(request)
        await answer.write(f"{go_json(first)}\n".encode())
        try:
            async for line in told:
                await answer.write(f"{go_json(line)}\n".encode())
        except ApiError as error:
            await answer.write(f"{go_json({'error': error.text})}\n".encode())
        await answer.write_eof()
        return answer

    async def copy(self, request: web.Request) -> web.Response:
        body = await _read_body(request, "CopyRequest")
        self.store.copy(str(body.get("source", "")), str(body.get("destination", "")))
        return web.Response()

    async def delete(self, request: web.Request) -> web.Response:
        body = await _read_body(request, "DeleteRequest")
        self.store.delete(str(body.get("model") or body.get("name") or ""))
        return web.Response()

    async def embed(self, request: web.Request) -> web.Response:
        body = await _read_body(request, "EmbedRequest")
        self.store.find(str(body.get("model", "")))
        raise ApiError(501, _NO_EMBEDDINGS)

    async def generate(self, request: web.Request) -> web.StreamResponse:
        body = await _read_body(request, "GenerateRequest")
        model = self._model(body, "generate")
        prompt, dialect = str(body.get("prompt") or ""), Native(str(body["model"]), chat=False)
        raw = prompt if body.get("raw") else None
        system = str(body.get("system") or model.text("system"))
        messages = ([{"role": "system", "content": system}] if system else []) + [{"role": "user", "content": prompt}]
        question = _question(model, body, messages, raw)
        if not prompt:
            return await self._load_only(question, dialect)
        return await self._answer(request, dialect, question, body.get("stream") is not False)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await _read_body(request, "ChatRequest")
        model = self._model(body, "chat")
        dialect = Native(str(body["model"]), chat=True)
        messages = list(body.get("messages") or [])
        question = _question(model, body, _with_system(model, messages), None)
        if not messages:
            return await self._load_only(question, dialect)
        return await self._answer(request, dialect, question, body.get("stream") is not False)

    async def _load_only(self, question: Question, dialect: Native) -> web.Response:
        if question.keep_alive_s == 0:
            self.runners.unload(question.model)
            return _json(dialect.empty("unload"))
        await self.answers.load(question)
        return _json(dialect.empty("load"))

    def _model(self, body: Json, capability: str) -> Model:
        model = self.store.find(str(body.get("model", "")))
        if "completion" not in model.capabilities:
            raise ApiError(400, f'"{body["model"]}" does not support {capability}')
        if body.get("think") and "thinking" not in model.capabilities:
            raise ApiError(400, f'"{body["model"]}" does not support thinking')
        if body.get("tools"):
            known = "tools" in model.capabilities
            refused = f"{model.name.full} does not support tools"
            raise ApiError(501 if known else 400, "the stand-in does not call tools" if known else refused)
        return model

    async def v1_models(self, request: web.Request) -> web.Response:
        entries = [_v1_entry(str(model.name), model) for model in self.store.models()]
        return _json({"object": "list", "data": entries or None})

    async def v1_model(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        return _json(_v1_entry(name, self.store.find(name, _with_tag(name))))

    async def v1_chat(self, request: web.Request) -> web.StreamResponse:
        body = await _read_body(request, "ChatCompletionRequest")
        if not (messages := list(body.get("messages") or [])):
            raise ApiError(400, "[] is too short - 'messages'")
        model = self._model(body, "chat")
        question = _v1_question(model, body, _with_system(model, messages))
        return await self._v1_answer(request, body, question, chat=True)

    async def v1_completions(self, request: web.Request) -> web.StreamResponse:
        body = await _read_body(request, "CompletionRequest")
        model = self._model(body, "generate")
        messages = _with_system(model, [{"role": "user", "content": str(body.get("prompt", ""))}])
        return await self._v1_answer(request, body, _v1_question(model, body, messages), chat=False)

    async def _v1_answer(self, request: web.Request, body: Json, question: Question, chat: bool) -> web.StreamResponse:
        with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        dialect = OpenAi(str(body["model"]), chat, with_usage)
        return await self._answer(request, dialect, question, bool(body.get("stream")))

    async def _answer(
        self, request: web.Request, dialect: Dialect, question: Question, stream: bool
    ) -> web.StreamResponse:
        """The answer, whole or streamed; a stream begins with the first token, so errors before it have a status."""
        async with aclosing(self.answers.ask(question)) as items:  # type: ignore[type-var]
            if stream:
                return await _stream(request, dialect, items)
            text = thinking = ""
            async for item in items:
                if isinstance(item, End):
                    return _json(dialect.whole(Piece(text, thinking), item))
                text += item.text
                thinking += item.thinking
        raise ApiError(500, "the runner's answer has no end")


async def _in_thread(lines: Iterator[Json]) -> AsyncIterator[Json]:
    """The lines as they come; whoever makes them goes on to the end, whether or not somebody still listens."""
    loop, told = asyncio.get_running_loop(), asyncio.Queue[Json | ApiError | None]()

    def tell(line: Json | ApiError | None) -> None:
        loop.call_soon_threadsafe(told.put_nowait, line)

    def work() -> None:
        try:
            for line in lines:
                tell(line)
        except ApiError as error:
            tell(error)
        except OSError as error:
            tell(ApiError(500, f"{error.filename}: {(error.strerror or str(error)).lower()}"))
        tell(None)

    threading.Thread(target=work, daemon=True).start()
    while (line := await told.get()) is not None:
        if isinstance(line, ApiError):
            raise line
        yield line


async def _stream(request: web.Request, dialect: Dialect, items: AsyncIterator[Piece | End]) -> web.StreamResponse:
    first = await anext(items)
    answer = web.StreamResponse(headers={"Content-Type": dialect.content_type})
    await answer.prepare(request)

    async def write(item: Piece | End) -> None:
        for line in dialect.last(item) if isinstance(item, End) else [dialect.part(item)]:
            await answer.write(dialect.frame(go_json(line)))

    try:
        await write(first)
        async for item in items:
            await write(item)
        await answer.write(dialect.closing)
    except ApiError as error:
        if isinstance(dialect, Native):
            await answer.write(dialect.frame(go_json(dialect.error(error))))
    await answer.write_eof()
    return answer


def _question(model: Model, body: Json, messages: list[Json], raw: str | None) -> Question:
    think = body.get("think")
    return Question(
        model,
        tuple(messages),
        raw,
        options=dict(body.get("options") or {}),
        keep_alive_s=request_keep_alive(body.get("keep_alive")),
        think=None if think is None or "thinking" not in model.capabilities else bool(think),
        format=body.get("format") or None,
        wants_context="prompt" in body and raw is None,
        truncate=body.get("truncate") is not False,
    )


def _v1_question(model: Model, body: Json, messages: list[Json]) -> Question:
    """Ollama's /v1 asks for temperature 1 and top_p 1 where the request does not say, whatever the model's own are."""
    options: Json = {"temperature": 1.0, "top_p": 1.0}
    names = ("temperature", "top_p", "seed", "frequency_penalty", "presence_penalty")
    options |= {name: body[name] for name in names if body.get(name) is not None}
    if body.get("max_tokens") is not None:
        options["num_predict"] = body["max_tokens"]
    if stop := body.get("stop"):
        options["stop"] = [stop] if isinstance(stop, str) else list(stop)
    wanted = body.get("response_format") or {}
    schema = (wanted.get("json_schema") or {}).get("schema")
    return Question(
        model,
        tuple(messages),
        options=options,
        format="json" if wanted.get("type") == "json_object" else schema,
    )


def _with_system(model: Model, messages: list[Json]) -> list[Json]:
    system = model.text("system")
    if not system or (messages and messages[0].get("role") == "system"):
        return messages
    return [{"role": "system", "content": system}, *messages]


def _v1_entry(name: str, model: Model) -> Json:
    return {"id": name, "object": "model", "created": int(model.modified), "owned_by": model.name.namespace}


def _readable(models: list[Model]) -> Iterator[Json]:
    """Entries of the models whose weights are there."""
    for model in models:
        try:
            yield tag(model)
        except ApiError as error:
            sys.stderr.write(f"{model.name}: {error.text}\n")


def _with_tag(name: str) -> str:
    return name if ":" in name else f"{name}:latest"


def _json(value: Json, status: int = 200) -> web.Response:
    return web.Response(status=status, body=go_json(value).encode(), content_type="application/json", charset="utf-8")


_GO_TYPES: dict[type, str] = {
    bool: "bool",
    int: "number",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
}


async def _read_body(request: web.Request, kind: str) -> Json:
    """The request's JSON object. ApiError (400) in Go's words."""
    data = await request.read()
    if not data.strip():
        raise ApiError(400, "missing request body")
    try:
        body: Any = json.loads(data)
    except ValueError as error:
        at_end = isinstance(error, json.JSONDecodeError) and not error.doc[error.pos :].strip()
        raise ApiError(400, "unexpected EOF" if at_end else "invalid character in JSON") from None
    if not isinstance(body, dict):
        raise ApiError(400, f"json: cannot unmarshal {_GO_TYPES.get(type(body), 'null')} into Go value")
    for name in ("model", "prompt", "system", "from"):
        value = body.get(name)
        if value is not None and not isinstance(value, str):
            given = _GO_TYPES[type(value)]
            raise ApiError(400, f"json: cannot unmarshal {given} into Go struct field {kind}.{name} of type string")
    return body
