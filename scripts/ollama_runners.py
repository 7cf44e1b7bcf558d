"""The stand-in's runners: llama.cpp as one process per base, who gets it when, and how long it stays.

As in Ollama, requests that need a runner are served one after another. A runner belongs to a base blob: a request for
another adapter set or context over the same base lets the requests in flight end, kills the runner and starts another.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from ollama_store import Model
from ollama_words import FOREVER_S, ApiError, Settings, log

MODULE = "orchestrator.drivers.local.llamacpp_server"
_KV_TYPES = ("", "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
_MOST_SLOTS = 256
# What Ollama copies from a dead runner's output into its answer; all else stands in its log only.
_TELLING = ("out of memory", "cudaMalloc failed", "failed to allocate", "allocation failed", "insufficient memory")
_DIED = "llama-server process has terminated"
# How long a loaded runner may take to say that it lives, before another one is started in its place.
_PING = aiohttp.ClientTimeout(total=10)


@dataclass(eq=False)
class Runner:
    """A llama.cpp process for `model`, the first that was asked for. `busy` requests use it.

    `expires_at` is in seconds of the epoch.
    """

    model: Model
    num_ctx: int
    parallel: int
    keep_alive_s: float
    process: asyncio.subprocess.Process
    port: int
    said: deque[str] = field(default_factory=lambda: deque(maxlen=200))
    reader: asyncio.Task[None] | None = None
    busy: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    expires_at: float = 0.0
    timer: asyncio.TimerHandle | None = None

    @property
    def key(self) -> Path:
        return self.model.weights or Path()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def lora(self) -> list[dict[str, float]]:
        """All adapters at full scale: without it llama.cpp takes the plain weights."""
        return [{"id": number, "scale": 1.0} for number in range(len(self.model.adapters))]

    @property
    def size(self) -> int:
        """Bytes of weights, adapters and KV cache."""
        files = (self.key, *self.model.adapters)
        return sum(path.stat().st_size for path in files if path.exists()) + self.model.gguf.kv_bytes(
            self.num_ctx * self.parallel
        )

    def serves(self, model: Model, num_ctx: int) -> bool:
        alive = self.process.returncode is None
        return alive and self.num_ctx == num_ctx and self.model.adapters == model.adapters


@dataclass(eq=False)
class _Request:
    model: Model
    num_ctx: int
    keep_alive_s: float | None
    granted: asyncio.Future[Runner]


class Runners:
    """All runners. `start` begins to serve requests; `kill` is for the end of the program."""

    def __init__(self, settings: Settings, session: aiohttp.ClientSession) -> None:
        self.settings = settings
        self.loaded: dict[Path, Runner] = {}
        self._session = session
        self._requests: deque[_Request] = deque()
        self._requested = asyncio.Event()
        self._freed = asyncio.Event()
        self._starting: asyncio.subprocess.Process | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self._do(self._serve())

    def kill(self) -> None:
        """Ends all processes at once."""
        processes = [runner.process for runner in self.loaded.values()]
        for process in [*processes, *([self._starting] if self._starting else [])]:
            if process.returncode is None:
                process.kill()

    @asynccontextmanager
    async def lease(self, model: Model, num_ctx: int, keep_alive_s: float | None) -> AsyncIterator[Runner]:
        """A loaded runner for one request. ApiError: 503 with a full queue, 500 if it cannot be loaded."""
        if len(self._requests) >= self.settings.max_queue:
            raise ApiError(503, "server busy, please try again.  maximum pending requests exceeded")
        request = _Request(model, num_ctx, keep_alive_s, asyncio.get_running_loop().create_future())
        self._requests.append(request)
        self._requested.set()
        try:
            runner = await request.granted
        except asyncio.CancelledError:
            self._give_up(request)
            raise
        try:
            yield runner
        finally:
            self._release(runner)

    def _give_up(self, request: _Request) -> None:
        """The client left; the runner may have been granted in the same moment."""
        if request in self._requests:
            self._requests.remove(request)
        elif request.granted.done() and not request.granted.cancelled() and request.granted.exception() is None:
            self._release(request.granted.result())

    def unload(self, model: Model) -> None:
        """Lets the runner of the model's base go as soon as no request uses it."""
        runner = self.loaded.get(model.weights or Path())
        if runner is not None:
            runner.keep_alive_s = 0.0
            runner.expires_at = time.time()
            if not runner.busy:
                self._do(self._end(runner))

    async def _serve(self) -> None:
        while True:
            while not self._requests:
                self._requested.clear()
                await self._requested.wait()
            request = self._requests.popleft()
            try:
                runner = await self._runner_for(request)
            except ApiError as error:
                if not request.granted.done():
                    request.granted.set_exception(error)
                continue
            self._take(runner, request.keep_alive_s)
            if request.granted.done():
                self._release(runner)
            else:
                request.granted.set_result(runner)

    async def _runner_for(self, request: _Request) -> Runner:
        key = request.model.weights or Path()
        runner = self.loaded.get(key)
        if runner is not None and runner.serves(request.model, request.num_ctx) and await self._answers(runner):
            return runner
        if runner is not None:
            runner.keep_alive_s = 0.0
            await runner.idle.wait()
            await self._end(runner)
        while len(self.loaded) >= self.settings.max_loaded:
            free = [other for other in self.loaded.values() if not other.busy]
            if free:
                await self._end(min(free, key=lambda other: other.keep_alive_s))
            else:
                self._freed.clear()
                await self._freed.wait()
        keep = self.settings.keep_alive_s if request.keep_alive_s is None else request.keep_alive_s
        return await self._load(request, keep)

    def _take(self, runner: Runner, keep_alive_s: float | None) -> None:
        if runner.timer is not None:
            runner.timer.cancel()
        if keep_alive_s is not None:
            runner.keep_alive_s = keep_alive_s
        runner.busy += 1
        runner.idle.clear()
        runner.expires_at = time.time() + runner.keep_alive_s

    def _release(self, runner: Runner) -> None:
        runner.busy -= 1
        if runner.busy:
            return
        runner.idle.set()
        self._freed.set()
        runner.expires_at = time.time() + runner.keep_alive_s
        if runner.keep_alive_s <= 0:
            self._do(self._end(runner))
        elif runner.keep_alive_s < FOREVER_S:
            loop = asyncio.get_running_loop()
            runner.timer = loop.call_later(runner.keep_alive_s, lambda: self._do(self._end(runner)))

    async def _end(self, runner: Runner) -> None:
        if runner.busy or self.loaded.get(runner.key) is not runner:
            return
        del self.loaded[runner.key]
        if runner.timer is not None:
            runner.timer.cancel()
        if runner.reader is not None:
            runner.reader.cancel()
        if runner.process.returncode is None:
            runner.process.kill()
        await runner.process.wait()

    async def _load(self, request: _Request, keep_alive_s: float) -> Runner:
        try:
            runner = await self._start(request, keep_alive_s)
        except ApiError as error:
            log("INFO", "sched.go:641", "Load failed", model=request.model.weights, error=error.text)
            raise
        runner.idle.set()
        self.loaded[runner.key] = runner
        return runner

    async def _start(self, request: _Request, keep_alive_s: float) -> Runner:
        self._check()
        model, num_ctx = request.model, request.num_ctx
        parallel = self.settings.parallel
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        argv = [sys.executable, "-m", MODULE, f"--model={model.weights}", f"--alias={model.name}", f"--port={port}"]
        argv += [f"--ctx-size={num_ctx * parallel}", f"--parallel={parallel}"]
        argv += [f"--lora={path}" for path in model.adapters]
        thinks = json.loads(self.settings.template_kwargs or "{}").get("enable_thinking")
        argv += [f"--enable-thinking={json.dumps(thinks)}"] if thinks is not None else []
        log("INFO", "llama_server.go:433", "starting llama-server", cmd=" ".join(argv))
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
        )
        self._starting = process
        runner = Runner(model, num_ctx, parallel, keep_alive_s, process, port)
        runner.reader = self._do(self._read(runner))
        try:
            await self._wait_until_it_serves(runner, request)
        finally:
            self._starting = None
        return runner

    def _check(self) -> None:
        """What llama-server refuses by itself, and llama.cpp's server in this stand-in is never asked for."""
        kind, flash = self.settings.kv_cache_type, self.settings.flash_attention
        if kind not in _KV_TYPES:
            sys.stderr.write(f'error while handling argument "--cache-type-k": Unsupported cache type: {kind}\n')
            raise ApiError(500, f"{_DIED}: exit status 1")
        if flash == "off" and kind not in ("", "f32", "f16", "bf16"):
            line = "llama_init_from_model: quantized V cache requires flash_attn to be enabled"
            raise ApiError(500, f"{_DIED}: exit status 1: {line}\n{line}")
        if self.settings.parallel > _MOST_SLOTS:
            line = "llama_init_from_model: failed to initialize the context: n_seq_max must be <= 256"
            raise ApiError(500, f"{_DIED}: {line}: {line}")

    async def _wait_until_it_serves(self, runner: Runner, request: _Request) -> None:
        began = time.monotonic()
        while runner.process.returncode is None:
            if request.granted.cancelled():
                # It is for this client that it was loaded; the next one begins anew.
                runner.process.kill()
                log("WARN", "server.go:1220", "client connection closed before server finished loading, aborting load")
                raise ApiError(499, "timed out waiting for llama runner to start: context canceled")
            if time.monotonic() - began > self.settings.load_timeout_s:
                runner.process.kill()
                raise ApiError(500, "timed out waiting for llama-server to start")
            if time.monotonic() - began >= self.settings.load_s and await self._answers(runner):
                return
            await asyncio.sleep(0.03)
        if runner.reader is not None:
            await runner.reader
        telling = [line for line in runner.said if any(mark in line for mark in _TELLING)]
        raise ApiError(
            500, ": ".join([f"{_DIED}: {_status(runner.process)}", *(["\n".join(telling)] if telling else [])])
        )

    async def _answers(self, runner: Runner) -> bool:
        try:
            async with self._session.get(f"{runner.url}/health", timeout=_PING) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def _read(self, runner: Runner) -> None:
        """Copies what the process says into our log, and tells there when it ends by itself."""
        assert runner.process.stderr is not None
        async for line in runner.process.stderr:
            os.write(2, line)
            runner.said.append(line.decode(errors="replace").rstrip())
        await runner.process.wait()
        log("ERROR", "llama_server.go:1023", "llama-server terminated", error=_status(runner.process))

    def _do(self, work: object) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _status(process: asyncio.subprocess.Process) -> str:
    code = process.returncode or 0
    return "signal: killed" if code == -9 else f"exit status {code}"
