"""Ollama: the binary that the user has on PATH, or its image, with a store of its own per generation.

The user's store is never touched. Model and adapters are imported through its API; it serves one set of adapters at a
time, so each adapter is a model of its own there, and going from one to another loads the model anew.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from orchestrator.core.artifact import GGUF_FILE, Recipe
from orchestrator.core.deployment import Adapter, Deployment
from orchestrator.core.host import Host
from orchestrator.core.launch import Launch
from orchestrator.core.memory import MIB, MemoryRequest, batch_bytes
from orchestrator.core.parity import Chat, Tokens
from orchestrator.core.part import Must
from orchestrator.core.pins import Accelerator
from orchestrator.core.profile import Profile
from orchestrator.core.routes import ANTHROPIC, OLLAMA, OPENAI
from orchestrator.core.weights import Shape
from orchestrator.engines.base import (
    Digest,
    EngineCall,
    EngineDefaults,
    EngineSettings,
    Failure,
    LaunchRequest,
    LaunchSpec,
    Render,
    error_message,
)

# Its llama.cpp computes prompts in batches of this many tokens.
BATCH = 512
# ASSUMPTION: two Go processes and llama.cpp, and on a GPU the CUDA context.
ITSELF = 200 * MIB
CUDA_CONTEXT = 512 * MIB
# Bytes of the KV cache against 16 bit: blocks of 32 values with a 16-bit scale.
KV_SHARE = {None: 1.0, "f16": 1.0, "q8_0": 34 / 64, "q4_0": 18 / 64}

# Its words for what is taken where a request does not say.
PARAMETERS = {"max_tokens": "num_predict"}
# How text becomes a prompt where a model has no way of its own: as it comes. Left to itself, it takes ChatML.
RAW = "{{ .Prompt }}"

# On PATH.
PROGRAM = "ollama"
# What it says when llama-quantize, with which it writes each model anew, does not come to an end.
REWRITING = "failed to validate GGUF with llama-quantize without compatibility patches: "
ADAPTER_MODEL = re.compile(r"adapter-[0-9a-f]{12}(?=:latest$)")

HINTS: Mapping[str, str] = {
    "address already in use": "Another process took the port; run the same command again and another one is chosen.",
    "insufficient memory": "Lower serving.context or serving.parallel in the profile.",
    "no space left on device": "The disk of orch's data directory is full: free some space, and try again.",
    "could not write the model": "It takes three times the model's size for a moment: free some space on the disk of "
    "orch's data directory, and try again. Where there is enough, the artifact is damaged: orch artifacts verify",
    "failed to apply lora adapter": "Does the adapter belong to this model?  orch lora ls",
    "exceeds file size": "The artifact is damaged: orch artifacts verify",
}


class OllamaSettings(EngineSettings):
    """keep_alive as Ollama writes it: "5m", "-1" for ever. kv_cache_type, flash_attention: None leaves it to Ollama,
    which does not check them, but fails at every load when they do not go together. prompt_cache_mib: what it may keep
    of earlier prompts, in the host's memory."""

    recipes: tuple[Recipe, ...] = (Recipe.GGUF_Q6_K, Recipe.GGUF_NVFP4)
    prompt_cache_mib: Annotated[int, Must(ge=0)] = 0
    keep_alive: Annotated[str, Must(pattern=r"^(-?\d+|-?\d+(\.\d+)?(ms|s|m|h))$")] = "-1"
    kv_cache_type: Literal["f16", "q8_0", "q4_0"] | None = None
    flash_attention: bool | None = None

    def __post_init__(self) -> None:
        if re.fullmatch(r"-?0+(\.0+)?(ms|s|m|h)?", self.keep_alive):
            raise ValueError("keep_alive 0 loads the model anew for every request; -1 keeps it")
        if self.kv_cache_type in ("q8_0", "q4_0") and self.flash_attention is False:
            raise ValueError(f"kv_cache_type {self.kv_cache_type} needs flash_attention")


