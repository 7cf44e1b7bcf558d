"""Where only one engine fits: the old one ends first, while requests wait at the gateway, and no client notices more.

A pool of memory that somebody has declared (ORCH_ENGINE_MEMORY) stands for the card. Ollama is its stand-in.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from control_groups import MIB, group
from forks import Forked
from mixed_load import MixedLoad, problems
from orch_command import ANSWER, ASSETS, Orch, Outcome, stopped_afterwards, wait_until
from stand_in_orch import OnStandIn

pytestmark = pytest.mark.llamacpp

# Ollama's stand-in is thought to take 0.21 GiB, llama.cpp's server 0.12.
ONE_FITS = "300MiB"
TO_OLLAMA, TO_LLAMACPP = ("migrate", "--to", "ollama"), ("migrate", "--to", "llamacpp")
HELD = ["HoldRequests", "Drain", "StopEngine", "EnsureEngine", "AwaitReady", "RecordDesired", "SetRoute", "VerifyRoute"]


@pytest.fixture
def one(tmp_path: Path) -> Iterator[OnStandIn]:
    """llama.cpp with an adapter, in a pool that holds one engine."""
    with stopped_afterwards(OnStandIn(tmp_path / "home")) as orch:
        orch.env["ORCH_ENGINE_MEMORY"] = ONE_FITS
        orch.run("up", "llamacpp", "-p", str(orch.profile))
        orch.run("lora", "add", "alpha", str(ASSETS / "lora-a"))
        yield orch


@pytest.fixture
def load(one: OnStandIn) -> Iterator[MixedLoad]:
    """Twelve clients; none of their requests may fail."""
    running = MixedLoad(f"http://{one.listen}", ("tiny", "alpha")).start()
    wait_until(lambda: any(asked.first for asked in running.asked), what="an answer")
    yield running
    assert problems(running.stop()) == []


def serving(orch: Orch) -> list[str]:
    return [row["engine"] for row in orch.engines().values()]


def settled(orch: Orch, engine: str) -> None:
    """It serves, alone, in sync, and nobody waits."""
    orch.status()
    assert serving(orch) == [engine]
    assert (orch.says(), orch.says("alpha")) == (ANSWER, "Ahoy! The answer is alpha.")
    assert orch.gateway_status()["paused"] == {}


def form_of(orch: Orch, *command: str) -> str:
    (plan,) = (line for line in orch.run(*command, "--plan", "--json").lines if "plan" in line)
    (told,) = (item for item in plan["items"] if item.get("skip", "").startswith("form "))
    return f"{told['skip'].removeprefix('form ')}: {told['why']}"


def test_the_form_follows_from_what_fits(one: OnStandIn) -> None:
    assert form_of(one, *TO_OLLAMA).startswith("handover: they do not fit together")
    refused = one.run(*TO_OLLAMA, "--form", "overlap", code=5)
    assert "--form handover" in refused.err
    one.env["ORCH_ENGINE_MEMORY"] = "1GiB"
    assert form_of(one, *TO_OLLAMA).startswith("overlap: both fit")
    assert form_of(one, *TO_OLLAMA, "--form", "handover").startswith("handover: it was asked for")
    one.env["ORCH_ENGINE_MEMORY"] = "200MiB"
    refused = one.run(*TO_OLLAMA, code=5)
    assert "set in ORCH_ENGINE_MEMORY" in refused.err
    assert "--form" not in refused.err
    settled(one, "llamacpp")


def test_there_and_back_by_one_command_each(one: OnStandIn, load: MixedLoad) -> None:
    one.run(*TO_OLLAMA)
    settled(one, "ollama")
    one.run("rollback")
    settled(one, "llamacpp")


def test_a_changed_profile_under_load(one: OnStandIn, load: MixedLoad) -> None:
    one.env["ORCH_ENGINE_MEMORY"] = "200MiB"
    one.write_profile(context=768)
    changed = one.run("up", "-p", str(one.profile), "--json")
    assert [step for step in changed.steps("done") if step in HELD] == HELD
    settled(one, "llamacpp")


def test_what_stands_by_is_back_without_an_import(one: OnStandIn, load: MixedLoad) -> None:
    """llama.cpp's server ended, Ollama's without its model: each is left alone until it is wanted."""
    one.run(*TO_OLLAMA, "--keep-old")
    states = {"tiny-llamacpp-g2": "standby", "tiny-ollama-g3": "running"}
    assert {name: row["state"] for name, row in one.engines().items()} == states
    one.status()
    assert "ReleaseRequests" not in one.run("up", "--json").steps("started")
    back = one.run("rollback", "--json").steps("done")
    assert back.index("StopEngine" if "StopEngine" in back else "UnloadModel") < back.index("EnsureEngine")
    states = {"tiny-llamacpp-g2": "running", "tiny-ollama-g3": "standby"}
    assert {name: row["state"] for name, row in one.engines().items()} == states
    assert one.engines()["tiny-ollama-g3"]["pid"]
    forth = one.run("rollback", "--json").steps("done")
    assert {"EnsureEngine", "ImportArtifact"}.isdisjoint(forth)
    one.status()
    assert (one.says(), one.says("alpha")) == (ANSWER, "Ahoy! The answer is alpha.")


@pytest.mark.docker
def test_in_containers(orch_docker: Orch) -> None:
    """The pool is the same, whatever the daemon says of its memory."""
    orch = orch_docker
    orch.env["ORCH_ENGINE_MEMORY"] = ONE_FITS
    orch.run("up", "ollama", "-p", str(orch.profile))
    running = MixedLoad(f"http://{orch.listen}", ("tiny",), clients=4).start()
    orch.write_profile(context=768)
    changed = orch.run("up", "-p", str(orch.profile), "--json")
    assert "HoldRequests" in changed.steps("done")
    assert problems(running.stop()) == []
    orch.status()
    assert orch.says() == ANSWER
    assert len(orch.processes()) == orch.all_of_it


@pytest.mark.groups
def test_in_a_control_group_that_holds_one(tmp_path: Path) -> None:
    """Nobody has declared anything: the group's limit is real, and its kernel would end what is too much for it."""
    with group() as limited, stopped_afterwards(OnStandIn(tmp_path / "home")) as orch:
        limited.limit_memory(700 * MIB)
        orch.within = limited.within
        # A KV cache of 256 MiB, whichever engine has it.
        orch.write_profile(context=2048, parallel=64)
        orch.run("up", "llamacpp", "-p", str(orch.profile))
        sizes = re.match(
            r"handover: they do not fit together: (0\.\d+) GiB are needed, (0\.\d+) GiB free;",
            form_of(orch, *TO_OLLAMA),
        )
        assert sizes is not None and float(sizes[1]) > float(sizes[2])
        running = MixedLoad(f"http://{orch.listen}", ("tiny",)).start()
        wait_until(lambda: any(asked.first for asked in running.asked), what="an answer")
        orch.run(*TO_OLLAMA)
        orch.status()
        assert serving(orch) == ["ollama"]
        orch.run("rollback")
        orch.status()
        assert serving(orch) == ["llamacpp"]
        assert problems(running.stop()) == []
        assert limited.kills == 0


def test_a_hold_that_would_last_too_long_ends_with_the_old_engine(one: OnStandIn, load: MixedLoad) -> None:
    one.slow(load=60)
    told = one.run(*TO_OLLAMA, "--max-hold", "3", "--json", code=6)
    assert "has been held for" in told.lines[-1]["error"]
    assert "--max-hold" in told.lines[-1]["hint"]
    settled(one, "llamacpp")


def test_who_waits_is_told_meanwhile(one: OnStandIn) -> None:
    """And what is being done is not told as something that is wrong."""
    one.slow(load=8)
    load = MixedLoad(f"http://{one.listen}", ("tiny",), clients=3).start()
    moving = one.start(*TO_OLLAMA)
    wait_until(lambda: one.gateway_status()["held"] == 3, what="requests that are held")
    (hold,) = one.status(code=8).document["gateway"]["holds"]
    assert (hold["profile"], hold["requests"]) == ("tiny", 3)
    assert 0 < hold["longest_s"] < hold["expires_s"] <= 300
    plain = one.run("status", code=8).out
    assert "3 requests to tiny, the longest for" in plain
    assert "DRIFT" not in plain
    moving.communicate(timeout=120)
    assert moving.returncode == 0
    assert problems(load.stop()) == []
    assert one.status().document["gateway"]["holds"] == []


def test_what_takes_too_long_to_end_is_not_cut(one: OnStandIn) -> None:
    pid = int(one.engines()["tiny-llamacpp-g2"]["pid"])
    os.kill(pid, signal.SIGSTOP)
    try:
        running = MixedLoad(f"http://{one.listen}", ("tiny",), clients=2).start()
        wait_until(lambda: sum(load["in_flight"] for load in one.gateway_status()["backends"].values()) == 2)
        told = one.run(*TO_OLLAMA, "--drain", "1", "--json", code=6)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert "2 requests are in flight" in told.lines[-1]["error"]
    assert problems(running.stop()) == []
    settled(one, "llamacpp")


