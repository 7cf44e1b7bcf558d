"""Which GPUs an engine is given, what each of several holds, and what is refused with what would do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fakes.asks import CPU, GIB, gpu, plan_of
from fakes.asks import tiny as tiny_profile
from fakes.world import FakeWorld
from qwen3_8b import NVFP4_BYTES, QWEN3_8B, alike, qwen3_8b, refusal

from orchestrator.core.host import Gpu, GpuUser, Host
from orchestrator.core.launch import InstanceState
from orchestrator.core.memory import MemoryFit, memory_pools
from orchestrator.core.pins import Accelerator
from orchestrator.core.weights import Shape
from orchestrator.engines import ENGINES
from orchestrator.engines.gpus import best_gpus
from orchestrator.planning.memory import suggest


def test_the_best_gpu_is_chosen_by_what_does_not_change_and_then_by_what_is_free() -> None:
    old, new = gpu("Tesla V100-SXM2-32GB", (7, 0), 32), gpu("GeForce RTX 5090", (12, 0), 32)
    assert best_gpus(replace(CPU, gpus=(old, replace(new, memory_free=0)))) == (replace(new, memory_free=0),)
    twins = tuple(replace(new, uuid=f"GPU-{i}", memory_free=free * GIB) for i, free in enumerate((3, 30, 7)))
    assert [one.uuid for one in best_gpus(replace(CPU, gpus=twins))] == ["GPU-1"]
    assert best_gpus(CPU) == ()


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


def memory_fit_on(*gpus: Gpu, shape: Shape = QWEN3_8B, **changes: Any) -> MemoryFit:
    """vLLM's, of Qwen3-8B spread over all of these."""
    profile = qwen3_8b(engines__vllm__gpus=len(gpus), **changes)
    request = ENGINES["vllm"].memory_request(profile, NVFP4_BYTES, shape, Accelerator.CUDA, 0)
    return MemoryFit.of(request, memory_pools(replace(CPU, gpus=gpus), gpus))


def test_each_of_several_gpus_holds_its_part_of_weights_and_cache_and_all_of_the_rest() -> None:
    one, four = memory_fit_on(OLD[0]), memory_fit_on(*OLD)
    assert four.request.weights == NVFP4_BYTES // 4
    assert four.request.kv_token == one.request.kv_token // 4 == 147_456 // 4
    for part in ("lora", "allowance", "ahead", "engine", "context", "parallel"):
        assert getattr(four.request, part) == getattr(one.request, part)
    assert four.requested == one.requested
    # What the weights leave is cache, and a token takes a quarter of it.
    assert four.tokens == pytest.approx((one.kv + NVFP4_BYTES * 3 / 4) / (147_456 / 4), abs=1)


@pytest.mark.parametrize(("gpus", "heads"), [(1, 8), (2, 4), (8, 1)])
def test_no_gpu_has_less_than_one_kv_head(gpus: int, heads: int) -> None:
    few, each = replace(QWEN3_8B, kv_heads=2), alike("new", (12, 0), *[31] * gpus)
    assert memory_fit_on(*each).request.kv_token == heads * 147_456 // 8
    assert memory_fit_on(*each, shape=few).request.kv_token == max(1, 2 // gpus) * 147_456 // 8


def test_on_a_cpu_the_number_of_gpus_changes_nothing() -> None:
    requests = [
        ENGINES["vllm"].memory_request(qwen3_8b(engines__vllm__gpus=n), NVFP4_BYTES, QWEN3_8B, Accelerator.CPU, 0)
        for n in (1, 4)
    ]
    assert requests[0] == requests[1]


def test_of_several_gpus_the_one_with_the_least_free_decides() -> None:
    tight = memory_fit_on(OLD[1], replace(OLD[0], memory_free=20 * GIB), OLD[2])
    assert (tight.fits, tight.pool.uuid, [pool.uuid for pool in tight.short]) == (False, "GPU-old-0", ["GPU-old-0"])
    assert tight.lacking == (
        "vllm asks for 27.2 GiB of GPU memory on each of 3 GPUs (0.85 of 32.0 GiB); 20.0 GiB are free on NVIDIA old "
        "(GPU-old-0), less 0.5 GiB for its CUDA context."
    )
    assert tight.where == "each of 3 x NVIDIA old"
    assert ("weights", -(-NVFP4_BYTES // 3), "1/3 of them: assumed") in tight.rows()
    for way in suggest(tight.request, tight.pool):
        changed = MemoryFit.of(tight.request.changed(way), (tight.pool, *tight.others))
        assert all(one.fits for one in changed.each), way
    assert memory_fit_on(*OLD[:3]).fits


def test_programs_are_told_of_each_gpu_and_as_before_of_one() -> None:
    two, one = memory_fit_on(OLD[1], OLD[0]).to_json(), memory_fit_on(OLD[0]).to_json()
    assert two.keys() == one.keys() | {"gpus"}
    assert [each["uuid"] for each in two["gpus"]] == ["GPU-old-0", "GPU-old-1"]
    assert [each["left"] for each in two["gpus"]] == [one["left"], one["left"] + GIB]
    assert {key: value for key, value in two.items() if key != "gpus"} == two["gpus"][0]


def test_memory_that_comes_back_must_do_so_on_each_gpu_that_is_short() -> None:
    held = GpuUser(7, "python3", 20 * GIB)
    back = replace(OLD[0], memory_free=10 * GIB, users_complete=True)
    never = replace(OLD[1], memory_free=11 * GIB, users_complete=True, users=(held,))
    assert memory_fit_on(back, OLD[1]).fits_later
    assert memory_fit_on(back, replace(back, uuid="GPU-x")).fits_later
    assert not memory_fit_on(back, never).fits_later
    assert not memory_fit_on(*OLD[:2]).fits_later  # it fits now


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
    assert plan.memory_fit is not None
    assert plan.memory_fit.pool.uuid == "GPU-0"
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
    assert error.hint == "In the profile, set engines.vllm.gpus = 1. Parts of a GPU (MIG) are used only one at a time."


def test_an_only_gpu_is_not_named() -> None:
    world = FakeWorld(replace(CPU, gpus=TWINS.gpus[:1]))
    world.run(plan_of("up vllm", tiny_profile(), world.observe()))
    (engine,) = world.observe().engines
    assert "CUDA_VISIBLE_DEVICES" not in dict(engine.instance.launch.env)
