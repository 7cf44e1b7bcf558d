"""The memory budget: figures of Qwen3-8B, and settings that are suggested because they fit."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from typing import Any

import pytest
from fakes.asks import CPU, GIB, gpu, plan_of, shipped, weights_of
from fakes.asks import tiny as tiny_profile
from fakes.world import FakeWorld

from orchestrator import resources
from orchestrator.core.artifact import Recipe
from orchestrator.core.deployment import Desired, Wish
from orchestrator.core.gpus import best_gpus
from orchestrator.core.host import Gpu, GpuUser, Host
from orchestrator.core.launch import InstanceState
from orchestrator.core.pins import Accelerator
from orchestrator.core.plan import Door, Limits, plan_deploy
from orchestrator.core.profile import Profile, parse_profile
from orchestrator.core.vram import CONTEXT_STEP, Ask, Budget, Place, artifact_bytes, places_of, suggest
from orchestrator.core.weights import Shape, WeightsFacts
from orchestrator.engines import ENGINES
from orchestrator.engines.resolve import resolve
from orchestrator.errors import PlanRefused

QWEN3_8B = Shape(
    layers=36, hidden=4096, heads=32, kv_heads=8, head_dim=128, intermediate=12288, vocab=151936, tied=False
)
QWEN3_8B_BYTES = 16_381_470_720
NVFP4_BYTES = 6_396_931_056
Q6_K_BYTES = 6_720_000_000
MIB = 2**20


def qwen3_8b(**changes: Any) -> Profile:
    """The shipped profile; `changes` are `table__key=value`."""
    profile = parse_profile(resources.model_profiles()["qwen3-8b"].read_text(), "qwen3-8b")
    return with_settings(profile, {key.replace("__", "."): value for key, value in changes.items()})


def with_settings(profile: Profile, settings: dict[str, float]) -> Profile:
    """A profile with settings by their path in its file."""
    document = profile.model_dump(mode="json", exclude_none=True)
    for path, value in settings.items():
        *tables, key = path.split(".")
        part = document
        for table in tables:
            part = part[table]
        assert key in part
        part[key] = value
    return Profile.model_validate(document)


def test_the_sizes_of_qwen3_8b() -> None:
    assert QWEN3_8B.kv_token_bytes == 147_456
    assert QWEN3_8B.lora_elements == 3_040_000
    assert QWEN3_8B.layer_parameters == 6_945_767_424
    assert QWEN3_8B.end_parameters == 2 * 622_329_856
    assert artifact_bytes(Recipe.NVFP4A16, QWEN3_8B_BYTES, QWEN3_8B) == pytest.approx(NVFP4_BYTES, rel=0.001)
    assert artifact_bytes(Recipe.GGUF_Q6_K, QWEN3_8B_BYTES, QWEN3_8B) == pytest.approx(Q6_K_BYTES, rel=0.001)
    assert artifact_bytes(Recipe.GGUF_BF16, QWEN3_8B_BYTES, QWEN3_8B) == QWEN3_8B_BYTES


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
    ask = ENGINES["vllm"].ask(profile, NVFP4_BYTES, QWEN3_8B, Accelerator.CUDA, 0)
    budget = Budget(ask, Place("GPU", gib * GIB, gib * GIB, "GPU-1"))
    thousands = TOKENS[gib][rooms][share]
    assert budget.tokens == pytest.approx((thousands or 0) * 1000, abs=100)
    assert budget.fits is (budget.tokens >= profile.serving.context)


@pytest.mark.parametrize(("rank", "each"), [(16, 97.28e6), (32, 194.56e6), (64, 389.12e6), (128, 778.24e6)])
def test_a_lora_slot_of_qwen3_8b(rank: int, each: float) -> None:
    profile = qwen3_8b(lora__max_rank=rank, lora__max_adapters=3)
    sheet = ENGINES["vllm"]
    assert sheet.ask(profile, 1, QWEN3_8B, Accelerator.CUDA, 0).lora == 3 * each
    assert sheet.ask(profile, 1, QWEN3_8B, Accelerator.CPU, 0).lora == 4 * each  # one that is never used
    none = qwen3_8b(lora__max_adapters=0)
    assert sheet.ask(none, 1, QWEN3_8B, Accelerator.CPU, 0).lora == 0


@pytest.mark.parametrize("engine", ["llamacpp", "ollama"])
def test_every_parallel_request_has_its_context(engine: str) -> None:
    profile = qwen3_8b(serving__context=4096, serving__parallel=8)
    ask = ENGINES[engine].ask(profile, Q6_K_BYTES, QWEN3_8B, Accelerator.CPU, 0)
    budget = Budget(ask, Place("this machine", 64 * GIB, 64 * GIB))
    assert budget.kv == 8 * 4096 * 147_456
    assert budget.tokens == 8 * 4096


def test_the_parts_make_the_whole() -> None:
    for ask, place in (draw(random.Random(seed)) for seed in range(200)):
        budget = Budget(ask, place)
        parts = {name: size for name, size, _ in budget.rows()}
        ends = [name for name in ("left", "too much", "missing") if name in parts]
        assert len(ends) == 1
        assert budget.fits == (ends == ["left"]) == (budget.lacking == "")
        if ends == ["left"]:
            assert sum(parts.values()) == place.total
        if ends == ["too much"]:
            assert sum(parts.values()) - 2 * parts["too much"] == place.total - ask.ahead


def draw(dice: random.Random) -> tuple[Ask, Place]:
    """Any Ask of the three kinds at any Place."""
    total = dice.randrange(1, 96) * GIB
    place = Place("GPU", total, int(total * dice.random()), "GPU-1")
    slots = dice.randrange(0, 9)
    kind = dice.choice(["share", "cache", "own"])
    ask = Ask(
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
    )
    return ask, place


def test_what_is_suggested_fits_and_nothing_larger_does() -> None:
    ways = 0
    for ask, place in (draw(random.Random(seed)) for seed in range(600)):
        for way in suggest(ask, place) if not Budget(ask, place).fits else ():
            ways += 1
            assert Budget(ask.changed(way), place).fits, (ask, place, way)
            field, value = list(way.items())[-1]
            assert value != getattr(ask, field)
            if field in ("context", "parallel", "slots"):
                better = value + {"context": CONTEXT_STEP}.get(field, 1)
                assert not Budget(ask.changed({**way, field: better}), place).fits, (ask, place, way)
            # Each of its settings is needed: without one of them the others are not enough.
            for name in way:
                less = {key: new for key, new in way.items() if key != name}
                assert not Budget(ask.changed(less), place).fits, (ask, place, way, name)
    assert ways > 200


def test_no_suggestion_means_that_the_smallest_does_not_fit() -> None:
    none = 0
    for ask, place in (draw(random.Random(seed)) for seed in range(1000)):
        if Budget(ask, place).fits or suggest(ask, place):
            continue
        none += 1
        for share in range(1, 101) if ask.utilisation is not None else [0]:
            smallest = replace(ask, context=128, slots=ask.least_slots, parallel=1)
            if ask.utilisation is not None:
                smallest = replace(smallest, utilisation=share / 100)
            if ask.kv_cache_mib is not None:
                smallest = replace(smallest, kv_cache_mib=max(16, -(-128 * ask.kv_token // MIB)))
            assert not Budget(smallest, place).fits
    assert none


def host(dice: random.Random) -> Host:
    free = dice.uniform(1, 30)
    if dice.random() < 0.4:
        return replace(CPU, memory_available=int(free * GIB), ollama="/usr/bin/ollama")
    gib = dice.choice([8, 12, 16, 24, 32])
    one = replace(gpu("GeForce RTX 5090", (12, 0), gib), memory_free=min(int(free * GIB), gib * GIB))
    return replace(CPU, gpus=(one,), memory_available=int(free * GIB), ollama="/usr/bin/ollama")


def refusal(profile: Profile, engine: str, on: Host) -> PlanRefused | None:
    """What `orch up ENGINE` is refused with for Qwen3-8B, whose weights are here."""
    source = profile.weights.hub
    weights = WeightsFacts(str(source), "weights-1", "/store/weights-1", source, QWEN3_8B_BYTES, QWEN3_8B)
    desired = Desired(wish=Wish(profile=profile, engine=engine, target="local"))
    observed = replace(FakeWorld(on).observe(), finished={"weights-1": QWEN3_8B_BYTES})
    try:
        made = resolve(desired.wish, (), weights, on, shipped())
        plan_deploy("up", made, desired, observed, Door("127.0.0.1:8484"), Limits())
    except PlanRefused as error:
        return error
    return None


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


def test_the_best_gpu_is_chosen_by_what_does_not_change_and_then_by_what_is_free() -> None:
    old, new = gpu("Tesla V100-SXM2-32GB", (7, 0), 32), gpu("GeForce RTX 5090", (12, 0), 32)
    assert best_gpus(replace(CPU, gpus=(old, replace(new, memory_free=0)))) == (replace(new, memory_free=0),)
    twins = tuple(replace(new, uuid=f"GPU-{i}", memory_free=free * GIB) for i, free in enumerate((3, 30, 7)))
    assert [one.uuid for one in best_gpus(replace(CPU, gpus=twins))] == ["GPU-1"]
    assert best_gpus(CPU) == ()


def alike(name: str, capability: tuple[int, int], *free: int) -> tuple[Gpu, ...]:
    """GPUs of 32 GiB with so many free."""
    one = gpu(name, capability, 32)
    return tuple(
        replace(one, uuid=f"GPU-{name}-{i}", index=i, minor=i, memory_free=gib * GIB) for i, gib in enumerate(free)
    )


NEW, OLD = alike("new", (12, 0), 3, 30, 7), alike("old", (9, 0), 31, 32, 31, 32)


@pytest.mark.parametrize(
    ("gpus", "count", "chosen"),
    [
        (NEW, 2, ["new-1", "new-2"]),
        (NEW, 3, ["new-0", "new-1", "new-2"]),
        (NEW, 4, []),
        # The best kind of which there are enough, though another is freer.
        ((*OLD, *NEW), 2, ["new-1", "new-2"]),
        ((*OLD, *NEW), 4, ["old-0", "old-1", "old-2", "old-3"]),
        ((*OLD, *NEW), 5, []),
        # Alike are only those with the same name, memory and capability.
        ((OLD[0], NEW[1]), 2, []),
        ((NEW[0], replace(NEW[1], memory_total=31 * GIB)), 2, []),
        ((NEW[0], replace(NEW[1], name="NVIDIA newer")), 2, []),
        # Parts of a GPU are alike, but not used together.
        (tuple(replace(one, parent="GPU-9") for one in NEW), 1, ["new-1"]),
        (tuple(replace(one, parent="GPU-9") for one in NEW), 2, []),
    ],
)
def test_several_gpus_are_of_one_kind_and_the_freest_of_it(
    gpus: tuple[Gpu, ...], count: int, chosen: list[str]
) -> None:
    assert [one.uuid.removeprefix("GPU-") for one in best_gpus(replace(CPU, gpus=gpus), count)] == chosen


def budget_on(*gpus: Gpu, shape: Shape = QWEN3_8B, **changes: Any) -> Budget:
    """vLLM's, of Qwen3-8B spread over all of these."""
    profile = qwen3_8b(engines__vllm__gpus=len(gpus), **changes)
    ask = ENGINES["vllm"].ask(profile, NVFP4_BYTES, shape, Accelerator.CUDA, 0)
    return Budget.of(ask, places_of(replace(CPU, gpus=gpus), gpus))


