"""vLLM: the GPU wheel, or the CPU wheel where there is no GPU, in an environment that orch makes; or its image."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

from orchestrator.core.artifact import Recipe
from orchestrator.core.deployment import Adapter, Deployment
from orchestrator.core.host import MOST_GPUS, Host
from orchestrator.core.launch import SECRET, Launch
from orchestrator.core.meaning import SamplingDefault
from orchestrator.core.memory import MIB, MemoryRequest, batch_bytes
from orchestrator.core.parity import Chat
from orchestrator.core.part import Must
from orchestrator.core.pins import Accelerator
from orchestrator.core.profile import Profile
from orchestrator.core.routes import ANTHROPIC, OPENAI, VLLM
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
)

# The only values --max-lora-rank takes.
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# Of all three: where a GPU has no FP4 (below 10.0) or no FP8 (below 8.9), Marlin unpacks the weights to 16 bit, and the
# activations stay so (vllm/model_executor/layers/quantization/compressed_tensors/schemes/, get_min_capability).
QUANTIZED_CAPABILITY = (7, 5)
BF16_CAPABILITY = (8, 0)
# ASSUMPTION: activations, CUDA graphs, CUDA context and 16-bit logits of a GPU; between 1.0 and 1.5 GiB.
ON_GPU_BYTES = int(1.2 * 2**30)
# ASSUMPTION: the CUDA context among them, which vLLM makes before it looks at what is free (v1/worker/gpu_worker.py).
CONTEXT_BYTES = 512 * MIB
# Docker's own 64 MiB make its processes hang; between GPUs without a direct way NCCL copies through it.
SHM_MIB, SHM_OF_SEVERAL_MIB = 2048, 8192
# Measured 1.1 GiB with a tiny model, KV cache apart; activations of this many tokens are added to it.
ON_CPU_BYTES = 1100 * MIB
BATCH_ON_CPU = 256

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
# Sockets and the compile cache: nothing of it in the user's own places. A socket's path has to be short.
PLACES = {"TMPDIR": "{tmp}", "VLLM_CACHE_ROOT": "{cache}/vllm"}
# Seconds that requests in flight have when a container is told to stop; less than Docker then waits.
DRAIN_S = 20
# The host driver's libcuda, which the toolkit mounts, before the image's compatibility libraries: with those first,
# containers that got the GPU through CDI or the nvidia runtime fail with CUDA error 803.
DRIVER_FIRST = {
    "LD_LIBRARY_PATH": "/usr/local/nvidia/lib64:/usr/local/nvidia/lib:/usr/lib/x86_64-linux-gnu:/usr/local/cuda/lib64"
}
# One process less and half a gigabyte less than the default; nobind, or every server sits on the first core;
# without dynamo the first request with logprobs takes 0.2 s instead of up to 40. How many CPUs it has is seen where it
# starts: by whom it was asked for must not decide what it is.
ON_CPU = {
    "OMP_NUM_THREADS": "{threads}",
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TORCHDYNAMO_DISABLE": "1",
}

LOST_WEIGHTS = "The weights are not where they were, or not complete: orch artifacts verify"
UNFIT_GPU = "Nothing here runs NVFP4: serve the weights as they are, with --recipe weights"
# The first mark that the log holds decides.
HINTS: Mapping[str, str] = {
    "Address already in use": "Another process took the port; run the same command again and another one is chosen.",
    "No available memory for the cache blocks": "Raise engines.vllm.kv_cache_mib or gpu_memory_utilization.",
    "is less than requested memory for kv": "Lower engines.vllm.kv_cache_mib in the profile.",
    "less than desired GPU memory utilization": "Something else holds GPU memory; lower gpu_memory_utilization.",
    "Error 803": "The image's CUDA libraries hide the NVIDIA driver's; LD_LIBRARY_PATH has to name the driver's first.",
    "Error 804": "This GPU's driver is too old for the image: orch images ls shows others, or update the driver.",
    "Failed to infer device type": "vLLM sees no GPU: does `docker run --gpus all` show one with nvidia-smi?",
    "Failed to initialize NVML": "The container lost its GPU (systemctl daemon-reload does that): orch up --fresh",
    "CUDA out of memory": "Lower gpu_memory_utilization, serving.context or serving.parallel in the profile.",
    "is greater than the derived max_model_len": "Lower serving.context in the profile.",
    "must be divisible by tensor parallel size": "The profile's engines.vllm.gpus does not divide the model.",
    "is larger than the number of available GPUs": "vLLM sees fewer GPUs than it is to use: does nvidia-smi show all?",
    "SafetensorError": "The weights are damaged: orch artifacts verify",
    "Repo id must be in the form": LOST_WEIGHTS,
    "Invalid repository ID or local directory": LOST_WEIGHTS,
    "Cannot find an appropriate cached snapshot": LOST_WEIGHTS,
    "Cannot find any model weights": LOST_WEIGHTS,
    "is not a valid JSON file": "The weights are damaged: orch artifacts verify",
    "does not recognize this architecture": "The pinned vLLM does not know this architecture.",
    "The size of tensor a": "The weights do not fit their own config.json: is it the right one?",
    "No adapter found for": "An adapter is not where it was: orch lora ls, then orch lora add it again.",
    "is greater than max_lora_rank": "Raise lora.max_rank in the profile.",
    "NVFP4 linear layer": UNFIT_GPU,
    "Marlin FP4 not available": UNFIT_GPU,
    "Min capability": UNFIT_GPU,
    "unrecognized arguments": "This vLLM is not the pinned one; its options differ.",
    "invalid choice": "This vLLM refuses a setting of the profile; the line says what it takes.",
}
# It says nothing of the tokenizer, but it is the end of a start without one.
NO_TOKENIZER = "IndexError: list index out of range"
# What one process says of another's end; the other has said why.
HEARSAY = ("Engine core initialization failed", "WorkerProc initialization failed")


class VllmSettings(EngineSettings):
    """gpu_memory_utilization: share of each GPU; kv_cache_mib: the KV cache on a CPU, where nothing is profiled; gpus:
    over how many, all alike, the model is spread (tensor parallel); sleep: on a GPU it stands by asleep, its weights in
    the host's memory, which takes vLLM's development mode."""

    recipes: tuple[Recipe, ...] = (Recipe.NVFP4A16, Recipe.WEIGHTS)
    gpu_memory_utilization: Annotated[float, Must(gt=0, le=1)] = 0.85
    kv_cache_mib: Annotated[int, Must(ge=16)] = 1024
    gpus: Annotated[int, Must(ge=1, le=MOST_GPUS)] = 1
    sleep: bool = False


class Vllm(EngineDefaults):
    """See EngineSheet."""

    name = "vllm"
    # Python, compilation and CUDA graphs.
    starts_in_s = 60.0
    settings: type[EngineSettings] = VllmSettings
    hot_adapters = True
    # Of an adapter not: on a CPU that ends its engine.
    cannot_score = ""
    for_many = True
    version_at = ("/version", "version")
    # Its command line counts before its file.
    share_option = "--gpu-memory-utilization"
    takes_gpu = True
    speaks: tuple[str, ...] = (OPENAI, ANTHROPIC, VLLM)

    def accelerator(self, host: Host) -> Accelerator:
        return Accelerator.CUDA if host.gpus else Accelerator.CPU

    def gpus(self, profile: Profile, accelerator: Accelerator) -> int:
        return 1 if accelerator is Accelerator.CPU else VllmSettings.of(profile, self.name).gpus

    def cannot_split(self, shape: Shape, gpus: int) -> str:
        if shape.heads % gpus:
            return f"its {shape.heads} attention heads cannot be divided by {gpus}"
        # With fewer KV heads than GPUs each has a copy of one (vllm/model_executor/layers/linear.py).
        if shape.kv_heads % gpus and gpus % shape.kv_heads:
            return f"its {shape.kv_heads} KV heads cannot be divided by {gpus}"
        if shape.intermediate % gpus:
            return f"its feed-forward layers, {shape.intermediate} wide, cannot be divided by {gpus}"
        return ""

    def shm_mib(self, gpus: int) -> int:
        return SHM_MIB if gpus == 1 else SHM_OF_SEVERAL_MIB

    def needs_environment(self) -> bool:
        return True

    def missing(self, host: Host) -> tuple[str, str]:
        return "", ""

    def cannot_serve(self, recipe: Recipe, accelerator: Accelerator, host: Host) -> str:
        if recipe is Recipe.WEIGHTS:
            return ""
        if recipe.quant:
            return "vLLM serves GGUF only experimentally, and not Qwen3's"
        name = recipe.value.upper()
        if accelerator is Accelerator.CPU:
            if recipe is Recipe.FP8:
                # Seen: right answers, and 0.5 tokens a second of a model of 4 million weights.
                return "vLLM computes FP8 on CPUs too slowly to be of use; it serves the weights as they are there"
            return f"vLLM has no {name} kernel for CPUs; it serves the weights as they are there"
        if accelerator is not Accelerator.CUDA:
            return f"{name} needs an NVIDIA GPU; vLLM serves the weights as they are on others"
        best = max(gpu.compute_capability for gpu in host.gpus)
        if best < QUANTIZED_CAPABILITY:
            return f"{name} needs compute capability 7.5; the best GPU here has {best[0]}.{best[1]}"
        return ""

    def model_file(self, recipe: Recipe) -> str:
        return ""

    def launch(self, request: LaunchRequest, render: Render) -> LaunchSpec:
        profile, cpu = request.profile, request.accelerator is Accelerator.CPU
        slots = profile.lora.max_adapters
        # vLLM's CPU kernels read index -1, meaning "no adapter", as the last slot: one more that is never used.
        max_loras = slots + 1 if slots and cpu else slots
        cuda = request.accelerator is Accelerator.CUDA
        half = cuda and max(gpu.compute_capability for gpu in request.host.gpus) < BF16_CAPABILITY
        text = render(
            "vllm/serve.yaml.j2",
            {
                "profile": profile,
                "settings": VllmSettings.of(profile, self.name),
                "model_path": request.model_path,
                "cpu": cpu,
                "dtype": "half" if half else "auto",
                "gpus": self.gpus(profile, request.accelerator),
                "sleeps": self.sleeps(profile, request.accelerator),
                "max_loras": max_loras,
                "max_lora_rank": _lora_rank(profile),
                "tool_parser": _tool_parser(request),
                "reasoning_parser": _reasoning_parser(request),
                "sampling": json.dumps(_generation_config(request.sampling)),
            },
        )
        env = OFFLINE | PLACES | {"VLLM_API_KEY": SECRET}
        if cpu:
            env |= ON_CPU
        if self.sleeps(profile, request.accelerator):
            # It opens other paths, too: nobody but orch reaches them, and the gateway forwards none.
            env["VLLM_SERVER_DEV_MODE"] = "1"
        if slots:
            env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "True"
        argv: tuple[str, ...] = ("--config", "{dir}/serve.yaml", "--host", request.bind, "--port", "{port}")
        if request.image is None:
            argv, grace_s = ("vllm", "serve", *argv), 20.0
        else:
            # What ends a container may be anybody: docker stop, a reboot. Requests in flight may end then.
            argv, grace_s = ("{entrypoint}", *argv, "--shutdown-timeout", str(DRAIN_S)), DRAIN_S + 15.0
            env |= DRIVER_FIRST if cuda else {}
        environment = request.environment.name if request.environment is not None else None
        launch = Launch(argv, tuple(sorted(env.items())), environment=environment, stop_grace_s=grace_s)
        return LaunchSpec(launch, files=(("serve.yaml", text),))

    def adapter_args(self, adapters: tuple[Adapter, ...]) -> tuple[str, ...]:
        return ()

    def adapter_lines(self, adapters: tuple[Adapter, ...]) -> str:
        # In the file, which a container reads anew at each start; its command line is for ever.
        if not adapters:
            return ""
        items = [json.dumps(json.dumps({"name": a.name, "path": a.path})) for a in adapters]
        return "lora-modules:\n" + "".join(f"- {item}\n" for item in items)

    def cannot_adapt(self, profile: Profile, adapters: tuple[Adapter, ...]) -> str:
        return ""

    def adapter_slots(self, profile: Profile, accelerator: Accelerator) -> int:
        # On a GPU a full set evicts the least recently used; on a CPU a full set would use the slot kept free.
        return profile.lora.max_adapters if accelerator is Accelerator.CPU else 1_000_000

    def upstream(self, deployment: Deployment, adapter: Adapter | None) -> str:
        return adapter.name if adapter is not None else deployment.served_name

    def patch(self, deployment: Deployment, adapter: Adapter | None) -> dict[str, Any]:
        return {}

    def memory_request(
        self, profile: Profile, weights: int, shape: Shape, accelerator: Accelerator, adapters: int
    ) -> MemoryRequest:
        settings, cpu = VllmSettings.of(profile, self.name), accelerator is Accelerator.CPU
        gpus = self.gpus(profile, accelerator)
        return MemoryRequest(
            name=self.name,
            # ASSUMPTION: spread evenly, though norms are copied, and embedding and head are padded.
            weights=-(-weights // gpus),
            kv_token=replace(shape, kv_heads=max(1, shape.kv_heads // gpus)).kv_token_bytes,
            context=profile.serving.context,
            parallel=profile.serving.parallel,
            allowance=batch_bytes(shape, BATCH_ON_CPU) if cpu else ON_GPU_BYTES,
            ahead=0 if cpu else CONTEXT_BYTES,
            engine=ON_CPU_BYTES if cpu else 0,
            # On each GPU whole: without fully-sharded-loras only the sides that face a layer's own part are smaller.
            slot=_lora_rank(profile) * shape.lora_elements * 2,
            slots=profile.lora.max_adapters,
            least_slots=adapters,
            spare_slot=cpu,
            utilisation=None if cpu else settings.gpu_memory_utilization,
            kv_cache_mib=settings.kv_cache_mib if cpu else None,
            gpus=gpus,
        )

    def sleeps(self, profile: Profile, accelerator: Accelerator) -> bool:
        return VllmSettings.of(profile, self.name).sleep and accelerator is Accelerator.CUDA

    def rest_requests(self, deployment: Deployment) -> tuple[EngineCall, ...]:
        # Level 1 keeps the weights in the host's memory; the KV cache is dropped.
        return (EngineCall("POST", "/sleep?level=1"),)

    def wake_requests(self, deployment: Deployment) -> tuple[EngineCall, ...]:
        return (EngineCall("POST", "/wake_up"),)

    def sleep_path(self) -> str:
        return "/is_sleeping"

    def asleep(self, reply: Any) -> bool:
        return isinstance(reply, dict) and reply.get("is_sleeping") is True

    def hold_less(self, accelerator: Accelerator) -> str:
        return "engines.vllm.kv_cache_mib" if accelerator is Accelerator.CPU else ""

    def liveness_path(self) -> str:
        return "/health"

    def identity_path(self) -> str:
        return "/v1/models"

    def recognises(self, deployment: Deployment, reply: Any) -> bool:
        return any(
            entry.get("id") == deployment.served_name and entry.get("root") == deployment.model_path
            for entry in _entries(reply)
        )

    def loaded(self, deployment: Deployment, reply: Any) -> tuple[tuple[str, str], ...] | None:
        return tuple((str(entry["id"]), str(entry["root"])) for entry in _entries(reply) if entry.get("parent"))

    def load_requests(self, deployment: Deployment, adapter: Adapter, digest: Digest) -> tuple[EngineCall, ...]:
        # In place keeps the adapter's id and so its slot; the new path keeps the prefix cache honest.
        body = {"lora_name": adapter.name, "lora_path": adapter.path, "load_inplace": True}
        return (EngineCall("POST", "/v1/load_lora_adapter", body),)

    def unload_requests(self, deployment: Deployment, adapter: str) -> tuple[EngineCall, ...]:
        return (EngineCall("POST", "/v1/unload_lora_adapter", {"lora_name": adapter}),)

    def tokens_request(self, deployment: Deployment, text: str) -> EngineCall:
        return EngineCall("POST", "/tokenize", {"model": deployment.served_name, "prompt": text})

    def prompt_request(self, deployment: Deployment, chat: Chat) -> EngineCall | None:
        body = {"model": deployment.served_name, "messages": [*chat.messages], "chat_template_kwargs": chat.options}
        return EngineCall("POST", "/tokenize", body | ({"tools": [*chat.tools]} if chat.tools else {}))

    def failure(self, log: str) -> Failure:
        lines = [line.strip() for line in log.splitlines() if line.strip()]
        named = [x for x in lines if re.search(r"\w*(Error|Exception)\b: |Value error, |error: ", x)]
        named = [x for x in named if not any(words in x for words in HEARSAY)]
        core = [x for x in named if re.match(r"\((EngineCore|Worker)", x)]
        line = (core or named or lines or [""])[-1]
        line = re.sub(r"^\((EngineCore|APIServer|Worker)[^)]*\)\s*(ERROR \S+ \S+ \[[^\]]*\]\s*)?", "", line)
        line = re.sub(r"^Value error, |\s*\[type=value_error, .*$", "", line)
        if line == NO_TOKENIZER:
            return Failure(line, "Perhaps the weights have no tokenizer files: orch artifacts verify")
        return Failure(line, next((hint for mark, hint in HINTS.items() if mark in log), ""))


def _lora_rank(profile: Profile) -> int:
    return next(rank for rank in LORA_RANKS if rank >= profile.lora.max_rank)


def _tool_parser(request: LaunchRequest) -> str:
    """What finds calls as the template has the model write them; empty where only the profile could say."""
    if (said := request.profile.serving.tool_parser) is not None:
        return said
    # With a function in it, it is not JSON that stands between the marks (Qwen3-Coder).
    return "hermes" if "<tool_call>" in request.template and "<function=" not in request.template else ""


def _reasoning_parser(request: LaunchRequest) -> str:
    """What tells thoughts from answers: without it a form that is asked for (response_format) would bind both."""
    if (said := request.profile.serving.reasoning_parser) is not None:
        return said
    return "qwen3" if request.thinks is not None and "</think>" in request.template else ""


def _generation_config(sampling: tuple[SamplingDefault, ...]) -> dict[str, Any]:
    names = {"repeat_penalty": "repetition_penalty", "max_tokens": "max_new_tokens"}
    return {names.get(one.name, one.name): one.value for one in sampling if one.name != "seed"}


def _entries(reply: Any) -> list[dict[str, Any]]:
    data = reply.get("data") if isinstance(reply, dict) else None
    return [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []
