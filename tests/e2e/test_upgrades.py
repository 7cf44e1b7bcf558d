"""An engine's image is upgraded and gone back from, beside a second profile on another engine, under load."""

from __future__ import annotations

import random
import signal
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from docker_orch import DockerOrch
from orch_command import ANSWER, Orch

pytestmark = [pytest.mark.docker, pytest.mark.llamacpp]

NEWER = "orch-test-newer/ollama"


class Box:
    """Two profiles behind one gateway: `tiny` on Ollama in a container, `other` on llama.cpp as a process."""

    def __init__(self, orch: DockerOrch) -> None:
        self.orch = orch
        self.up_other = ("up", "llamacpp", "-p", str(self._other()), "--target", "local")
        orch.run("up", "ollama", "-p", str(orch.profile))
        orch.run(*self.up_other)

    def _other(self) -> Any:
        text = self.orch.profile.read_text().replace('"tiny', '"other').replace("test/Tiny", "test/Other")
        path = self.orch.home / "other.toml"
        path.write_text(text)
        return path

    def newer_image(self) -> str:
        """The engine's image once more, which is another one by its ID."""
        made = self.orch.client.containers.create(self.config()["Image"])
        tag = f"v{uuid.uuid4().hex[:8]}"
        try:
            made.commit(NEWER, tag, changes="LABEL newer=yes")
        finally:
            made.remove()
        return f"{NEWER}:{tag}"

    @property
    def instance(self) -> str:
        """The one engine of `tiny`."""
        (instance,) = (name for name in self.orch.engines() if name.startswith("tiny-"))
        return instance

    def config(self) -> dict[str, Any]:
        """What the one container of `tiny` was made of, as the daemon tells it."""
        instance = self.instance
        inspected = self.orch.inspect(instance)
        config, host = inspected["Config"], inspected["HostConfig"]
        # The places of a generation are its own.
        own = [str(value).replace(instance, "INSTANCE") for value in (config["Cmd"], config["Env"], host["Binds"])]
        return {"Image": inspected["Image"], "of it": own, "Entrypoint": config["Entrypoint"]}

    def serves(self, image: str) -> None:
        assert self.config()["Image"] == image
        assert (self.orch.says("tiny"), self.orch.says("other")) == (ANSWER, ANSWER)


@pytest.fixture
def box(orch_docker: DockerOrch) -> Iterator[Box]:
    yield Box(orch_docker)
    orch_docker.run("down", "--all", timeout=180)
    for image in orch_docker.client.images.list(NEWER):
        for tag in image.tags:
            orch_docker.client.images.remove(tag, force=True)


def upgrades(orch: Orch) -> str:
    return "\n".join(orch.status().document["upgrades"])


def test_upgraded_and_gone_back_from_to_the_byte(box: Box) -> None:
    orch, before = box.orch, box.config()
    newer = box.newer_image()
    new_id = orch.client.images.get(newer).id
    load = orch.load("tiny", "other", clients=4)

    orch.run("images", "pin", "ollama", newer)
    assert newer in upgrades(orch)
    orch.run("up", "-p", "tiny")
    box.serves(new_id)
    assert upgrades(orch).strip() == ""

    orch.run("rollback", "-p", "tiny")
    assert box.config() == before
    assert "it was rolled back" in upgrades(orch)
    orch.run("up", "-p", "tiny")
    assert box.config() == before

    # Pinned once more, it is wanted after all.
    orch.run("images", "pin", "ollama", newer)
    assert "orch up takes it" in upgrades(orch)
    orch.run("up", "-p", "tiny")
    box.serves(new_id)
    assert newer in orch.engines()[box.instance]["image"]
    orch.run("rollback", "-p", "tiny")
    assert [stream.problem for stream in load.stop() if stream.problem] == []

    # A pin that names nothing keeps nobody from anything.
    orch.client.images.remove(newer, force=True)
    assert f"the image {newer}" in orch.run("rollback", "-p", "tiny", "--json", code=5).lines[-1]["error"]
    orch.container(box.instance).remove(force=True)
    orch.run("up", "-p", "tiny")
    assert box.config() == before
    box.serves(before["Image"])
    orch.run("images", "pin", "ollama", "--back")
    assert upgrades(orch).strip() == ""


@pytest.mark.sampled
def test_killed_at_every_step_it_converges(box: Box, thorough: bool, chance: random.Random) -> None:
    """At two steps, and in `scripts/test long` at every one: forward, back, and forward again by one more rollback;
    clients of neither profile notice."""
    orch, old = box.orch, box.config()["Image"]
    newer = box.newer_image()
    new = orch.client.images.get(newer).id
    orch.run("images", "pin", "ollama", newer)
    up, back = ("up", "-p", "tiny"), ("rollback", "-p", "tiny")
    steps = range(len(orch.actions(*up)))
    load = orch.load("tiny", "other", clients=2)
    for turn, number in enumerate(steps if thorough else sorted(chance.sample(steps, 2))):
        command, image = back if turn else up, (new, old)[turn % 2]
        killed = orch.signal_at(number, signal.SIGKILL, *command)
        # The last step may be over before the signal comes.
        assert killed.code == -signal.SIGKILL or number == steps[-1], killed.out
        assert orch.status(code=None).code in (0, 9)
        # What is recorded is finished; what is not was not begun.
        orch.run(*up)
        if box.config()["Image"] != image:
            orch.run(*command)
        box.serves(image)
        orch.status()
    assert [stream.problem for stream in load.stop() if stream.problem] == []