class Ollama(EngineDefaults):
    """See EngineSheet."""

    name = "ollama"
    settings: type[EngineSettings] = OllamaSettings
    programs: tuple[str, ...] = (PROGRAM,)
    hot_adapters = True
    # It knows no such thing.
    endless: Mapping[str, Any] = MappingProxyType({})
    takes_gpu = True
    version_at = ("/api/version", "version")
    own_store = True
    speaks: tuple[str, ...] = (OPENAI, ANTHROPIC, OLLAMA)

    def accelerator(self, host: Host) -> Accelerator:
        return Accelerator.CUDA if host.gpus else Accelerator.CPU

    def needs_environment(self) -> bool:
        return False

    def missing(self, host: Host) -> tuple[str, str]:
        if PROGRAM in host.programs:
            return "", ""
        return (
            "There is no ollama binary on PATH.",
            "Install Ollama, or serve with another engine.",
        )

    def cannot_serve(self, recipe: Recipe, accelerator: Accelerator, host: Host) -> str:
        return "" if recipe.quant else "Ollama imports Qwen3 as GGUF only"

    def model_file(self, recipe: Recipe) -> str:
        return GGUF_FILE

    def launch(self, request: LaunchRequest, render: Render) -> LaunchSpec:
        profile = request.profile
        modelfile = render(
            "ollama/Modelfile.j2",
            {
                "profile": profile,
                "model_path": request.model_path,
                "parameters": [(PARAMETERS.get(one.name, one.name), one.value) for one in request.sampling],
                "chats": request.chats,
            },
        )
        settings = OllamaSettings.of(profile, self.name)
        env = {
            "OLLAMA_HOST": f"{request.bind}:{{port}}",
            "OLLAMA_MODELS": "{dir}/models",
            "OLLAMA_NUM_PARALLEL": str(profile.serving.parallel),
            "OLLAMA_KEEP_ALIVE": settings.keep_alive,
            "OLLAMA_CONTEXT_LENGTH": str(profile.serving.context),
            "OLLAMA_NO_CLOUD": "1",
            # It writes a key pair there, and does not start where it cannot.
            "HOME": "{dir}",
            # A template that is like one that it knows would be replaced by that: here the file's own counts.
            "OLLAMA_GO_TEMPLATE": "0" if request.chats else "1",
            # Left to itself, its runner keeps prompts in up to 8 GiB of host memory.
            "LLAMA_ARG_CACHE_RAM": str(settings.prompt_cache_mib),
        }
        if request.thinks is not None:
            # As on llama.cpp, which is its runner.
            env["LLAMA_ARG_CHAT_TEMPLATE_KWARGS"] = json.dumps({"enable_thinking": request.thinks})
        if settings.kv_cache_type is not None:
            env["OLLAMA_KV_CACHE_TYPE"] = settings.kv_cache_type
        if settings.flash_attention is not None:
            env["OLLAMA_FLASH_ATTENTION"] = "1" if settings.flash_attention else "0"
        program = "{entrypoint}" if request.image is not None else request.host.programs.get(PROGRAM, PROGRAM)
        launch = Launch((program, "serve"), tuple(sorted(env.items())), stop_grace_s=10.0)
        return LaunchSpec(launch, files=(("Modelfile", modelfile),))

    def adapter_args(self, adapters: tuple[Adapter, ...]) -> tuple[str, ...]:
        return ()

    def cannot_adapt(self, profile: Profile, adapters: tuple[Adapter, ...]) -> str:
        return ""

    def adapter_slots(self, profile: Profile, accelerator: Accelerator) -> int:
        return 1_000_000

    def upstream(self, deployment: Deployment, adapter: Adapter | None) -> str:
        return _base_of(deployment) if adapter is None else _model_of(adapter)

    def patch(self, deployment: Deployment, adapter: Adapter | None) -> dict[str, Any]:
        return {}

    def defaults(self, sampling: Mapping[str, Any]) -> dict[str, Any]:
        # Its /v1 takes temperature 1 and top_p 1 where a request does not say, whatever stands in the Modelfile.
        return {name: sampling[name] for name in ("temperature", "top_p") if name in sampling}

    def memory_request(
        self, profile: Profile, weights: int, shape: Shape, accelerator: Accelerator, adapters: int
    ) -> MemoryRequest:
        # OLLAMA_NUM_PARALLEL multiplies the KV cache: each request has the whole context to itself.
        on_gpu, settings = accelerator is Accelerator.CUDA, OllamaSettings.of(profile, self.name)
        return MemoryRequest(
            name=self.name,
            weights=weights,
            kv_token=int(shape.kv_token_bytes * KV_SHARE[settings.kv_cache_type]),
            context=profile.serving.context,
            parallel=profile.serving.parallel,
            allowance=batch_bytes(shape, BATCH) + (CUDA_CONTEXT if on_gpu else 0),
            engine=0 if on_gpu else ITSELF,
            # It is in the host's memory, which is not what an engine on a GPU is short of.
            prompt_cache_mib=0 if on_gpu else settings.prompt_cache_mib,
            # One adapter at a time, counted at the largest rank that the profile allows: 2 bytes, F16.
            slot=profile.lora.max_rank * shape.lora_elements * 2,
            slots=min(1, adapters),
            least_slots=min(1, adapters),
        )

    def liveness_path(self) -> str:
        return "/api/version"

    def identity_path(self) -> str:
        return "/api/tags"

    def recognises(self, deployment: Deployment, reply: Any) -> bool:
        return _tag(_base_of(deployment)) in _tags(reply)

    def loaded(self, deployment: Deployment, reply: Any) -> tuple[tuple[str, str], ...] | None:
        tags = _tags(reply)
        return tuple((a.name, a.path) for a in deployment.adapters if _tag(_model_of(a)) in tags)

    def spare(self, deployment: Deployment, reply: Any) -> tuple[str, ...]:
        models = {found[0] for tag in _tags(reply) if (found := ADAPTER_MODEL.match(tag))}
        own = {_base_of(deployment), *(_model_of(adapter) for adapter in deployment.adapters)}
        return tuple(sorted(models - own))

    def import_peak(self, size: int) -> int:
        # What was uploaded, what llama-quantize has made of it, and a copy of that until its digest is known.
        return 3 * size

    def import_requests(self, deployment: Deployment, digest: Digest) -> tuple[EngineCall, ...]:
        blob = f"sha256:{digest(deployment.model_path)}"
        body = {"model": _base_of(deployment), "files": {GGUF_FILE: blob}, **_parameters(deployment)}
        found = [_upload(blob, deployment.model_path, _base_of(deployment)), _create(body)]
        for adapter in deployment.adapters:
            found += self.load_requests(deployment, adapter, digest)
        return tuple(found)

    def load_requests(self, deployment: Deployment, adapter: Adapter, digest: Digest) -> tuple[EngineCall, ...]:
        blob = f"sha256:{digest(adapter.gguf)}"
        body = {
            "model": _model_of(adapter),
            "from": _base_of(deployment),
            "adapters": {"adapter.gguf": blob},
            **_parameters(deployment),
        }
        return _upload(blob, adapter.gguf, _model_of(adapter)), _create(body)

    def unload_requests(self, deployment: Deployment, adapter: str) -> tuple[EngineCall, ...]:
        gone = deployment.adapter(adapter)
        return self.discard_requests(_model_of(gone)) if gone is not None else ()

    def spent(self, call: EngineCall, answer: str) -> str:
        # Both a creation and what is shown of a model name the blobs of its files: the upload is none of them where
        # llama-quantize has written other bytes. Only a restart would prune it, and not in its first hour.
        files = call.body.get("files", {}).values() if call.body is not None else ()
        digests = (str(blob).removeprefix("sha256:") for blob in files)
        return next((f"models/blobs/sha256-{digest}" for digest in digests if digest not in answer), "")

    def discard_requests(self, spare: str) -> tuple[EngineCall, ...]:
        # It takes along the blobs that no other model needs.
        return (EngineCall("DELETE", "/api/delete", {"model": spare}),)

    def rest_requests(self, deployment: Deployment) -> tuple[EngineCall, ...]:
        models = (self.upstream(deployment, adapter) for adapter in (None, *deployment.adapters))
        return tuple(EngineCall("POST", "/api/generate", {"model": model, "keep_alive": 0}) for model in models)

    def refusal(self, status: int, text: str) -> str:
        # A stream that has begun tells its errors under HTTP 200.
        last = (text.strip().splitlines() or [""])[-1]
        said = error_message(last) or f"HTTP {status}" if status >= 400 or '"error"' in last else ""
        return said.replace(REWRITING, "it could not write the model into its store: ")

    def passes(self, refusal: str) -> bool:
        # A creation goes on when its client was killed, and takes away what the next one has just found there.
        return "no such file or directory" in refusal

    def pulse_path(self) -> str:
        return "/api/ps"

    def pulse(self, reply: Any) -> EngineCall | None:
        # Without a prompt it asks its runner for no more than whether it lives.
        model = next(iter(sorted(_tags(reply))), None)
        return EngineCall("POST", "/api/generate", {"model": model, "stream": False}) if model is not None else None

    def gpu_path(self) -> str:
        return "/api/ps"

    def not_on_gpu(self, reply: Any) -> str:
        # It falls back to the CPU without a word.
        models = reply.get("models") if isinstance(reply, dict) else None
        for model in models or ():
            size, on_gpu = int(model.get("size") or 0), int(model.get("size_vram") or 0)
            if on_gpu < size:
                return f"{model.get('name')} has {on_gpu / size:.0%} of its memory on the GPU, the rest on the CPU"
        return "" if models else "no model is loaded"

    def tokens_request(self, deployment: Deployment, text: str) -> EngineCall:
        # It counts them, and has no way to tell them.
        body = {"model": _base_of(deployment), "prompt": text, "raw": True, "stream": False}
        return EngineCall("POST", "/api/generate", {**body, "options": {"num_predict": 1}})

    def prompt_request(self, deployment: Deployment, chat: Chat) -> EngineCall | None:
        if "enable_thinking" in chat.options or chat.tools:
            # Refused where its own idea of the template has none of it.
            return None
        body = {"model": _base_of(deployment), "messages": [*chat.messages], "stream": False}
        return EngineCall("POST", "/api/chat", {**body, "options": {"num_predict": 1}})

    def prompt_in(self, reply: Any) -> Tokens | str:
        found = reply.get("prompt_eval_count") if isinstance(reply, dict) else None
        return Tokens(count=found if isinstance(found, int) else None)

    def asked_to_think(self, on: bool) -> dict[str, Any]:
        return {"reasoning_effort": "medium" if on else "none"}

    def forced_end(self, number: int) -> dict[str, Any] | None:
        return None

    def failure(self, log: str) -> Failure:
        lines = [line.strip() for line in log.splitlines() if line.strip() and not line.startswith("---")]
        errors = [line for line in lines if line.startswith("Error:") or "Load failed" in line]
        line = (errors or lines or [""])[-1]
        # The server's own line is one long record; what the model's process said last stands in its error field.
        said = re.search(r'msg="Load failed".* error="((?:[^"\\]|\\[^n])*)', line)
        return Failure(said[1] if said else line, next((hint for mark, hint in HINTS.items() if mark in log), ""))


