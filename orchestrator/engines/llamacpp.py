"""llama.cpp's server, embedded in orch's own interpreter by the xllamacpp wheel: the default that runs anywhere."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any

from orchestrator.core.artifact import GGUF_FILE, Recipe
from orchestrator.core.deployment import Adapter, Deployment
from orchestrator.core.host import Host
from orchestrator.core.launch import SECRET, Launch
from orchestrator.core.memory import MIB, MemoryRequest, batch_bytes
from orchestrator.core.parity import Chat, Tokens
from orchestrator.core.part import Must
from orchestrator.core.pins import Accelerator
from orchestrator.core.profile import Profile
from orchestrator.core.routes import ANTHROPIC, LLAMA_SERVER, OPENAI
from orchestrator.core.weights import Shape
from orchestrator.engines.base import (
    EngineCall,
    EngineSettings,
    Failure,
    LaunchRequest,
    LaunchSpec,
    Render,
    StaticAdapters,
)

# The wheel is compiled for these and does not ask the CPU: without them it ends with an illegal instruction.
CPU_FLAGS = frozenset({"avx2", "fma", "f16c", "bmi2"})
# It computes prompts in batches of this many tokens.
BATCH = 512
# Measured 48 MB with a tiny model loaded, in a Python of its own.
ITSELF = 100 * MIB

DAMAGED = "The artifact is damaged: orch artifacts verify"
# The first mark that the log holds decides.
HINTS: Mapping[str, str] = {
    "insufficient memory": "Lower serving.context or serving.parallel in the profile.",
    "couldn't bind": "Another process took the port; run the same command again and another one is chosen.",
    "failed to load lora adapter": "Does the adapter belong to this model?  orch lora ls",
    "failed to open GGUF file": "The artifact is gone: run orch up again, and it is made again.",
    "data is not within the file bounds": DAMAGED,
    "gguf_init_from_reader": DAMAGED,
    "key not found in model": DAMAGED,
    "unknown model architecture": "The embedded llama.cpp does not know this architecture.",
}


class LlamacppSettings(EngineSettings):
    """threads: for generation; None lets llama.cpp choose."""

    recipes: tuple[Recipe, ...] = (Recipe.GGUF_Q6_K, Recipe.GGUF_NVFP4)
    threads: Annotated[int, Must(ge=1)] | None = None


class Llamacpp(StaticAdapters):
    """See EngineSheet. Adapters are taken only at start, and every request names the scale of each."""

    name = "llamacpp"
    settings: type[EngineSettings] = LlamacppSettings
    takes_gpu = False
    package = "xllamacpp"
    in_containers = False
    speaks: tuple[str, ...] = (OPENAI, ANTHROPIC, LLAMA_SERVER)
    # It turns requests of other APIs into chats, and keeps of them only what it knows: /v1/messages loses the scales,
    # and what such a request leaves in a slot's cache is mixed into the next one's answer.
    patch_paths: tuple[str, ...] | None = ("/v1/chat/completions", "/v1/completions", "/v1/responses")

    def accelerator(self, host: Host) -> Accelerator:
        return Accelerator.CPU

    def needs_environment(self) -> bool:
        return False

    def missing(self, host: Host) -> tuple[str, str]:
        lacking = sorted(CPU_FLAGS - host.cpu_flags)
        if not lacking:
            return "", ""
        return f"The embedded llama.cpp needs a CPU with {', '.join(lacking)}.", "Use another engine on this machine."

    def cannot_serve(self, recipe: Recipe, accelerator: Accelerator, host: Host) -> str:
        return "" if recipe.quant else "llama.cpp serves GGUF files only"

    def model_file(self, recipe: Recipe) -> str:
        return GGUF_FILE

    def launch(self, request: LaunchRequest, render: Render) -> LaunchSpec:
        profile, serving = request.profile, request.profile.serving
        argv = [
            "{python}",
            "-m",
            "orchestrator.drivers.local.llamacpp_server",
            f"--model={request.model_path}",
            f"--alias={profile.served_name}",
            f"--host={request.bind}",
            "--port={port}",
            f"--ctx-size={serving.context * serving.parallel}",
            f"--parallel={serving.parallel}",
        ]
        threads = LlamacppSettings.of(profile, self.name).threads
        if threads is not None:
            argv.append(f"--threads={threads}")
        argv += [f"--{one.name.replace('_', '-')}={one.value}" for one in request.sampling]
        if request.thinks is not None:
            # It always tells a template, and where its own look at that finds no thinking, it tells it not to.
            argv.append(f"--enable-thinking={json.dumps(request.thinks)}")
        return LaunchSpec(Launch(tuple(argv), (("LLAMA_API_KEY", SECRET),), stop_grace_s=15.0))

    def adapter_args(self, adapters: tuple[Adapter, ...]) -> tuple[str, ...]:
        return tuple(f"--lora={adapter.gguf}" for adapter in adapters)

    def cannot_adapt(self, profile: Profile, adapters: tuple[Adapter, ...]) -> str:
        return ""

    def adapter_slots(self, profile: Profile, accelerator: Accelerator) -> int:
        return profile.lora.max_adapters

    def upstream(self, deployment: Deployment, adapter: Adapter | None) -> str:
        # It answers to any name; the gateway owns the 404. The public name comes back in its answers.
        return adapter.name if adapter is not None else deployment.served_name

    def patch(self, deployment: Deployment, adapter: Adapter | None) -> dict[str, Any]:
        # A request without scales takes the global ones but keeps the slot's cached KV of another adapter: so every
        # request carries all of them. No id_slot: it would put all of a name's requests into one slot, one by one.
        if not deployment.adapters:
            return {}
        wanted = adapter.name if adapter is not None else None
        return {"lora": [{"id": i, "scale": float(a.name == wanted)} for i, a in enumerate(deployment.adapters)]}

    def memory_request(
        self, profile: Profile, weights: int, shape: Shape, accelerator: Accelerator, adapters: int
    ) -> MemoryRequest:
        # Adapters are counted at the largest rank that the profile allows, on every matrix: 2 bytes, F16.
        return MemoryRequest(
            name=self.name,
            weights=weights,
            kv_token=shape.kv_token_bytes,
            context=profile.serving.context,
            parallel=profile.serving.parallel,
            allowance=batch_bytes(shape, BATCH),
            engine=ITSELF,
            slot=profile.lora.max_rank * shape.lora_elements * 2,
            slots=adapters,
            least_slots=adapters,
        )

    def liveness_path(self) -> str:
        return "/health"

    def identity_path(self) -> str:
        return "/props"

    def recognises(self, deployment: Deployment, reply: Any) -> bool:
        return isinstance(reply, dict) and reply.get("model_path") == deployment.model_path

    def tokens_request(self, deployment: Deployment, text: str) -> EngineCall:
        body = {"content": text, "add_special": True, "parse_special": True}
        return EngineCall("POST", "/tokenize", body)

    def prompt_request(self, deployment: Deployment, chat: Chat) -> EngineCall | None:
        body = {"messages": [*chat.messages], "chat_template_kwargs": chat.options}
        return EngineCall("POST", "/apply-template", body | ({"tools": [*chat.tools]} if chat.tools else {}))

    def prompt_in(self, reply: Any) -> Tokens | str:
        text = reply.get("prompt") if isinstance(reply, dict) else None
        return text if isinstance(text, str) else super().prompt_in(reply)

    def failure(self, log: str) -> Failure:
        # The first error line is the cause; all that follow are its consequences.
        line = next((line for line in log.splitlines() if re.search(r"(^|\s)E\s", line)), "")
        line = re.sub(r"^\S*\s*E\s+", "", line).strip()
        if not line:
            line = next((x.strip() for x in reversed(log.splitlines()) if x.strip() and not x.startswith("---")), "")
        return Failure(line, next((hint for mark, hint in HINTS.items() if mark in log), ""))
