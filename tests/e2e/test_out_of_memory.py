"""Engines in a control group whose memory they outgrow: said as that, with what to do, and what serves goes on."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from control_groups import MIB, Group, group
from orch_command import ANSWER, ASSETS, Orch, script, wait_until

pytestmark = [pytest.mark.llamacpp, pytest.mark.groups]

hub_server = script("hub_server")
ENGINE = "tiny-llamacpp-g1"
# 1 GiB of KV cache.
TOO_MUCH = {"context": 2048, "parallel": 256}


@pytest.fixture
def limited() -> Iterator[Group]:
    """A group of 700 MiB and one CPU; it outlives what `orch` has started in it."""
    with group() as made:
        made.limit_memory(700 * MIB)
        made.limit_cpus(1.0)
        yield made


@pytest.fixture
def inside(limited: Group, orch: Orch) -> Orch:
    """`orch` in that group."""
    orch.within = limited.within
    return orch


@pytest.fixture
def unknown(inside: Orch) -> Iterator[Orch]:
    """The same with weights of a hub: how large they are is not known before they are here, so nothing is refused."""
    with hub_server.HubServer({"test/tiny": ASSETS / "tiny-qwen3"}) as server:
        inside.env["HF_ENDPOINT"] = server.url
        yield inside


def write_hub_profile(orch: Orch, **serving: int) -> None:
    orch.write_profile(**serving)
    text = orch.profile.read_text()
    orch.profile.write_text(text.replace(f'path = "{ASSETS / "tiny-qwen3"}"', 'repo = "test/tiny"\nrevision = "main"'))


def up(orch: Orch, code: int) -> dict[str, Any]:
    return orch.run("up", "llamacpp", "-p", str(orch.profile), "--json", code=code).lines[-1]


def test_an_engine_that_outgrows_it_is_told_with_what_to_do_and_that_helps(unknown: Orch, limited: Group) -> None:
    write_hub_profile(unknown, **TOO_MUCH)
    told = up(unknown, 6)
    assert told["error"].endswith(f"{ENGINE} ran out of memory (its limit is 700 MiB).")
    assert told["hint"] == (
        "Lower serving.context or serving.parallel in the profile, or raise the limit of the control group that it "
        f"runs in. All of its log: orch logs {ENGINE}"
    )
    assert "loading model" in told["detail"]
    assert "for want of memory, nobody asked for it ---" in (unknown.home / "logs" / f"{ENGINE}.log").read_text()
    assert unknown.processes() == []
    # Now their size is known, and what would not fit is refused.
    told = up(unknown, 5)
    assert "free in this control group (700 MiB)" in told["error"]
    parallel = int(re.findall(r"serving\.parallel = (\d+)", told["hint"])[0])
    write_hub_profile(unknown, context=2048, parallel=parallel)
    up(unknown, 0)
    assert unknown.says() == ANSWER
    unknown.status()


def test_the_limit_may_be_raised_instead(unknown: Orch, limited: Group) -> None:
    write_hub_profile(unknown, **TOO_MUCH)
    up(unknown, 6)
    limited.limit_memory(2000 * MIB)
    up(unknown, 0)
    assert unknown.says() == ANSWER


def test_status_tells_what_is_restarted_after_it(inside: Orch, limited: Group) -> None:
    inside.run("up", "llamacpp", "-p", str(inside.profile))
    pid = inside.record(ENGINE)["engine"][0]
    # Something else in the group takes the memory; the kernel is told whom to end.
    Path(f"/proc/{pid}/oom_score_adj").write_text("1000")
    eater = "held = [b'1' * 2**20 for _ in range(1000)]"
    subprocess.run([*limited.within, sys.executable, "-c", eater], check=False, timeout=60)
    row = wait_until(lambda: (row := inside.engines()[ENGINE])["restarts"] and row["answers"] and row)
    assert row["last_exit"] == "ran out of memory (its limit is 700 MiB)"
    told = inside.status().document["out_of_memory"]
    assert re.fullmatch(
        rf"{ENGINE} ran out of memory \(its limit is 700 MiB\) at \S+, and was started again\.", told[0]
    )


def test_it_computes_with_the_cpus_of_the_group(inside: Orch, limited: Group) -> None:
    """llama.cpp itself takes as many threads as the machine has cores."""
    text = inside.profile.read_text().replace("[engines.llamacpp]\nthreads = 1\n", "")
    assert "threads" not in text
    inside.profile.write_text(text)
    inside.run("up", "llamacpp", "-p", str(inside.profile))
    assert re.search(r"n_threads = 1\b", (inside.home / "logs" / f"{ENGINE}.log").read_text())
    # By whom it is asked for decides nothing: an engine that is well stays, also for one who has other CPUs.
    limited.limit_cpus(2.0)
    assert inside.actions("up") == []
    inside.within = ()
    assert inside.actions("up") == []
