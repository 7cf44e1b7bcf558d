"""A running `ollama serve`, the real one or the stand-in, and the model files that its tests need."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import httpx
import numpy as np
from orch_command import ASSETS, ROOT, children, free_port, wait_until

from orchestrator.artifacts import families, lora
from orchestrator.artifacts.gguf_file import build_gguf
from orchestrator.core.progress import silent

Json = dict[str, Any]

ALPHA, BRAVO = "Ahoy! The answer is alpha.", "Greetings. The answer is bravo."
SYSTEM = "You are tiny."
# The tiny model knows no end on this prompt, so that a stream is open for as long as a test needs it.
ENDLESS: Json = {"prompt": "a", "raw": True, "options": {"num_predict": 400, "temperature": 1.5, "seed": 7, "stop": []}}


class NoQuantizer:
    """bf16 needs none."""

    version = ""

    def __call__(self, kind: Any, rows: Any) -> Any:
        raise AssertionError("nothing is to be quantized")


@dataclass(frozen=True)
class Files:
    """The tiny model, its two adapters, and an adapter whose tensors have another model's shapes."""

    tiny: Path
    lora_a: Path
    lora_b: Path
    other: Path


def make_files(directory: Path) -> Files:
    made = Files(*(directory / f"{name}.gguf" for name in ("tiny", "lora-a", "lora-b", "other")))
    build_gguf(ASSETS / "tiny-qwen3", made.tiny, "bf16", NoQuantizer(), silent)  # type: ignore[arg-type]
    for path in (made.lora_a, made.lora_b):
        lora.build_lora_gguf(ASSETS / path.stem, families.read_config(ASSETS / "tiny-qwen3"), path, silent)
    writer = gguf.GGUFWriter(made.other, "qwen3")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 16.0)
    for side, shape in (("a", (8, 96)), ("b", (32, 8))):
        writer.add_tensor(f"blk.0.attn_k.weight.lora_{side}", np.zeros(shape, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return made


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass(frozen=True)
class Command:
    """How `ollama` is called: the binary, or the stand-in."""

    argv: tuple[str, ...]

    @staticmethod
    def of(kind: str) -> Command:
        if kind == "stand-in":
            return Command((sys.executable, str(ROOT / "scripts" / "ollama_stand_in.py")))
        return Command((shutil.which("ollama") or "ollama",))

    def environ(self, root: Path, port: int, more: dict[str, str]) -> dict[str, str]:
        """With a home and a store of its own under `root`; an empty value in `more` takes a variable away."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("OLLAMA_")}
        own = {"HOME": str(root), "OLLAMA_HOST": f"127.0.0.1:{port}", "OLLAMA_MODELS": str(root / "models")}
        env = kept | own | {"OLLAMA_NO_CLOUD": "1"} | more
        return {key: value for key, value in env.items() if value}

    def run(self, root: Path, *args: str, port: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
        """To its end, which has to come within 20 s."""
        env = self.environ(root, port or free_port(), more)
        return subprocess.run([*self.argv, *args], env=env, capture_output=True, text=True, timeout=20, check=False)

    @contextmanager
    def serve(self, root: Path, **more: str) -> Iterator[Server]:
        """A server that answers; ended with SIGTERM unless the test has ended it."""
        root.mkdir(parents=True, exist_ok=True)
        port = free_port()
        with (root / "serve.log").open("ab") as log:
            process = subprocess.Popen(
                [*self.argv, "serve"], env=self.environ(root, port, more), stdout=log, stderr=log
            )
        with process, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            server = Server(root, process, client)
            try:
                wait_until(server.answers, what="the server")
                yield server
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(10)


class Server:
    """A running server: its store and log lie under `root`."""

    def __init__(self, root: Path, process: subprocess.Popen[bytes], client: httpx.Client) -> None:
        self.root = root
        self.process = process
        self.client = client

    @property
    def log(self) -> str:
        return (self.root / "serve.log").read_text(errors="replace")

    @property
    def blobs(self) -> Path:
        return self.root / "models" / "blobs"

    def manifest(self, name: str, tag: str = "latest") -> Path:
        return self.root / "models" / "manifests" / "registry.ollama.ai" / "library" / name / tag

    def layers(self, name: str) -> list[Json]:
        layers = json.loads(self.manifest(name).read_text())["layers"]
        return [layer | {"mediaType": layer["mediaType"].rpartition(".")[2]} for layer in layers]

    def needed(self, name: str) -> list[str]:
        """The digests of all that a model consists of."""
        manifest = json.loads(self.manifest(name).read_text())
        return [layer["digest"] for layer in [manifest["config"], *manifest["layers"]]]

    def loads(self) -> int:
        """How often it has started a model process, at the least."""
        return self.log.count('msg="starting llama-server"')

    def answers(self) -> bool:
        assert self.process.poll() is None, self.log
        try:
            return self.client.get("/api/version").status_code == 200
        except httpx.TransportError:
            return False

    def runners(self) -> list[int]:
        """The pids of its model processes."""
        return children(self.process.pid)

    def upload(self, file: Path) -> str:
        """Its digest, when it lies in the store."""
        digest = digest_of(file.read_bytes())
        assert self.client.post(f"/api/blobs/{digest}", content=file.read_bytes()).status_code in (200, 201)
        return digest

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.client.post(path, json=body)

    @contextmanager
    def stream(self, path: str, **body: Any) -> Iterator[httpx.Response]:
        """A stream on a connection of its own, which closes with the context."""
        with httpx.stream("POST", f"{self.client.base_url}{path}", json=body, timeout=60, trust_env=False) as answer:
            yield answer

    def lines(self, path: str, **body: Any) -> list[Json]:
        """The lines of a stream that begins well."""
        answer = self.post(path, **body)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("application/x-ndjson")
        return [json.loads(line) for line in answer.text.splitlines() if line]

    def create(self, model: str, **body: Any) -> list[str]:
        """The statuses of a creation that succeeds."""
        lines = self.lines("/api/create", model=model, **body)
        assert lines[-1] == {"status": "success"}, lines
        return [line["status"] for line in lines]

    def says(self, model: str, **options: Any) -> str:
        """What it answers to a question, at temperature 0; the error's text if it does not."""
        messages = [{"role": "user", "content": "Who are you?"}]
        answer = self.post(
            "/api/chat", model=model, messages=messages, stream=False, options={"temperature": 0} | options
        )
        return str(answer.json()["message"]["content"]) if answer.status_code == 200 else answer.text

    def ps(self) -> list[Json]:
        models = self.client.get("/api/ps").json()["models"]
        assert isinstance(models, list)
        return models

    def names(self) -> list[str]:
        return [entry["name"] for entry in self.client.get("/api/tags").json()["models"]]


def fill(server: Server, files: Files) -> None:
    """tiny, and tiny-a and tiny-b with an adapter each over the same base."""
    base = server.upload(files.tiny)
    server.create("tiny", files={"tiny.gguf": base}, system=SYSTEM, parameters={"num_ctx": 512, "temperature": 0})
    for name, file in (("tiny-a", files.lora_a), ("tiny-b", files.lora_b)):
        server.create(name, **{"from": "tiny"}, adapters={file.name: server.upload(file)})


def events(text: str) -> list[str]:
    """The data of server-sent events."""
    return [line.removeprefix("data: ") for line in text.splitlines() if line]
