"""Whether an engine fits into memory: figures of Qwen3-8B, and settings that are suggested because they fit."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest
from fakes.asks import CPU, DAEMON, GIB, context_of, gpu, plan_of, weights_of
from fakes.asks import tiny as tiny_profile
from fakes.world import FakeWorld
from qwen3_8b import NVFP4_BYTES, QWEN3_8B, QWEN3_8B_BYTES, alike, qwen3_8b, refusal, with_settings

from orchestrator.core.artifact import Recipe
from orchestrator.core.deployment import DeploymentSpec
from orchestrator.core.host import Host, Memory
from orchestrator.core.memory import MemoryFit, MemoryPool, MemoryRequest, artifact_bytes, memory_pools
from orchestrator.core.pins import Accelerator
from orchestrator.engines import ENGINES
from orchestrator.engines.resolve import resolve
from orchestrator.planning.memory import CONTEXT_STEP, suggest

Q6_K_BYTES = 6_720_000_000
MIB = 2**20


def test_the_sizes_of_qwen3_8b() -> None:
    assert QWEN3_8B.kv_token_bytes == 147_456
    assert QWEN3_8B.lora_elements == 3_040_000
    assert QWEN3_8B.layer_parameters == 6_945_767_424
    assert QWEN3_8B.end_parameters == 2 * 622_329_856
    assert artifact_bytes(Recipe.NVFP4A16, QWEN3_8B_BYTES, QWEN3_8B) == pytest.approx(NVFP4_BYTES, rel=0.001)
    assert artifact_bytes(Recipe.GGUF_Q6_K, QWEN3_8B_BYTES, QWEN3_8B) == pytest.approx(Q6_K_BYTES, rel=0.001)
    assert artifact_bytes(Recipe.GGUF_BF16, QWEN3_8B_BYTES, QWEN3_8B) == QWEN3_8B_BYTES


# By hand: of 32,607 MiB the driver keeps some 500 and Ollama holds 6.7 GB (Q6_K, and its KV cache); vLLM's context
# comes first (512 MiB), and one hundredth stays spare. None: what the profile promises, four requests of 8,192 tokens
# (4.5 GiB), would not fit beside 6.0 GiB of weights and the allowance of 1.2.
@pytest.mark.parametrize(
    ("gib", "held", "share"),
    [(31.84, 6.7e9 + 500 * MIB, 0.76), (23.9, 6.7e9 + 500 * MIB, 0.68), (15.9, 6.7e9 + 500 * MIB, None)],
    ids=["RTX 5090", "RTX 4090", "16 GB"],
)
def test_beside_ollama_vllm_takes_what_it_leaves(gib: float, held: float, share: float | None) -> None:
    request = ENGINES["vllm"].memory_request(
        qwen3_8b(serving__context=8192, serving__parallel=4), NVFP4_BYTES, QWEN3_8B, Accelerator.CUDA, 0
    )
    total = int(gib * GIB)
    whole = MemoryFit(request, MemoryPool("GPU", total, total - int(held), "GPU-1"))
    less = whole.beside
    assert not whole.fits
    if share is None:
        assert less is None or not less.serves_all
        return
    assert less is not None
    assert (less.request.utilisation, less.fits, less.serves_all) == (share, True, True)


# vLLM's fit formula worked out by hand: thousands of KV tokens for 0.85 and 0.92 of so many GiB, without LoRA, with
# two slots of rank 16, and with four of rank 64. None: the weights alone are too much.
TOKENS: dict[int, tuple[tuple[float | None, float | None], ...]] = {
    8: ((None, 1.5), (None, 0.15), (None, None)),
    12: ((22.2, 28.3), (20.8, 27.0), (11.6, 17.7)),
    16: ((46.9, 55.1), (45.6, 53.7), (36.4, 44.5)),
    24: ((96.4, 108.7), (95.1, 107.3), (85.9, 98.1)),
    32: ((145.9, 162.3), (144.6, 160.9), (135.4, 151.7)),
}


@pytest.mark.parametrize("gib", TOKENS)
@pytest.mark.parametrize("rooms", [0, 1, 2], ids=["no LoRA", "2 x r16", "4 x r64"])
@pytest.mark.parametrize("share", [0, 1], ids=[".85", ".92"])
def test_the_kv_cache_of_qwen3_8b_on_a_gpu(gib: int, rooms: int, share: int) -> None:
    slots, rank = ((0, 16), (2, 16), (4, 64))[rooms]
    profile = qwen3_8b(
        engines__vllm__gpu_memory_utilization=(0.85, 0.92)[share], lora__max_adapters=slots, lora__max_rank=rank
    )
    request = ENGINES["vllm"].memory_request(profile, NVFP4_BYTES, QWEN3_8B, Accelerator.CUDA, 0)
    memory_fit = MemoryFit(request, MemoryPool("GPU", gib * GIB, gib * GIB, "GPU-1"))
    thousands = TOKENS[gib][rooms][share]
    assert memory_fit.tokens == pytest.approx((thousands or 0) * 1000, abs=100)
    assert memory_fit.fits is (memory_fit.tokens >= profile.serving.context)


@pytest.mark.parametrize(("rank", "each"), [(16, 97.28e6), (32, 194.56e6), (64, 389.12e6), (128, 778.24e6)])
def test_a_lora_slot_of_qwen3_8b(rank: int, each: float) -> None:
    profile = qwen3_8b(lora__max_rank=rank, lora__max_adapters=3)
    sheet = ENGINES["vllm"]
    assert sheet.memory_request(profile, 1, QWEN3_8B, Accelerator.CUDA, 0).lora == 3 * each
    assert sheet.memory_request(profile, 1, QWEN3_8B, Accelerator.CPU, 0).lora == 4 * each  # one that is never used
    none = qwen3_8b(lora__max_adapters=0)
    assert sheet.memory_request(none, 1, QWEN3_8B, Accelerator.CPU, 0).lora == 0


@pytest.mark.parametrize("engine", ["llamacpp", "ollama"])
def test_every_parallel_request_has_its_context(engine: str) -> None:
    profile = qwen3_8b(serving__context=4096, serving__parallel=8)
    request = ENGINES[engine].memory_request(profile, Q6_K_BYTES, QWEN3_8B, Accelerator.CPU, 0)
    memory_fit = MemoryFit(request, MemoryPool("this machine", 64 * GIB, 64 * GIB))
    assert memory_fit.kv == 8 * 4096 * 147_456
    assert memory_fit.tokens == 8 * 4096


def test_the_parts_make_the_whole() -> None:
    for request, pool in (draw(random.Random(seed)) for seed in range(200)):
        memory_fit = MemoryFit(request, pool)
        parts = {name: size for name, size, _ in memory_fit.rows()}
        ends = [name for name in ("left", "too much", "missing") if name in parts]
        assert len(ends) == 1
        assert memory_fit.fits == (ends == ["left"]) == (memory_fit.lacking == "")
        if ends == ["left"]:
            assert sum(parts.values()) == pool.total
        if ends == ["too much"]:
            assert sum(parts.values()) - 2 * parts["too much"] == pool.total - request.ahead


def draw(dice: random.Random) -> tuple[MemoryRequest, MemoryPool]:
    """Any MemoryRequest of the three kinds, and any MemoryPool."""
    total = dice.randrange(1, 96) * GIB
    pool = MemoryPool("GPU", total, int(total * dice.random()), "GPU-1")
    slots = dice.randrange(0, 9)
    kind = dice.choice(["share", "cache", "own"])
    request = MemoryRequest(
        name="vllm",
        weights=dice.randrange(1, 40) * GIB // 2,
        kv_token=dice.choice([1024, 147_456, 1_000_000]),
        context=dice.choice([128, 129, 512, 8192, 40960, 1_048_576]),
        parallel=dice.choice([1, 2, 4, 256]),
        allowance=dice.randrange(0, 2 * GIB),
        ahead=dice.choice([0, 512 * MIB]),
        engine=dice.randrange(0, GIB),
        slot=dice.choice([0, 97_280_000, 800_000_000]),
        slots=slots,
        least_slots=dice.randrange(0, slots + 1),
        spare_slot=dice.choice([True, False]),
        utilisation=dice.randrange(1, 101) / 100 if kind == "share" else None,
        kv_cache_mib=dice.choice([16, 64, 1024, 65536]) if kind == "cache" else None,
        prompt_cache_mib=dice.choice([0, 0, 100, 8192]),
    )
    return request, pool


def test_what_is_suggested_fits_and_nothing_larger_does() -> None:
    ways = 0
    for request, pool in (draw(random.Random(seed)) for seed in range(600)):
        for way in suggest(request, pool) if not MemoryFit(request, pool).fits else ():
            ways += 1
            assert MemoryFit(request.changed(way), pool).fits, (request, pool, way)
            field, value = list(way.items())[-1]
            assert value != getattr(request, field)
            if field in ("context", "parallel", "slots", "prompt_cache_mib"):
                better = value + {"context": CONTEXT_STEP}.get(field, 1)
                assert not MemoryFit(request.changed({**way, field: better}), pool).fits, (request, pool, way)
            # Each of its settings is needed: without one of them the others are not enough.
            for name in way:
                less = {key: new for key, new in way.items() if key != name}
                assert not MemoryFit(request.changed(less), pool).fits, (request, pool, way, name)
    assert ways > 200


@pytest.mark.slow
def test_no_suggestion_means_that_the_smallest_does_not_fit() -> None:
    none = 0
    for request, pool in (draw(random.Random(seed)) for seed in range(1000)):
        if MemoryFit(request, pool).fits or suggest(request, pool):
            continue
        none += 1
        for share in range(1, 101) if request.utilisation is not None else [0]:
            smallest = replace(request, context=128, slots=request.least_slots, parallel=1, prompt_cache_mib=0)
            if request.utilisation is not None:
                smallest = replace(smallest, utilisation=share / 100)
            if request.kv_cache_mib is not None:
                smallest = replace(smallest, kv_cache_mib=max(16, -(-128 * request.kv_token // MIB)))
            assert not MemoryFit(smallest, pool).fits
    assert none


def host(dice: random.Random) -> Host:
    free = dice.uniform(1, 30)
    if dice.random() < 0.4:
        return replace(CPU, memory_available=int(free * GIB), programs={"ollama": "/usr/bin/ollama"})
    gib = dice.choice([8, 12, 16, 24, 32])
    one = replace(gpu("GeForce RTX 5090", (12, 0), gib), memory_free=min(int(free * GIB), gib * GIB))
    return replace(CPU, gpus=(one,), memory_available=int(free * GIB), programs={"ollama": "/usr/bin/ollama"})


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["vllm", "llamacpp", "ollama"])
def test_doing_what_the_hint_says_makes_it_fit(engine: str) -> None:
    refused = tried = 0
    for seed in range(60):
        dice = random.Random(seed)
        on = host(dice)
        profile = qwen3_8b(
            serving__context=dice.choice([4096, 8192, 40960]),
            serving__parallel=dice.choice([1, 4, 16]),
            lora__max_adapters=dice.choice([0, 4, 16]),
            engines__vllm__gpu_memory_utilization=dice.choice([0.5, 0.85, 0.92]),
            engines__vllm__kv_cache_mib=dice.choice([512, 4608]),
            engines__ollama__prompt_cache_mib=dice.choice([0, 8192]),
        )
        error = refusal(profile, engine, on)
        if error is None:
            continue
        refused += 1
        ways = error.hint.split("; or ") if "In the profile, set" in error.hint else []
        assert len(ways) <= 2
        for way in ways:
            settings = {key: float(value) for key, value in re.findall(r"([a-z_.]+\.[a-z_]+) = ([\d.]*\d)", way)}
            assert settings
            changed = {key: value if "utilization" in key else int(value) for key, value in settings.items()}
            assert refusal(with_settings(profile, changed), engine, on) is None, (error.message, error.hint)
            tried += 1
    assert refused > 10
    assert tried > 10


LIMIT_FILE = "/sys/fs/cgroup/memory.max"


def in_group(total: int, available: int) -> Host:
    """A machine whose control group leaves so many MiB."""
    return CPU.having(Memory(total * MIB, available * MIB, LIMIT_FILE))


def test_in_a_control_group_its_memory_counts_and_is_named() -> None:
    (pool,) = memory_pools(in_group(9000, 7000), ())
    assert (pool.name, pool.total, pool.free) == ("this control group (9000 MiB)", 9000 * MIB, 7000 * MIB)
    assert MemoryFit(MemoryRequest("one", GIB, 1, 1, 1), pool).to_json()["limit_file"] == LIMIT_FILE
    # What a GPU has is in no control group.
    new = alike("new", (12, 0), 3)
    (one,) = memory_pools(replace(in_group(9000, 7000), gpus=new), new)
    assert (one.name, one.limit_file) == ("NVIDIA new", "")


def test_what_does_not_fit_into_a_control_group_is_refused_by_its_name_and_may_be_given_more() -> None:
    error = refusal(qwen3_8b(serving__context=4096, serving__parallel=4), "llamacpp", in_group(9000, 900))
    assert error is not None
    assert error.message == (
        "llamacpp needs about 8.9 GiB of memory; 900 MiB are free in this control group (9000 MiB)."
    )
    assert error.hint == (
        "No settings of the profile make it fit: free some memory, or serve a smaller artifact. "
        f"Or raise the limit, which is set in {LIMIT_FILE}."
    )
    assert error.detail.splitlines()[-1].endswith("of 8.8 GiB")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["vllm", "llamacpp", "ollama"])
def test_what_is_suggested_for_a_control_group_fits_beside_the_gateway(engine: str) -> None:
    """Which is started in it before the engine, and counted by the next plan."""
    tried = 0
    for available in range(8000, 40_000, 500):
        on = replace(in_group(50_000, available), programs={"ollama": "/usr/bin/ollama"})
        profile = qwen3_8b(serving__context=8192, serving__parallel=16, engines__vllm__kv_cache_mib=20_000)
        error = refusal(profile, engine, on)
        ways = error.hint.split("; or ") if error is not None and "In the profile, set" in error.hint else []
        for way in ways:
            settings = {key: int(value) for key, value in re.findall(r"([a-z_.]+\.[a-z_]+) = (\d+)", way)}
            later = replace(on, memory_available=on.memory_available - 62 * MIB)
            assert refusal(with_settings(profile, settings), engine, later) is None, way
            tried += 1
    assert tried > 10


@pytest.mark.parametrize(
    ("target", "where", "total"),
    [("local", "this control group (9000 MiB)", 9000 * MIB), ("docker", "this machine", 60 * GIB)],
)
def test_a_container_is_not_in_the_group_of_who_asks_for_it(target: str, where: str, total: int) -> None:
    on = replace(in_group(9000, 7000), programs={"ollama": "/usr/bin/ollama"})
    spec = DeploymentSpec(profile=tiny_profile(), engine="ollama", target=target)
    daemon = replace(DAEMON, memory=Memory(60 * GIB, 50 * GIB))
    memory_fit = resolve(spec, (), weights_of(spec.profile), on, context_of(spec.profile, docker=daemon)).memory_fit
    assert memory_fit is not None
    assert (memory_fit.pool.name, memory_fit.pool.total) == (where, total)


def test_an_engine_that_runs_is_not_fitted_again() -> None:
    world = FakeWorld(CPU)
    first = plan_of("up llamacpp", tiny_profile(), world.observe())
    assert first.memory_fit is not None
    assert first.memory_fit.request.weights == artifact_bytes(
        Recipe.GGUF_Q6_K, weights_of(tiny_profile()).size, weights_of(tiny_profile()).shape or QWEN3_8B
    )
    world.run(first)
    assert plan_of("up", tiny_profile(), world.observe()).memory_fit is None


def test_what_does_not_fit_fits_no_better_with_more_of_it() -> None:
    for seed in range(100):
        request, pool = draw(random.Random(seed))
        for field in ("context", "parallel", "slots", "weights"):
            fits = [MemoryFit(request.changed({field: n}), pool).fits for n in (1, 2, 1000, 10**9)]
            assert fits == sorted(fits, reverse=True)