def _model_of(adapter: Adapter) -> str:
    """The name of the adapter's model there: another version is another model, and any public name will do."""
    return f"adapter-{hashlib.sha256(f'{adapter.name} {adapter.digest}'.encode()).hexdigest()[:12]}"


def _base_of(deployment: Deployment) -> str:
    """The name of the base there: not every public name is one that Ollama takes as it is."""
    return deployment.profile


def _tag(name: str) -> str:
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _tags(reply: Any) -> set[str]:
    entries = reply.get("models") if isinstance(reply, dict) else None
    return {str(e.get("name")) for e in entries if isinstance(e, dict)} if isinstance(entries, list) else set()


def _shown(model: str) -> EngineCall:
    """Answered with 200 where the model and all that it needs are there."""
    return EngineCall("POST", "/api/show", {"model": model})


def _upload(blob: str, file: str, model: str) -> EngineCall:
    path = f"/api/blobs/{blob}"
    return EngineCall("POST", path, file=file, unless=path, done=_shown(model))


def _create(body: Mapping[str, Any]) -> EngineCall:
    return EngineCall("POST", "/api/create", body, done=_shown(body["model"]))


def _parameters(deployment: Deployment) -> dict[str, Any]:
    """What the API takes in place of the Modelfile's PARAMETER lines, which are where they are written."""
    text = next(text for name, text in deployment.files if name == "Modelfile")
    lines = (line.split(maxsplit=2) for line in text.splitlines() if line.startswith("PARAMETER "))
    parameters = {name: json.loads(value) for _, name, value in lines}
    return {"parameters": parameters} if deployment.chats else {"parameters": parameters, "template": RAW}
