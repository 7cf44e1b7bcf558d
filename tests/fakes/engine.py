"""The HTTP side of an engine in memory, and the store that an Ollama keeps."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.core.deployment import Deployment
from orchestrator.drivers.base import Reply

MODEL_BYTES = 5_000_000


@dataclass
class OllamaStore:
    """What an Ollama keeps on disk, over restarts: digests of blobs, and models by their tag, each with its blobs."""

    blobs: set[str] = field(default_factory=set)
    models: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def prune(self) -> None:
        """As the deletion of a model does: what no other needs goes with it; an upload is of none."""
        self.blobs = {blob for blobs in self.models.values() for blob in blobs} & self.blobs


class EngineServer:
    """One started engine. vLLM's adapters come from its serve.yaml, as the real one's do, Ollama's models from its
    store; `asked` are the bodies of all chats so far. Ollama with `on_gpu` false has fallen back to the CPU; with
    `hangs` (a model's tag) what it has loaded answers nothing; `unloaded`: it was told to have nothing in memory; vLLM
    `sleeps` where it was told to."""

    def __init__(
        self, deployment: Deployment, files: Mapping[str, str], kept: OllamaStore, on_gpu: bool | None = None
    ) -> None:
        self.deployment = deployment
        self.kept = kept
        self.asked: list[dict[str, Any]] = []
        self.adapters = dict(_lora_modules(files.get("serve.yaml", "")))
        self._on_gpu = deployment.accelerator != "cpu" if on_gpu is None else on_gpu
        self._in_memory = self.hangs = ""
        self.unloaded = self.sleeps = False

    def get(self, path: str) -> Reply:
        body: Any = {}
        match self.deployment.engine, path:
            case _, "/health":
                body = {"status": "ok"}
            case "ollama", "/api/version":
                body = {"version": "0.40.2"}
            case "ollama", "/api/tags":
                body = {"models": [{"name": name} for name in sorted(self.kept.models)]}
            case "ollama", "/api/ps":
                loaded = self.hangs or ("" if self.unloaded else self._in_memory)
                one = {"name": loaded, "size": MODEL_BYTES, "size_vram": MODEL_BYTES if self._on_gpu else 0}
                body = {"models": [one] if loaded else []}
            case "llamacpp", "/props":
                body = {"model_path": self.deployment.model_path}
            case "vllm", "/v1/models":
                base = {"id": self.deployment.served_name, "root": self.deployment.model_path, "parent": None}
                added = [{"id": n, "root": p, "parent": base["id"]} for n, p in self.adapters.items()]
                body = {"object": "list", "data": [base, *added]}
            case "vllm", "/is_sleeping" if self.deployment.asleep is not None:
                body = {"is_sleeping": self.sleeps}
            case _:
                return _reply(404, {"error": {"message": f"no {path}"}})
        return _reply(200, body)

    def send(self, method: str, path: str, content: Mapping[str, Any] | Path | None) -> Reply | None:
        if self.hangs and path in ("/v1/chat/completions", "/api/generate"):
            return None
        if self.deployment.engine == "ollama" and path.startswith("/api/"):
            return self._ollama(method, path, content)
        if method == "POST" and not isinstance(content, Path):
            return self.post(path, dict(content or {}))
        return _reply(405, {"error": {"message": f"no {method} {path}"}})

    def post(self, path: str, body: dict[str, Any]) -> Reply:
        if self.deployment.asleep is not None and path in ("/sleep", "/wake_up"):
            self.sleeps = path == "/sleep"
            return _reply(200, {"status": "sleeping" if self.sleeps else "awake"})
        if self.sleeps:
            # The real one dies of it.
            return _reply(500, {"error": {"message": "EngineCore encountered an issue."}})
        if path == "/v1/chat/completions":
            self.asked.append(body)
            return self._chat(str(body.get("model")), formed="response_format" in body)
        if self.deployment.engine == "vllm" and path == "/v1/load_lora_adapter":
            if body["lora_name"] in self.adapters and not body.get("load_inplace"):
                return _reply(400, {"error": {"message": f"The lora adapter {body['lora_name']} is loaded already"}})
            self.adapters[body["lora_name"]] = body["lora_path"]
            return _reply(200, None)
        if self.deployment.engine == "vllm" and path == "/v1/unload_lora_adapter":
            if self.adapters.pop(body["lora_name"], None) is None:
                return _reply(404, {"error": {"message": f"The lora adapter {body['lora_name']} cannot be found"}})
            return _reply(200, None)
        return _reply(404, {"error": {"message": f"no {path}"}})

    def _ollama(self, method: str, path: str, content: Mapping[str, Any] | Path | None) -> Reply:
        blob = path.removeprefix("/api/blobs/")
        if blob != path:
            known = blob in self.kept.blobs
            if method == "HEAD":
                return _reply(200 if known else 404, None)
            assert isinstance(content, Path), "a blob is a file's bytes"
            self.kept.blobs.add(blob)
            return _reply(200 if known else 201, None)
        assert content is not None
        assert not isinstance(content, Path), "only a blob is a file's bytes"
        name = str(content["model"])
        if (method, path) == ("POST", "/api/generate") and content.get("keep_alive") == 0:
            self.unloaded = True
            return _reply(200, {"model": name, "response": "", "done": True, "done_reason": "unload"})
        if (method, path) == ("POST", "/api/create"):
            return self._create(name, content)
        if (method, path) == ("DELETE", "/api/delete"):
            if self.kept.models.pop(tagged(name), None) is None:
                return _reply(404, {"error": f"model '{tagged(name)}' not found"})
            self.kept.prune()
            return _reply(200, None)
        if (method, path) == ("POST", "/api/show"):
            blobs = self.kept.models.get(tagged(name))
            if blobs is None or not self.kept.blobs.issuperset(blobs):
                return _reply(404, {"error": f"model '{tagged(name)}' not found"})
            return _reply(200, {"modelfile": "".join(f"FROM /blobs/{blob.replace(':', '-')}\n" for blob in blobs)})
        return Reply(404, None, "404 page not found")

    def _create(self, name: str, body: Mapping[str, Any]) -> Reply:
        """A stream of lines; one that has begun tells its errors under 200."""
        base = self.kept.models.get(tagged(str(body["from"]))) if "from" in body else ()
        if base is None:
            return _lines({"status": "pulling manifest"}, {"error": "pull model manifest: file does not exist"})
        files, adapters = body.get("files", {}).values(), body.get("adapters", {}).values()
        for blob in (*files, *adapters):
            if blob not in self.kept.blobs:
                return _lines({"status": "parsing GGUF"}, {"error": f"open /blobs/{blob}: no such file or directory"})
        # A model's file is written anew, with other bytes.
        added = [*(f"sha256:{blob[:6:-1]}" for blob in files), *adapters]
        self.kept.blobs |= {*added}
        self.kept.models[tagged(name)] = (*base, *added)
        told = ({"status": f"using existing layer {blob}"} for blob in added)
        return _lines({"status": "parsing GGUF"}, *told, {"status": "writing manifest"}, {"status": "success"})

    def _chat(self, name: str, formed: bool) -> Reply:
        known = {self.deployment.served_name, *self.adapters}
        if self.deployment.engine == "ollama":
            if tagged(name) not in self.kept.models:
                return _reply(404, {"error": {"message": f"model '{name}' not found"}})
            self._in_memory, self.unloaded = tagged(name), False
        # llama.cpp answers to any name.
        elif self.deployment.engine != "llamacpp" and name not in known:
            return _reply(404, {"error": {"message": f"The model `{name}` does not exist."}})
        said = '{"answer": "yes"}' if formed else "."
        return _reply(200, {"model": name, "choices": [{"message": {"content": said}, "finish_reason": "stop"}]})


def tagged(name: str) -> str:
    """A model's name as Ollama lists it."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _lora_modules(text: str) -> Iterator[tuple[str, str]]:
    """(name, path) of the list under `lora-modules`; each item is a JSON object in a YAML string."""
    _, _, items = text.partition("lora-modules:\n")
    for line in items.splitlines():
        if not line.startswith("- "):
            return
        entry = json.loads(json.loads(line.removeprefix("- ")))
        yield entry["name"], entry["path"]


def _lines(*answers: dict[str, Any]) -> Reply:
    return Reply(200, None, "\n".join(json.dumps(answer) for answer in answers))


def _reply(status: int, body: Any) -> Reply:
    return Reply(status, body, "" if body is None else json.dumps(body))
