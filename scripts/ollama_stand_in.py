"""A stand-in for the ollama binary: `ollama serve` as its clients see it, over real llama.cpp.

    python scripts/ollama_stand_in.py serve        and `--version`; any other command is refused

For machines where Ollama's binary cannot be had. tests/ollama_api is its contract, which the real binary has to pass
too. It reads Ollama's environment, keeps a store of Ollama's layout and starts orch's llama.cpp server as a child per
loaded model, so the Python that runs it must have orch installed. It "sees a GPU" where /dev/nvidiactl exists. What it
leaves out: pulling, quantizing, embedding, tools, images, Go templates but two (with any other the GGUF's own is what
renders a prompt), going on past the end of the context, and /v1/responses and /v1/messages (404).
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import aiohttp
from aiohttp import web
from ollama_routes import Server
from ollama_store import Store
from ollama_words import VERSION, Settings, log, write_key_pair

GPU_DEVICE = Path("/dev/nvidiactl")


def main(argv: Sequence[str]) -> int:
    """Exit code: 0 after SIGTERM or SIGINT, 1 with a line `Error: ...` on stderr for all that goes wrong."""
    if list(argv) in (["--version"], ["-v"]):
        print(f"ollama version is {VERSION}")
        return 0
    if list(argv) not in (["serve"], ["start"]):
        return _fail(f'unknown command "{argv[0] if argv else ""}" for "ollama"')
    try:
        settings = Settings.read(os.environ, GPU_DEVICE.exists())
    except KeyError:
        return _fail("$HOME is not defined")
    try:
        write_key_pair(settings.home)
    except OSError as error:
        return _fail(f"could not create directory mkdir {error.filename}: {(error.strerror or str(error)).lower()}")
    try:
        listener = _listen(settings.host, settings.port)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        return _fail(f"listen tcp {settings.host}:{settings.port}: bind: {reason}")
    log("INFO", "routes.go:1951", "server config", env=settings.shown(os.environ))
    store = Store(settings.models)
    try:
        for directory in (store.blobs, store.manifests):
            directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        return _fail(f"mkdir {settings.models}: {reason}: ensure path elements are traversable")
    asyncio.run(_serve(settings, store, listener))
    return 0


def _fail(text: str) -> int:
    sys.stderr.write(f"Error: {text}\n")
    return 1


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host.strip("[]"), port))
    listener.listen(128)
    return listener


async def _serve(settings: Settings, store: Store, listener: socket.socket) -> None:
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector, trust_env=False) as session:
        server = Server(settings, store, session)

        def end() -> None:
            # At once, as Ollama does: streams that are open are cut.
            server.runners.kill()
            os._exit(0)

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, end)
        runner = web.AppRunner(server.application(), handler_cancellation=True, access_log=None)
        await runner.setup()
        server.runners.start()
        blobs = len(list(store.blobs.iterdir()))
        log("INFO", "images.go:919", f"total blobs: {blobs}")
        log("INFO", "images.go:926", f"total unused blobs removed: {store.prune() if settings.prune else 0}")
        await web.SockSite(runner, listener).start()
        log("INFO", "routes.go:2008", f"Listening on {settings.host}:{settings.port} (version {VERSION})")
        _tell_compute(settings)
        await asyncio.Event().wait()


def _tell_compute(settings: Settings) -> None:
    """What Ollama says of the hardware. Without a GPU this is all: there is no warning."""
    log("INFO", "runner.go:60", "discovering available GPUs...")
    memory = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB"
    fields = {"id": "cpu", "library": "cpu", "compute": "", "name": "cpu", "description": "cpu", "libdirs": "ollama"}
    if settings.gpu:
        fields |= {"id": "GPU-0", "library": "CUDA", "compute": "8.9", "name": "CUDA0", "description": "stand-in GPU"}
        memory = "24.0 GiB"
    fields |= {"driver": "", "pci_id": "", "type": "", "total": memory, "available": memory}
    log("INFO", "types.go:50", "inference compute", **fields)
    total, context = ("24.0 GiB", 32768) if settings.gpu else ("0 B", 4096)
    log("INFO", "routes.go:2058", "vram-based default context", total_vram=total, default_num_ctx=context)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
