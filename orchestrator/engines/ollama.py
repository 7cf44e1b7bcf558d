"""Ollama: the binary that the user has on PATH, with a store of its own per generation; the user's is never touched."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from orchestrator.core.artifact import Recipe
from orchestrator.core.deployment import Adapter, Deployment
from orchestrator.core.host import Host
from orchestrator.core.launch import Launch
from orchestrator.core.pins import Accelerator
from orchestrator.core.profile import Profile
from orchestrator.core.vram import MIB, Ask, batch_bytes
from orchestrator.core.weights import Shape
from orchestrator.engines.base import AdaptersAtStart, Asked, Failure, Launched, Render

# Its llama.cpp computes prompts in batches of this many tokens.
BATCH = 512
# ASSUMPTION: two Go processes and llama.cpp, and on a GPU the CUDA context.
ITSELF = 200 * MIB
CUDA_CONTEXT = 512 * MIB

HINTS: Mapping[str, str] = {
    "address already in use": "Another process took the port; run the same command again and another one is chosen.",
    "insufficient memory": "Lower serving.context or serving.parallel in the profile.",
    "exceeds file size": "The artifact is damaged: orch artifacts verify",
}


class Ollama(AdaptersAtStart):
    """See EngineSheet. One adapter set per loaded model and a full reload for each change: no adapters here yet."""

    name = "ollama"
    takes_gpu = True

    def accelerator(self, host: Host) -> Accelerator:
        return Accelerator.CUDA if host.gpus else Accelerator.CPU

    def needs_environment(self) -> bool:
        return False

    def missing(self, host: Host) -> tuple[str, str]:
        if host.ollama is not None:
            return "", ""
        return (
            "There is no ollama binary on PATH.",
            "Install Ollama, or serve with the embedded engine: orch up llamacpp",
        )

    def cannot_serve(self, recipe: Recipe, accelerator: Accelerator, host: Host) -> str:
        return "" if recipe in (Recipe.GGUF_Q6_K, Recipe.GGUF_BF16) else "Ollama imports Qwen3 as GGUF only"

    def model_file(self, recipe: Recipe) -> str:
        return "model.gguf"

    def launch(self, asked: Asked, render: Render) -> Launched:
        profile = asked.profile
        parameters = [(name, value) for name, value in profile.sampling if value is not None]
        modelfile = render(
            "ollama/Modelfile.j2", {"profile": profile, "model_path": asked.model_path, "parameters": parameters}
        )
        env = {
            "OLLAMA_HOST": "127.0.0.1:{port}",
            "OLLAMA_MODELS": "{dir}/models",
            "OLLAMA_NUM_PARALLEL": str(profile.serving.parallel),
            "OLLAMA_KEEP_ALIVE": profile.engines.ollama.keep_alive,
            "OLLAMA_CONTEXT_LENGTH": str(profile.serving.context),
            "OLLAMA_NO_CLOUD": "1",
        }
        launch = Launch((asked.host.ollama or "ollama", "serve"), tuple(sorted(env.items())), stop_grace_s=10.0)
        create = (asked.host.ollama or "ollama", "create", profile.served_name, "-f", "{dir}/Modelfile")
        return Launched(launch, files=(("Modelfile", modelfile),), imports=(create,))

    def adapter_args(self, adapters: tuple[Adapter, ...]) -> tuple[str, ...]:
        return ()

    def cannot_adapt(self, profile: Profile, adapters: tuple[Adapter, ...]) -> str:
        return "orch does not serve adapters with Ollama yet" if adapters else ""

    def adapter_slots(self, profile: Profile, accelerator: Accelerator) -> int:
        return 0

    def upstream(self, deployment: Deployment, adapter: Adapter | None) -> str:
        return deployment.served_name

    def patch(self, deployment: Deployment, adapter: Adapter | None) -> dict[str, Any]:
        return {}

    def ask(self, profile: Profile, weights: int, shape: Shape, accelerator: Accelerator, adapters: int) -> Ask:
        # OLLAMA_NUM_PARALLEL multiplies the KV cache: each request has the whole context to itself.
        on_gpu = accelerator is Accelerator.CUDA
        return Ask(
            name=self.name,
            weights=weights,
            kv_token=shape.kv_token_bytes,
            context=profile.serving.context,
            parallel=profile.serving.parallel,
            allowance=batch_bytes(shape, BATCH) + (CUDA_CONTEXT if on_gpu else 0),
            engine=0 if on_gpu else ITSELF,
        )

    def liveness_path(self) -> str:
        return "/api/version"

    def identity_path(self) -> str:
        return "/api/tags"

    def recognises(self, deployment: Deployment, reply: Any) -> bool:
        wanted = deployment.served_name
        full = wanted if ":" in wanted else f"{wanted}:latest"
        entries = reply.get("models") if isinstance(reply, dict) else None
        return isinstance(entries, list) and any(isinstance(e, dict) and e.get("name") == full for e in entries)

    def failure(self, log: str) -> Failure:
        lines = [line.strip() for line in log.splitlines() if line.strip() and not line.startswith("---")]
        told = [line for line in lines if line.startswith("Error:") or "Load failed" in line]
        line = (told or lines or [""])[-1]
        # The server's own line is one long record; what the model's process said last stands in its error field.
        said = re.search(r'msg="Load failed".* error="((?:[^"\\]|\\[^n])*)', line)
        return Failure(said[1] if said else line, next((hint for mark, hint in HINTS.items() if mark in log), ""))