@pytest.mark.sampled
def test_killed_at_every_step_the_same_command_finishes_it(
    one: OnStandIn, load: MixedLoad, thorough: bool, chance: random.Random
) -> None:
    """Whoever waits goes on waiting until it does."""
    ways = [(TO_OLLAMA, "ollama"), (TO_LLAMACPP, "llamacpp")]
    steps = one.actions(*TO_OLLAMA)
    numbers = range(len(steps))
    for turn, number in enumerate(numbers if thorough else sorted(chance.sample(numbers, 2))):
        command, engine = ways[turn % 2]
        number = min(number, len(one.actions(*command)) - 1)
        one.signal_at(number, signal.SIGKILL, *command)
        one.run(*command)
        settled(one, engine)


@pytest.mark.sampled
def test_killed_at_every_step_up_finishes_it_or_goes_back(
    one: OnStandIn, load: MixedLoad, thorough: bool, chance: random.Random
) -> None:
    """By what was recorded then: until RecordDesired it goes back."""
    steps = one.actions(*TO_OLLAMA)
    numbers = range(len(steps))
    for number in numbers if thorough else sorted(chance.sample(numbers, 2)):
        one.signal_at(number, signal.SIGKILL, *TO_OLLAMA)
        one.run("up")
        (engine,) = serving(one)
        settled(one, engine)
        assert engine == "llamacpp" or number >= steps.index("RecordDesired")
        if engine == "ollama":
            one.run(*TO_LLAMACPP)


@pytest.mark.parametrize("step", ["EnsureEngine", "AwaitReady", "SetRoute"])
def test_killed_and_then_interrupted_it_is_taken_back(one: OnStandIn, load: MixedLoad, step: str) -> None:
    """The second command knows that requests are held, and leaves nobody without an engine."""
    one.env["ORCH_ENGINE_MEMORY"] = "200MiB"
    one.write_profile(context=768)
    change = ("up", "-p", str(one.profile))
    one.signal_at(one.actions(*change).index(step), signal.SIGKILL, *change)
    steps = one.actions(*change)
    told = one.signal_at(steps.index("HoldRequests") + 1, signal.SIGINT, *change)
    assert told.code in (0, 130), told.out
    assert (one.says(), one.gateway_status()["paused"]) == (ANSWER, {})
    # What the kill left is told, and finished by the next.
    one.run("up")
    settled(one, "llamacpp")


def test_interrupted_at_any_step_it_is_taken_back(one: OnStandIn, load: MixedLoad, chance: random.Random) -> None:
    steps = one.actions(*TO_OLLAMA)
    number = chance.randrange(steps.index("HoldRequests"), steps.index("VerifyRoute"))
    told = one.signal_at(number, signal.SIGINT, *TO_OLLAMA)
    assert told.code in (0, 130), told.out
    settled(one, "llamacpp" if told.code else "ollama")


def killing(orch: Orch, step: str, pid: Callable[[], int], *command: str) -> Outcome:
    """Run a command, and kill a process as soon as this step of it has begun."""
    process = orch.start(*command, "--json")
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        told = json.loads(line)
        if (told.get("event"), told.get("step")) == ("started", step):
            os.kill(pid(), signal.SIGKILL)
            break
    lines += process.stdout.readlines()
    return _ended(process, "".join(lines))


def _ended(process: Forked | subprocess.Popen[str], out: str) -> Outcome:
    assert process.stdout is not None
    assert process.stderr is not None
    err = process.stderr.read()
    process.stdout.close()
    process.stderr.close()
    return Outcome(process.wait(timeout=120), out, err)


def pid_of(orch: Orch, instance: str) -> Callable[[], int]:
    return lambda: int(orch.record(instance)["engine"][0])


def test_a_new_engine_that_dies_leaves_the_old_one(one: OnStandIn, load: MixedLoad) -> None:
    told = killing(one, "AwaitReady", pid_of(one, "tiny-ollama-g3"), *TO_OLLAMA)
    assert told.code == 6, told.out
    settled(one, "llamacpp")


@pytest.mark.parametrize("step", ["HoldRequests", "StopEngine", "AwaitReady", "VerifyRoute"])
def test_a_gateway_that_dies_comes_back_holding(one: OnStandIn, step: str) -> None:
    """What was open with it is lost; nobody who asks afterwards is told of it, and the migration goes on."""
    one.env["ORCH_LISTEN"] = one.listen
    told = killing(one, step, pid_of(one, "gateway"), *TO_OLLAMA)
    running = MixedLoad(f"http://{one.listen}", ("tiny",), clients=2).start()
    if told.code != 0:
        assert told.code == 6, told.out
    wait_until(lambda: any(asked.first for asked in running.asked), what="an answer")
    assert problems(running.stop()) == []
    settled(one, "llamacpp" if told.code else "ollama")


def test_an_old_engine_that_dies_first_is_no_hindrance(one: OnStandIn) -> None:
    told = killing(one, "HoldRequests", pid_of(one, "tiny-llamacpp-g2"), *TO_OLLAMA)
    assert told.code == 0, told.out
    settled(one, "ollama")
