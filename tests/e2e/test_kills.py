"""kill -9 of the CLI at every step, Ctrl-C at every step: afterwards the same command reaches the same end.

The steps are read from the command's own plan, so that a new step is covered by itself. All tests of a step share one
data directory's history: what the kill left is what the next command finds.
"""

from __future__ import annotations

import signal

import pytest
from orch_command import ANSWER, Orch

pytestmark = pytest.mark.llamacpp

UP = ("up", "llamacpp", "-p")
MOVE = ("migrate", "--to", "llamacpp", "--recipe", "gguf-bf16")
BACK = ("migrate", "--to", "llamacpp", "--recipe", "gguf-q6_k")


def check(orch: Orch, recipe: str) -> None:
    """One engine, in sync, that answers; and one process of each kind."""
    orch.status()
    assert [row["recipe"] for row in orch.engines().values()] == [recipe]
    assert orch.says() == ANSWER
    assert len(orch.processes()) == 4, "gateway and engine, each with its keeper"


def test_up_killed_at_every_step_converges(orch: Orch) -> None:
    command = (*UP, str(orch.profile))
    steps = orch.actions(*command)
    assert steps[-4:] == ["AwaitReady", "RecordDesired", "SetRoute", "VerifyRoute"]
    for number, step in enumerate(steps):
        killed = orch.signal_at(number, signal.SIGKILL, *command)
        assert killed.code == -signal.SIGKILL, f"{step}: {killed.out}"
        assert orch.status(code=None).code in (0, 9)
        orch.run(*command)
        check(orch, "gguf-q6_k")
        orch.run("down", "--all")
        assert orch.processes() == []
        _forget_artifacts(orch)


def test_migrate_killed_at_every_step_converges_and_no_stream_fails(orch: Orch) -> None:
    orch.run(*UP, str(orch.profile))
    orch.run(*MOVE)
    orch.run(*BACK)
    steps = orch.actions(*MOVE)
    assert steps[-3:] == ["Drain", "StopEngine", "RemoveEngine"]
    load = orch.load("tiny", clients=2)
    for number, step in enumerate(steps):
        killed = orch.signal_at(number, signal.SIGKILL, *MOVE)
        assert killed.code == -signal.SIGKILL, f"{step}: {killed.out}"
        orch.run(*MOVE)
        check(orch, "gguf-bf16")
        orch.run(*BACK)
    problems = [stream.problem for stream in load.stop() if stream.problem]
    assert problems == []
    check(orch, "gguf-q6_k")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up_interrupted_at_every_step_takes_back_what_it_started(orch: Orch, number: signal.Signals) -> None:
    command = (*UP, str(orch.profile))
    for step in range(len(orch.actions(*command))):
        told = orch.signal_at(step, number, *command)
        if told.code == 0:
            assert told.steps("started")[step] == "VerifyRoute", "nothing asks after the last step"
        else:
            assert told.code == 130, told.out
            assert told.lines[-1]["error"].startswith("Interrupted")
            assert orch.engines() == {}
            assert orch.processes() == []
        orch.run("down", "--all")
        _forget_artifacts(orch)


def test_an_interrupted_migration_leaves_the_old_engine_serving(orch: Orch) -> None:
    orch.run(*UP, str(orch.profile))
    load = orch.load("tiny", clients=3)
    for step, name in enumerate(orch.actions(*MOVE)):
        told = orch.signal_at(step, signal.SIGINT, *MOVE)
        assert told.code in (0, 130), told.out
        assert orch.says() == ANSWER
        if told.code == 130 and name in ("WriteFile", "EnsureEngine", "AwaitReady"):
            check(orch, "gguf-q6_k")
        orch.run(*BACK)
        check(orch, "gguf-q6_k")
    assert [stream.problem for stream in load.stop() if stream.problem] == []


def _forget_artifacts(orch: Orch) -> None:
    """So that the next round builds again."""
    keys = [line["key"] for line in orch.run("artifacts", "ls", "--json").lines]
    if keys:
        orch.run("artifacts", "rm", *keys)
    assert list((orch.home / "store").glob("[!.]*")) == []
