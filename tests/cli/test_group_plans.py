"""`orch` in a control group with less memory and fewer CPUs than the machine: what it plans, and what it says."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import pytest
from control_groups import MIB, Group, group
from orch_command import ASSETS, Orch

pytestmark = pytest.mark.groups

LIMIT = 700 * MIB


@pytest.fixture
def limited(orch: Orch) -> Iterator[Group]:
    """`orch` in a group of 700 MiB and one CPU."""
    with group() as made:
        made.limit_memory(LIMIT)
        made.limit_cpus(1.0)
        orch.within = made.within
        yield made


def up(orch: Orch, engine: str, code: int = 0) -> list[dict[str, Any]]:
    return orch.run("up", engine, "-p", str(orch.profile), "--plan", "--json", code=code).lines


@pytest.mark.parametrize("engine", ["llamacpp", "vllm"])
def test_a_plan_counts_the_memory_of_the_group(orch: Orch, limited: Group, engine: str) -> None:
    if engine == "vllm":
        limited.limit_memory(2000 * MIB)
    total = int(limited.memory_file.read_text())
    (budget,) = (line["budget"] for line in up(orch, engine) if "budget" in line)
    assert (budget["where"], budget["total"]) == (f"this control group ({total >> 20} MiB)", total)
    assert budget["limit_file"] == str(limited.memory_file)
    assert 0 < budget["held"] < 200 * MIB
    assert budget["left"] < total
    assert budget["fits"] is True


def test_people_read_whose_memory_it_is(orch: Orch, limited: Group) -> None:
    shown = orch.run("up", "llamacpp", "-p", str(orch.profile), "--plan").out
    assert "Memory of this control group (700 MiB)" in shown
    assert re.search(r"left +0\.\d\d GiB  of 700 MiB", shown)


def test_what_does_not_fit_into_the_group_is_refused_with_what_would(orch: Orch, limited: Group) -> None:
    """Which would be planned on the machine, and the engine killed."""
    orch.write_profile(context=2048, parallel=256)
    error = up(orch, "llamacpp", code=5)[-1]
    assert re.fullmatch(
        r"llamacpp needs about 1\.1 GiB of memory; \d+ MiB are free in this control group \(700 MiB\)\.", error["error"]
    )
    ways = re.findall(r"serving\.(context|parallel) = (\d+)", error["hint"])
    assert [name for name, _ in ways] == ["context", "parallel"]
    assert error["hint"].endswith(f"Or raise the limit, which is set in {limited.memory_file}.")
    for name, value in ways:
        orch.write_profile(**{"context": 2048, "parallel": 256, name: int(value)})
        up(orch, "llamacpp")
    orch.write_profile(context=2048, parallel=256)
    limited.limit_memory(2000 * MIB)
    up(orch, "llamacpp")


def test_builds_use_the_cpus_of_the_group(orch: Orch, limited: Group) -> None:
    def estimate() -> dict[str, Any]:
        words = ("build", "gguf", str(ASSETS / "tiny-qwen3"), "-o", str(orch.home / "a.gguf"), "--json")
        (told,) = (line["estimate"] for line in orch.run(*words).lines if "estimate" in line)
        assert isinstance(told, dict)
        return told

    assert estimate()["cores"] == 1
    limited.limit_cpus(1.5)
    assert estimate()["cores"] == min(2, len(os.sched_getaffinity(0)))
