"""A llama.cpp server over one GGUF file, for tests that ask what it makes of it."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SERVER = """
import sys
import xllamacpp

params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx = 256
params.warmup = False
params.ui = False
params.port = 0
params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 0.0) for path in sys.argv[2:]]
params.cache_ram_mib = 0  # the cache in RAM is not keyed by adapter
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


@contextmanager
def serving(model: Path, *adapters: Path) -> Iterator[str]:
    """The address of a server that has loaded `model` and adapters, which count only where a request says so; it is
    gone when the block ends."""
    log = model.with_suffix(".log")
    arguments = [sys.executable, "-c", SERVER, str(model), *map(str, adapters)]
    with (
        log.open("wb") as errors,
        subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True) as child,
    ):
        assert child.stdout is not None
        address = child.stdout.readline().strip()
        try:
            assert address.startswith("http://127.0.0.1:"), log.read_text()[-2000:]
            yield address
        finally:
            child.kill()


def post(url: str, body: dict[str, object]) -> dict[str, Any]:
    """The server's answer."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return dict(json.loads(response.read()))
