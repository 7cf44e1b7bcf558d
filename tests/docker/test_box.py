"""The whole life of a box with two profiles on two engines, under load: orch itself, an engine's image and a profile
are upgraded and gone back from, keys rotated, the daemon and processes killed. No client notices; the journal tells
each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docker_orch import DockerOrch, nothing_left
from orch_command import ANSWER, wait_until
from other_program import BEFORE_DIGESTS, another, of_commit
from own_daemon import OwnDaemon

pytestmark = [
    pytest.mark.docker,
    pytest.mark.llamacpp,
    pytest.mark.long,
    pytest.mark.skipif(bool(OwnDaemon.why_not()), reason=OwnDaemon.why_not() or "-"),
]

OLD_KEY = "the-key-of-before"


@pytest.fixture
def daemon(images: dict[str, str]) -> Iterator[OwnDaemon]:
    """One that may be killed without an end of its containers, as an operator would have it."""
    made = OwnDaemon(Path(tempfile.mkdtemp(prefix="od")), options=["--live-restore"])
    made.start()
    made.take(images.values())
    yield made
    made.close()


@pytest.fixture
def box(tmp_path: Path, images: dict[str, str], daemon: OwnDaemon) -> Iterator[DockerOrch]:
    """`tiny` on Ollama in a container, `other` on llama.cpp as a process, by the version before."""
    with nothing_left(DockerOrch(tmp_path / "home", images, daemon.host)) as orch:
        try:
            before = another(orch, of_commit(tmp_path / "before", BEFORE_DIGESTS))
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no history in this clone: {error.stderr.decode().strip()}")
        other = orch.home / "other.toml"
        other.write_text(orch.profile.read_text().replace('"tiny', '"other').replace("test/Tiny", "test/Other"))
        before.env = {**orch.env, "ORCH_API_KEY": OLD_KEY}
        before.run("up", "ollama", "-p", str(orch.profile))
        before.run("up", "llamacpp", "-p", str(other), "--target", "local")
        yield orch


def instance(orch: DockerOrch, profile: str = "tiny") -> str:
    (name,) = (name for name in orch.engines() if name.startswith(f"{profile}-"))
    return name


def made_of(orch: DockerOrch) -> dict[str, Any]:
    """What the container of `tiny` was made of, but for the generation's own places."""
    name = instance(orch)
    inspected = orch.inspect(name)
    config, host = inspected["Config"], inspected["HostConfig"]
    own = [str(value).replace(name, "INSTANCE") for value in (config["Cmd"], config["Env"], host["Mounts"])]
    return {"image": inspected["Image"], "entrypoint": config["Entrypoint"], "own": own}


def newer_image(orch: DockerOrch) -> str:
    made = orch.client.containers.create(made_of(orch)["image"])
    tag = f"v{uuid.uuid4().hex[:8]}"
    try:
        made.commit("orch-test-newer/ollama", tag, changes="LABEL newer=yes")
    finally:
        made.remove()
    return f"orch-test-newer/ollama:{tag}"


def test_the_life_of_a_box(box: DockerOrch, daemon: OwnDaemon) -> None:
    orch, first = box, made_of(box)
    orch.key = OLD_KEY
    load = orch.load("tiny", "other", clients=4, tokens=40)

    def serves() -> None:
        assert (orch.says("tiny"), orch.says("other")) == (ANSWER, ANSWER)
        orch.status()

    # orch itself: its gateway goes forward, what serves stays.
    orch.run("up", "--gateway", "-p", "tiny")
    assert not (orch.home / "keys" / "api-keys").exists()
    assert made_of(orch) == first
    serves()

    # The engine's image, and back to the byte.
    orch.run("images", "pin", "ollama", newer_image(orch))
    orch.run("up", "-p", "tiny")
    assert made_of(orch)["image"] != first["image"]
    orch.run("rollback", "-p", "tiny")
    assert made_of(orch) == first
    serves()

    # The profile, and back; the other one likewise.
    for profile in ("tiny", "other"):
        file = orch.profile if profile == "tiny" else orch.home / "other.toml"
        changed = orch.home / f"{profile}-changed.toml"
        changed.write_text(file.read_text().replace("context = 512", "context = 256"))
        before = instance(orch, profile)
        orch.run("up", "-p", str(changed))
        assert instance(orch, profile) != before
        orch.run("rollback", "-p", profile)
    assert made_of(orch) == first
    serves()

    # The key: the load goes on with the one before, and has time.
    (told,) = (line for line in orch.run("keys", "rotate", "key-1", "--json").lines if "key" in line)
    serves()

    # The engines, while nothing is in the middle of an answer: what comes meanwhile waits.
    load.hold()
    wait_until(lambda: load.held == 4, 120, what="the load at rest")
    for name in (instance(orch, "other"), instance(orch)):
        pid = orch.engines()[name]["pid"]
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: orch.chat("tiny").status_code == orch.chat("other").status_code == 200, 60, what="both again")
    load.release()

    # The daemon, under load; and what keeps the local engine.
    daemon.kill()
    assert (orch.says("tiny"), orch.says("other")) == (ANSWER, ANSWER)
    daemon.start()
    os.kill(orch.record(instance(orch, "other"))["keeper"][0], signal.SIGKILL)
    orch.run("up", "-p", "other")
    wait_until(lambda: orch.status(code=None).code == 0, 60, what="all as it should be")

    streams = load.stop()
    assert len(streams) > 20
    assert [stream.problem for stream in streams if stream.problem] == []
    assert {stream.model for stream in streams} == {"tiny", "other"}
    orch.key = str(told["key"])
    serves()
    events = [json.loads(line) for line in (orch.home / "journal.jsonl").read_text().splitlines()]
    finished = [event["verb"] for event in events if event["event"] == "finished"]
    assert finished[2:] == ["up", "up", "rollback", *["up", "rollback"] * 2, "keys rotate", "up"]
    steps = {event.get("step") for event in events if event["event"] == "done"}
    assert {"ReplaceGateway", "WriteKeys", "ReadKeys", "DropOldKeyFile", "EnsureEngine", "SetRoute"} <= steps