def test_each_of_several_gpus_holds_its_part_of_weights_and_cache_and_all_of_the_rest() -> None:
    one, four = budget_on(OLD[0]), budget_on(*OLD)
    assert four.ask.weights == NVFP4_BYTES // 4
    assert four.ask.kv_token == one.ask.kv_token // 4 == 147_456 // 4
    for part in ("lora", "allowance", "ahead", "engine", "context", "parallel"):
        assert getattr(four.ask, part) == getattr(one.ask, part)
    assert four.requested == one.requested
    # What the weights leave is cache, and a token takes a quarter of it.
    assert four.tokens == pytest.approx((one.kv + NVFP4_BYTES * 3 / 4) / (147_456 / 4), abs=1)


@pytest.mark.parametrize(("gpus", "heads"), [(1, 8), (2, 4), (8, 1)])
def test_no_gpu_has_less_than_one_kv_head(gpus: int, heads: int) -> None:
    few, each = replace(QWEN3_8B, kv_heads=2), alike("new", (12, 0), *[31] * gpus)
    assert budget_on(*each).ask.kv_token == heads * 147_456 // 8
    assert budget_on(*each, shape=few).ask.kv_token == max(1, 2 // gpus) * 147_456 // 8


def test_on_a_cpu_the_number_of_gpus_changes_nothing() -> None:
    asks = [
        ENGINES["vllm"].ask(qwen3_8b(engines__vllm__gpus=n), NVFP4_BYTES, QWEN3_8B, Accelerator.CPU, 0) for n in (1, 4)
    ]
    assert asks[0] == asks[1]


def test_of_several_gpus_the_one_with_the_least_free_decides() -> None:
    tight = budget_on(OLD[1], replace(OLD[0], memory_free=20 * GIB), OLD[2])
    assert (tight.fits, tight.place.uuid, [place.uuid for place in tight.short]) == (False, "GPU-old-0", ["GPU-old-0"])
    assert tight.lacking == (
        "vllm asks for 27.2 GiB of GPU memory on each of 3 GPUs (0.85 of 32.0 GiB); 20.0 GiB are free on NVIDIA old "
        "(GPU-old-0), less 0.5 GiB for its CUDA context."
    )
    assert tight.where == "each of 3 x NVIDIA old"
    assert ("weights", -(-NVFP4_BYTES // 3), "1/3 of them: assumed") in tight.rows()
    for way in suggest(tight.ask, tight.place):
        changed = Budget.of(tight.ask.changed(way), (tight.place, *tight.others))
        assert all(one.fits for one in changed.each), way
    assert budget_on(*OLD[:3]).fits


def test_programs_are_told_of_each_gpu_and_as_before_of_one() -> None:
    two, one = budget_on(OLD[1], OLD[0]).to_json(), budget_on(OLD[0]).to_json()
    assert two.keys() == one.keys() | {"gpus"}
    assert [each["uuid"] for each in two["gpus"]] == ["GPU-old-0", "GPU-old-1"]
    assert [each["left"] for each in two["gpus"]] == [one["left"], one["left"] + GIB]
    assert {key: value for key, value in two.items() if key != "gpus"} == two["gpus"][0]


def test_memory_that_comes_back_must_do_so_on_each_gpu_that_is_short() -> None:
    held = GpuUser(7, "python3", 20 * GIB)
    back = replace(OLD[0], memory_free=10 * GIB, users_told=True)
    never = replace(OLD[1], memory_free=11 * GIB, users_told=True, users=(held,))
    assert budget_on(back, OLD[1]).fits_later
    assert budget_on(back, replace(back, uuid="GPU-x")).fits_later
    assert not budget_on(back, never).fits_later
    assert not budget_on(*OLD[:2]).fits_later  # it fits now


TWINS = replace(
    CPU, gpus=tuple(replace(gpu("GeForce RTX 5090", (12, 0), 32), uuid=f"GPU-{i}", index=i) for i in range(2))
)


def held(on: Host, uuid: str, gib: int) -> Host:
    """The same with so much of a GPU held by somebody."""
    gpus = tuple(replace(one, memory_free=one.memory_total - gib * GIB) if one.uuid == uuid else one for one in on.gpus)
    return replace(on, gpus=gpus)


def test_an_engine_stays_on_its_gpu_and_the_next_goes_to_the_other() -> None:
    world = FakeWorld(held(TWINS, "GPU-0", 2))
    world.run(plan_of("up vllm", tiny_profile(), world.observe()))
    (first,) = world.observe().engines
    assert dict(first.instance.launch.env)["CUDA_VISIBLE_DEVICES"] == "GPU-1"
    # What it holds now makes the other one the freest; that alone moves nothing.
    world.host = held(world.host, "GPU-1", 28)
    assert plan_of("up", tiny_profile(), world.observe()).actions == ()
    plan = plan_of("up", tiny_profile(serving={"context": 1024}), world.observe())
    assert plan.budget is not None
    assert plan.budget.place.uuid == "GPU-0"
    world.run(plan)
    (second,) = world.observe().engines
    assert dict(second.instance.launch.env)["CUDA_VISIBLE_DEVICES"] == "GPU-0"


def test_a_stopped_engine_starts_again_where_there_is_a_gpu() -> None:
    world = FakeWorld(TWINS)
    world.run(plan_of("up vllm", tiny_profile(), world.observe()))
    (first,) = world.observe().engines
    process = world.target.processes[first.instance.name]
    process.state, process.pid, process.server = InstanceState.STOPPED, None, None
    lost = dict(first.instance.launch.env)["CUDA_VISIBLE_DEVICES"]
    # The other of two still counts as the second: CUDA would not find it as its first.
    world.host = replace(TWINS, gpus=tuple(one for one in TWINS.gpus if one.uuid != lost))
    world.run(plan_of("up", tiny_profile(), world.observe()))
    (again,) = world.observe().engines
    assert again.instance.name == first.instance.name
    assert dict(again.instance.launch.env).get("CUDA_VISIBLE_DEVICES") == world.host.gpus[0].uuid


@pytest.mark.parametrize("others", [0, 1])
def test_two_gpus_are_named_where_there_are_others(others: int) -> None:
    gpus = alike("new", (12, 0), *[31] * 2, *[30] * others)
    world = FakeWorld(replace(CPU, gpus=gpus))
    world.run(plan_of("up vllm", tiny_profile(engines={"vllm": {"gpus": 2}}), world.observe()))
    (engine,) = world.observe().engines
    named = dict(engine.instance.launch.env).get("CUDA_VISIBLE_DEVICES")
    assert named == ("GPU-new-0,GPU-new-1" if others else None)


def test_two_gpus_of_which_a_third_is_lost_are_named() -> None:
    world = FakeWorld(replace(CPU, gpus=alike("new", (12, 0), 31, 31, 31)[1:], gpu_problem="NVML: GPU 0: GPU is lost"))
    world.run(plan_of("up vllm", tiny_profile(engines={"vllm": {"gpus": 2}}), world.observe()))
    (engine,) = world.observe().engines
    assert dict(engine.instance.launch.env)["CUDA_VISIBLE_DEVICES"] == "GPU-new-1,GPU-new-2"


@pytest.mark.parametrize("count", range(2, 9))
def test_a_number_of_gpus_that_does_not_do_is_refused_with_those_that_do(count: int) -> None:
    on = replace(CPU, gpus=alike("new", (12, 0), *[31] * 8))
    # 32 heads, 8 of them for keys and values.
    error = refusal(qwen3_8b(engines__vllm__gpus=count), "vllm", on)
    if count in (2, 4, 8):
        assert error is None
        return
    assert error is not None
    assert error.message == (
        f"The model cannot be spread over {count} GPUs: its 32 attention heads cannot be divided by {count}."
    )
    assert error.hint == "In the profile, set engines.vllm.gpus to one of: 1, 2, 4, 8."


@pytest.mark.parametrize(("field", "size", "gpus"), [("heads", 36, 8), ("kv_heads", 6, 4), ("intermediate", 12290, 4)])
def test_what_of_a_model_cannot_be_divided(field: str, size: int, gpus: int) -> None:
    sheet = ENGINES["vllm"]
    assert str(size) in sheet.cannot_split(replace(QWEN3_8B, **{field: size}), gpus)
    assert sheet.cannot_split(QWEN3_8B, gpus) == ""


def test_of_too_few_gpus_as_many_are_suggested_as_the_model_can_be_spread_over() -> None:
    on = replace(CPU, gpus=alike("new", (12, 0), 31, 31, 31), gpu_problem="NVML: GPU 3: GPU is lost")
    error = refusal(qwen3_8b(engines__vllm__gpus=4), "vllm", on)
    assert error is not None
    assert error.message == "vllm is to use 4 GPUs that are alike; there are: 3 x NVIDIA new."
    assert error.hint == "In the profile, set engines.vllm.gpus = 2."
    assert error.detail == "NVML: GPU 3: GPU is lost"
    assert refusal(qwen3_8b(engines__vllm__gpus=2), "vllm", on) is None


def test_parts_of_a_gpu_are_refused_with_the_reason() -> None:
    on = replace(CPU, gpus=tuple(replace(one, parent="GPU-9") for one in alike("H100 MIG", (9, 0), 31, 31)))
    error = refusal(qwen3_8b(engines__vllm__gpus=2), "vllm", on)
    assert error is not None
    assert error.message == "vllm is to use 2 GPUs that are alike; there are: 2 x NVIDIA H100 MIG."
    assert error.hint == "In the profile, set engines.vllm.gpus = 1. Parts of a GPU (MIG) are used one by one only."


def test_an_only_gpu_is_not_named() -> None:
    world = FakeWorld(replace(CPU, gpus=TWINS.gpus[:1]))
    world.run(plan_of("up vllm", tiny_profile(), world.observe()))
    (engine,) = world.observe().engines
    assert "CUDA_VISIBLE_DEVICES" not in dict(engine.instance.launch.env)


def test_an_engine_that_runs_needs_no_budget() -> None:
    world = FakeWorld(CPU)
    first = plan_of("up llamacpp", tiny_profile(), world.observe())
    assert first.budget is not None
    assert first.budget.ask.weights == artifact_bytes(
        Recipe.GGUF_Q6_K, weights_of(tiny_profile()).size, weights_of(tiny_profile()).shape or QWEN3_8B
    )
    world.run(first)
    assert plan_of("up", tiny_profile(), world.observe()).budget is None


def test_what_does_not_fit_fits_no_better_with_more_of_it() -> None:
    for seed in range(100):
        ask, place = draw(random.Random(seed))
        for field in ("context", "parallel", "slots", "weights"):
            fits = [Budget(ask.changed({field: n}), place).fits for n in (1, 2, 1000, 10**9)]
            assert fits == sorted(fits, reverse=True)
