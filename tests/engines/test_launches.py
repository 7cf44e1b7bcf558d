"""How each engine is started: the shipped profile and the tiny one, with and without a GPU, as reviewed texts."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from fakes.asks import CPU, adapter, gpu, resolved, tiny

from orchestrator import resources
from orchestrator.core.artifact import Recipe
from orchestrator.core.deployment import Deployment, DeploymentSpec, Desired
from orchestrator.core.host import Host
from orchestrator.core.pins import Accelerator
from orchestrator.core.profile import Profile, parse_profile
from orchestrator.engines import ENGINES
from orchestrator.engines.settings import read_settings
from orchestrator.errors import OrchError

GOLDEN = Path(__file__).parent / "golden"
HOST = replace(CPU, programs={"ollama": "/usr/bin/ollama"})
RTX_5090 = replace(HOST, gpus=(gpu("GeForce RTX 5090", (12, 0), 32),))
V100 = replace(HOST, gpus=(gpu("Tesla V100-SXM2-32GB", (7, 0), 32),))
T4 = replace(HOST, gpus=(gpu("Tesla T4", (7, 5), 16),))
TWO = replace(
    HOST, gpus=tuple(replace(gpu("GeForce RTX 5090", (12, 0), 32), uuid=f"GPU-{n}", index=n, minor=n) for n in (0, 1))
)
HOSTS = {"cpu": HOST, "rtx-5090": RTX_5090, "t4": T4}


def shipped() -> Profile:
    return parse_profile(resources.model_profiles()["qwen3-8b"].read_text(), "qwen3-8b", read_settings)


def deployment(engine: str, profile: Profile, host: Host, adapters: tuple[str, ...] = ()) -> Deployment:
    spec = DeploymentSpec(profile=profile, engine=engine, target="local")
    fitted = tuple(adapter(text, profile) for text in adapters)
    return resolved(Desired(spec=spec, adapters=fitted), host).deployment


def text_of(made: Deployment) -> str:
    """A launch as a golden file has it: argv, a line each; env; files with adapters. Hashes as `*`."""
    lines = [*made.launch.argv, ""]
    lines += [f"{name}={value}" for name, value in made.launch.env]
    lines += [f"environment: {made.launch.environment or '-'}", f"port: {made.launch.port or 'any'}"]
    for name, text in made.written:
        lines += ["", f"--- {name}", text.rstrip()]
    return re.sub(r"-([0-9a-f]{16}|[0-9a-f]{8})(?![0-9a-f])", "-*", "\n".join(lines)) + "\n"


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.txt")), ids=lambda path: path.stem)
def test_the_launch_is_as_reviewed(path: Path) -> None:
    name, engine, host = path.stem.split("_")
    profile, adapters = (shipped(), ()) if name == "qwen3-8b" else (tiny(sampling={"temperature": 0.5}), ("a", "b"))
    made = deployment(engine, profile, HOSTS[host], adapters)
    assert text_of(made) == path.read_text()


@pytest.mark.parametrize("engine", ENGINES)
def test_what_it_is_does_not_depend_on_the_cpus_and_the_memory_of_who_asks(engine: str) -> None:
    """An engine that is well stays, also for `taskset -c 0 orch up`, or one that is run in a smaller control group."""
    less = replace(HOST, cpus=1, memory_total=2**30, memory_available=2**29, memory_limit_file="/f")
    here, there = deployment(engine, tiny(), HOST), deployment(engine, tiny(), less)
    assert here.fingerprint == there.fingerprint


EVERY = [
    deployment(engine, profile, host)
    for engine in ENGINES
    for profile in (shipped(), tiny())
    for host in (HOST, RTX_5090, V100, T4)
]


@pytest.mark.parametrize("made", EVERY, ids=lambda made: f"{made.profile}-{made.engine}")
def test_what_no_launch_may_have(made: Deployment) -> None:
    text = text_of(made)
    # vLLM reads the format from the checkpoint and refuses the values that guides give for it.
    assert not re.search(r"^\s*(--)?quantization", text, re.MULTILINE)
    # It means another thing than kv-cache-memory-bytes, and wins.
    assert "VLLM_CPU_KVCACHE_SPACE" not in text
    assert "0.0.0.0" not in text
    assert "{port}" in text


def settings(made: Deployment) -> dict[str, str]:
    """The vLLM config file's lines."""
    (text,) = (text for name, text in made.files if name == "serve.yaml")
    pairs = (line.split(": ", 1) for line in text.splitlines() if ": " in line and not line.startswith("#"))
    return dict(pairs)


@pytest.mark.parametrize(
    ("host", "max_loras"), [(HOST, "5"), (RTX_5090, "4")], ids=["cpu: one more that is never used", "gpu"]
)
def test_vllm_has_a_slot_per_adapter(host: Host, max_loras: str) -> None:
    made = settings(deployment("vllm", tiny(lora={"max_adapters": 4}), host))
    assert (made["max-loras"], made["max-cpu-loras"]) == (max_loras, max_loras)


@pytest.mark.parametrize(("asked", "given"), [(1, 1), (2, 8), (8, 8), (9, 16), (33, 64), (257, 320), (512, 512)])
def test_vllm_takes_only_some_ranks(asked: int, given: int) -> None:
    assert settings(deployment("vllm", tiny(lora={"max_rank": asked}), HOST))["max-lora-rank"] == str(given)


def test_vllm_without_room_for_adapters() -> None:
    made = deployment("vllm", tiny(lora={"max_adapters": 0}), HOST)
    assert not {name for name in settings(made) if "lora" in name}
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in dict(made.launch.env)


