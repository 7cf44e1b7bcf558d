"""kill -9 of the CLI at every step, Ctrl-C at every step: afterwards the same command reaches the same end.

The steps are read from the command's own plan, so that a new step is covered by itself. All tests of a step share one
data directory's history: what the kill left is what the next command finds. Each run tries other steps, and
`scripts/test long` all of them.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable

import pytest
from orch_command import ANSWER, Orch

pytestmark = [pytest.mark.llamacpp, pytest.mark.sampled]

MOVE = ("migrate", "--recipe", "gguf-bf16", "--to")
BACK = ("migrate", "--recipe", "gguf-q6_k", "--to")


# In containers, those steps that ask the daemon or what it runs: the others are the same code.
IN_DOCKER = ("BuildImage", "EnsureGateway", "EnsureEngine", "ImportArtifact", "AwaitReady", "SetRoute", "StopEngine")
SAMPLE = {"local": 2, "docker": 1}

Tried = Callable[[Orch, list[str]], list[tuple[int, str]]]


@pytest.fixture(params=["local", pytest.param("docker", marks=pytest.mark.docker)])
def either(request: pytest.FixtureRequest) -> Orch:
    """`orch` on each target."""
    command: Orch = request.getfixturevalue("orch" if request.param == "local" else "orch_docker")
    return command


@pytest.fixture
def to_try(thorough: bool, chance: random.Random) -> Tried:
    """The steps to end a command at, by their number."""

    def tried(either: Orch, steps: list[str]) -> list[tuple[int, str]]:
        found = [(at, step) for at, step in enumerate(steps) if either.target == "local" or step in IN_DOCKER]
        size = SAMPLE[either.target]
        assert len(found) > size
        return found if thorough else sorted(chance.sample(found, size))

    return tried


def check(either: Orch, recipe: str) -> None:
    """One engine, in sync, that answers; and one process of each kind."""
    either.status()
    assert [row["recipe"] for row in either.engines().values()] == [recipe]
    assert either.says() == ANSWER
    assert len(either.processes()) == either.all_of_it


@pytest.mark.rotated
def test_up_killed_at_every_step_converges(either: Orch, to_try: Tried) -> None:
    command = ("up", either.engine, "-p", str(either.profile))
    steps = either.actions(*command)
    assert steps[-4:] == ["AwaitReady", "RecordDesired", "SetRoute", "VerifyRoute"]
    for number, step in to_try(either, steps):
        killed = either.signal_at(number, signal.SIGKILL, *command)
        assert killed.code == -signal.SIGKILL, f"{step}: {killed.out}"
        assert either.status(code=None).code in (0, 9)
        either.run(*command)
        check(either, "gguf-q6_k")
        either.run("down", "--all")
        assert either.processes() == []
        _forget_artifacts(either)


@pytest.mark.rotated
def test_migrate_killed_at_every_step_converges_and_no_stream_fails(either: Orch, to_try: Tried) -> None:
    """There and back by turns, which are the same steps."""
    either.run("up", either.engine, "-p", str(either.profile))
    either.run(*MOVE, either.engine)
    ways = [(BACK, "gguf-q6_k"), (MOVE, "gguf-bf16")]
    steps = either.actions(*BACK, either.engine)
    assert steps[-3:] == ["Drain", "StopEngine", "RemoveEngine"]
    load = either.load("tiny", clients=2)
    for turn, (number, step) in enumerate(to_try(either, steps)):
        way, recipe = ways[turn % 2]
        assert either.actions(*way, either.engine) == steps
        killed = either.signal_at(number, signal.SIGKILL, *way, either.engine)
        # The last step may be over before the signal comes.
        assert killed.code == -signal.SIGKILL or step == steps[-1], f"{step}: {killed.out}"
        either.run(*way, either.engine)
        check(either, recipe)
    problems = [stream.problem for stream in load.stop() if stream.problem]
    assert problems == []


def test_rollback_killed_at_every_step_converges_and_no_stream_fails(orch: Orch, to_try: Tried) -> None:
    """On processes; in containers tests/e2e/test_upgrades.py does it. What is recorded is finished by `up`, what is not
    was not begun."""
    orch.run("up", orch.engine, "-p", str(orch.profile))
    orch.run(*MOVE, orch.engine)
    load = orch.load("tiny", clients=2)
    steps = orch.actions("rollback")
    for turn, (number, step) in enumerate(to_try(orch, steps)):
        recipe = ("gguf-q6_k", "gguf-bf16")[turn % 2]
        killed = orch.signal_at(number, signal.SIGKILL, "rollback")
        assert killed.code == -signal.SIGKILL or step == steps[-1], f"{step}: {killed.out}"
        orch.run("up")
        if [row["recipe"] for row in orch.engines().values()] != [recipe]:
            orch.run("rollback")
        check(orch, recipe)
    assert [stream.problem for stream in load.stop() if stream.problem] == []


@pytest.mark.rotated
def test_up_interrupted_at_every_step_takes_back_what_it_started(either: Orch, to_try: Tried) -> None:
    command = ("up", either.engine, "-p", str(either.profile))
    for turn, (step, _) in enumerate(to_try(either, either.actions(*command))):
        told = either.signal_at(step, signal.SIGTERM if turn % 2 else signal.SIGINT, *command)
        if told.code == 0:
            assert told.steps("started")[step] == "VerifyRoute", "nothing asks after the last step"
        else:
            assert told.code == 130, told.out
            assert told.lines[-1]["error"].startswith("Interrupted")
            assert either.engines() == {}
            assert either.processes() == []
        either.run("down", "--all")
        _forget_artifacts(either)


def test_an_interrupted_migration_leaves_the_old_engine_serving(orch: Orch, to_try: Tried) -> None:
    orch.run("up", orch.engine, "-p", str(orch.profile))
    load = orch.load("tiny", clients=3)
    for step, name in to_try(orch, orch.actions(*MOVE, orch.engine)):
        told = orch.signal_at(step, signal.SIGINT, *MOVE, orch.engine)
        assert told.code in (0, 130), told.out
        assert orch.says() == ANSWER
        if told.code == 130 and name in ("WriteFile", "EnsureEngine", "AwaitReady"):
            check(orch, "gguf-q6_k")
        orch.run(*BACK, orch.engine)
        check(orch, "gguf-q6_k")
    assert [stream.problem for stream in load.stop() if stream.problem] == []


def _forget_artifacts(either: Orch) -> None:
    """So that the next round builds again."""
    keys = [line["key"] for line in either.run("artifacts", "ls", "--json").lines]
    if keys:
        either.run("artifacts", "rm", *keys)
    assert list((either.home / "store").glob("[!.]*")) == []
