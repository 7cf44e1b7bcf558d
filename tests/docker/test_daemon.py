"""The daemon goes away, in the middle of every step too: what serves goes on, what was begun ends well."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from docker_orch import DockerOrch, serving
from orch_command import ANSWER, ASSETS, wait_until
from own_daemon import OwnDaemon

pytestmark = [
    pytest.mark.docker,
    pytest.mark.llamacpp,
    pytest.mark.long,
    pytest.mark.skipif(bool(OwnDaemon.why_not()), reason=OwnDaemon.why_not() or "-"),
]

ALPHA = "Ahoy! The answer is alpha."
MOVE = ("migrate", "--to", "ollama", "--recipe", "gguf-bf16")
BACK = ("migrate", "--to", "ollama", "--recipe", "gguf-q6_k")
# Steps that ask the daemon, or that what it keeps running answers.
ASK_IT = {
    "EnsureEngine",
    "ImportArtifact",
    "AwaitReady",
    "SetRoute",
    "VerifyRoute",
    "Drain",
    "StopEngine",
    "RemoveEngine",
}


@pytest.fixture(scope="module")
def daemon(images: dict[str, str]) -> Iterator[OwnDaemon]:
    made = OwnDaemon(Path(tempfile.mkdtemp(prefix="od")))
    made.start()
    made.take(images.values())
    yield made
    made.close()


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, daemon: OwnDaemon, images: dict[str, str]) -> Iterator[DockerOrch]:
    """The tiny model with an adapter, kept by that daemon."""
    with serving(tmp_path_factory.mktemp("daemon") / "home", images, daemon.host) as command:
        command.run("lora", "add", "alpha", str(ASSETS / "lora-a"))
        # Both artifacts are there before anything is killed.
        command.run(*MOVE)
        command.run(*BACK)
        yield command


def serves(orch: DockerOrch) -> bool:
    try:
        return (orch.says(), orch.says("alpha")) == (ANSWER, ALPHA)
    except httpx.TransportError:
        return False


def test_a_killed_daemon_takes_nothing_from_clients_and_is_told(up: DockerOrch, daemon: OwnDaemon) -> None:
    (before,) = up.engines().values()
    daemon.kill()
    assert serves(up), "containers live on, and the gateway needs no daemon"
    told = up.status(code=9).document
    assert any("does not answer" in line for line in told["drift"])
    # What the gateway has, and what answers, needs no daemon.
    (engine,) = told["engines"]
    assert (engine["instance"], engine["state"], engine["answers"]) == (before["instance"], "unknown", True)
    assert (engine["address"], engine["recipe"]) == (before["address"], before["recipe"])
    assert engine["requests"] > before["requests"]
    assert (told["unseen"], told["gateway"]["url"]) == (["docker"], f"http://{up.listen}/v1")
    assert [name["public_name"] for name in told["names"]] == ["alpha", "test/Tiny", "tiny", "tiny:latest"]
    assert "state     unknown, answers" in up.run("status", code=9).out
    for command in (("up",), ("down",), MOVE):
        error = up.run(*command, "--json", code=4).lines[-1]
        assert "does not answer" in error["error"]
        assert error["hint"]
    used = next(line["key"] for line in up.run("artifacts", "ls", "--json").lines if "q6_k" in line["key"])
    up.run("artifacts", "rm", used, code=4)
    daemon.start()
    wait_until(lambda: serves(up), seconds=60, what="what the daemon brought back")
    up.status()


def test_after_a_reboot_all_is_back_without_a_command(up: DockerOrch, daemon: OwnDaemon) -> None:
    """An orderly end of the daemon ends its containers, as a reboot does."""
    before = {c.labels["orch.instance"]: c.attrs["State"]["StartedAt"] for c in up.containers()}
    daemon.stop()
    with pytest.raises(httpx.TransportError):
        up.chat()
    daemon.start()
    wait_until(lambda: serves(up), seconds=60, what="what the daemon brought back")
    after = {c.labels["orch.instance"]: c.attrs["State"]["StartedAt"] for c in up.containers()}
    assert before.keys() == after.keys()
    assert not set(before.values()) & set(after.values()), "all of it was started anew"
    up.status()


def test_a_migration_whose_daemon_is_killed_in_the_middle_of_a_step_loses_nothing(
    up: DockerOrch, daemon: OwnDaemon
) -> None:
    """Killed at the start of each step that asks it, and started again two seconds later: the command reaches its end,
    or says that it did not and the same command does."""
    steps = [step for step in up.actions(*MOVE) if step in ASK_IT]
    assert len(steps) >= 7
    for step in dict.fromkeys(steps):
        process = up.start(*MOVE, "--json")
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            if event.get("event") == "started" and event.get("step") == step:
                daemon.kill()
                time.sleep(2)
                daemon.start()
                break
        out, err = process.communicate(timeout=240)
        assert process.returncode in (0, 4, 6, 7), f"{step}: {out}\n{err}"
        wait_until(lambda: serves(up), seconds=60, what=f"an answer after {step}")
        up.run(*MOVE)
        assert [row["recipe"] for row in up.engines().values()] == ["gguf-bf16"], step
        up.status()
        up.run(*BACK)
        assert serves(up)


def test_a_slow_daemon_is_waited_for(up: DockerOrch, daemon: OwnDaemon) -> None:
    """Stopped for some seconds in the middle of a step, as one is that swaps."""
    process = up.start("up", "--fresh", "--json")
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line).get("step") == "EnsureEngine":
            daemon.freeze(3.0)
            break
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert serves(up)
    up.status()


def test_with_live_restore_a_killed_daemon_cuts_no_stream(
    tmp_path: Path, images: dict[str, str], request: pytest.FixtureRequest
) -> None:
    live = OwnDaemon(Path(tempfile.mkdtemp(prefix="od")), options=["--live-restore"])
    request.addfinalizer(live.close)
    live.start()
    live.take(images.values())
    with serving(tmp_path / "home", images, live.host) as orch:
        load = orch.load("tiny", clients=3)
        wait_until(lambda: load.open_now() >= 2, what="open streams")
        live.kill()
        time.sleep(1)
        live.start()
        time.sleep(1)
        orch.run(*MOVE)
        streams = load.stop()
        assert [stream.problem for stream in streams if stream.problem] == []
        assert len(streams) > 3
        orch.status()