@pytest.mark.parametrize(("host", "dtype"), [(HOST, "bfloat16"), (T4, "half"), (RTX_5090, "auto")])
def test_vllm_computes_in_what_the_host_has(host: Host, dtype: str) -> None:
    assert settings(deployment("vllm", tiny(), host))["dtype"] == dtype


@pytest.mark.parametrize("parallel", [1, 2, 7])
def test_context_is_per_request_for_every_engine(parallel: int) -> None:
    profile = tiny(serving={"context": 640, "parallel": parallel})
    assert f"--ctx-size={640 * parallel}" in deployment("llamacpp", profile, HOST).launch.argv
    ollama = deployment("ollama", profile, HOST)
    assert "PARAMETER num_ctx 640" in dict(ollama.files)["Modelfile"].splitlines()
    assert dict(ollama.launch.env)["OLLAMA_CONTEXT_LENGTH"] == "640"
    assert settings(deployment("vllm", profile, HOST))["max-model-len"] == "640"


def test_a_variable_that_a_template_misses_is_an_error() -> None:
    with pytest.raises(OrchError) as ended:
        resources.render_template("ollama/Modelfile.j2", {"profile": tiny(), "model_path": "/model.gguf"})
    assert "chats" in ended.value.detail


@pytest.mark.parametrize("host", [TWO, replace(TWO, gpus=(*V100.gpus, *TWO.gpus))])
def test_vllm_is_told_of_several_gpus(host: Host) -> None:
    two, one = (deployment("vllm", tiny(engines={"vllm": {"gpus": n}}), host) for n in (2, 1))
    assert settings(two).items() - settings(one).items() == {("tensor-parallel-size", "2")}
    assert settings(one).items() <= settings(two).items()
    assert two.fingerprint != one.fingerprint
    assert two.gpu == ("GPU-0,GPU-1" if len(host.gpus) > 2 else "")


def test_the_gpus_that_are_used_decide_how_it_computes() -> None:
    old = tuple(replace(one, uuid=f"GPU-{n}", index=n) for n, one in enumerate(V100.gpus * 2, 1))
    made = deployment("vllm", tiny(engines={"vllm": {"gpus": 2}}), replace(HOST, gpus=(*RTX_5090.gpus, *old)))
    assert (made.gpu, made.recipe, settings(made)["dtype"]) == ("GPU-1,GPU-2", Recipe.WEIGHTS, "half")


def test_on_a_cpu_vllm_is_one_process() -> None:
    two, one = (deployment("vllm", tiny(engines={"vllm": {"gpus": n}}), HOST) for n in (2, 1))
    assert two == one


REFUSALS = [
    ("vllm", Recipe.NVFP4A16, HOST, "no NVFP4A16 kernel for CPUs"),
    ("vllm", Recipe.NVFP4A16, V100, "needs compute capability 7.5; the best GPU here has 7.0"),
    ("vllm", Recipe.NVFP4A16, T4, ""),
    ("vllm", Recipe.NVFP4A16, RTX_5090, ""),
    ("vllm", Recipe.NVFP4, HOST, "no NVFP4 kernel for CPUs"),
    ("vllm", Recipe.NVFP4, V100, "needs compute capability 7.5; the best GPU here has 7.0"),
    ("vllm", Recipe.NVFP4, T4, ""),
    ("vllm", Recipe.FP8, HOST, "too slowly"),
    ("vllm", Recipe.FP8, V100, "needs compute capability 7.5; the best GPU here has 7.0"),
    ("vllm", Recipe.FP8, T4, ""),
    ("vllm", Recipe.WEIGHTS, HOST, ""),
    ("vllm", Recipe.GGUF_Q6_K, RTX_5090, "GGUF only experimentally"),
    ("llamacpp", Recipe.GGUF_Q6_K, HOST, ""),
    ("llamacpp", Recipe.GGUF_BF16, HOST, ""),
    ("llamacpp", Recipe.WEIGHTS, HOST, "GGUF files only"),
    ("llamacpp", Recipe.NVFP4A16, RTX_5090, "GGUF files only"),
    ("ollama", Recipe.GGUF_Q6_K, HOST, ""),
    ("ollama", Recipe.WEIGHTS, HOST, "GGUF only"),
]


@pytest.mark.parametrize(("engine", "recipe", "host", "reason"), REFUSALS)
def test_what_an_engine_cannot_serve(engine: str, recipe: Recipe, host: Host, reason: str) -> None:
    sheet = ENGINES[engine]
    told = sheet.cannot_serve(recipe, sheet.accelerator(host), host)
    assert (reason in told) if reason else told == ""


def test_the_best_of_several_gpus_decides() -> None:
    both = replace(HOST, gpus=(*V100.gpus, *RTX_5090.gpus))
    assert ENGINES["vllm"].cannot_serve(Recipe.NVFP4A16, Accelerator.CUDA, both) == ""


def test_llamacpp_gives_every_request_all_scales() -> None:
    made, sheet = deployment("llamacpp", tiny(), HOST, ("a", "b")), ENGINES["llamacpp"]
    first, second = made.adapters
    assert sheet.patch(made, None) == {"lora": [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 0.0}]}
    assert sheet.patch(made, second) == {"lora": [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 1.0}]}
    assert sheet.patch(deployment("llamacpp", tiny(), HOST), None) == {}
    assert sheet.patch_paths is not None
    assert [ENGINES[name].patch_paths for name in ("ollama", "vllm")] == [None, None]
    assert [word for word in made.launch.argv if word.startswith("--lora=")] == [
        f"--lora={first.gguf}",
        f"--lora={second.gguf}",
    ]
