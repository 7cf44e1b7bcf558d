"""Images by digest from a registry that is there, lies, breaks off, wants a login, or has moved a tag."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest
from docker import DockerClient
from image_bench import here, layer_of, new_image, pin_text, pinned, registry_server, rows
from orch_command import Orch, wait_until

from orchestrator.core.pins import Accelerator, ImagePin
from orchestrator.core.progress import silent
from orchestrator.drivers.docker.images import DockerImages
from orchestrator.errors import HostError, Interrupted

Fault = registry_server.Fault


def pin_of(registry: Any, image: Any, name: str = "test/tool", tag: str = "1.0") -> ImagePin:
    """A pin of an image that this registry has."""
    registry.put(f"{name}:{tag}", image)
    return ImagePin(
        image=f"{registry.address}/{name}",
        tag=tag,
        digest=image.digest,
        accelerators=(Accelerator.CPU,),
        verified=False,
        source="a test",
    )


def test_a_pull_by_digest_brings_exactly_that_image_and_tells_how_far_it_is(
    registry: Any, docker_images: DockerImages, client: DockerClient
) -> None:
    image = new_image(4)
    pin = pin_of(registry, image)
    registry.put("test/tool:1.0", new_image())
    registry.faults.append(Fault("slow", layer_of(image), 4_000_000))
    told: list[tuple[int, int]] = []
    facts = docker_images.pull(pin, lambda _, done, total: told.append((done, total)))
    assert pin.reference in facts.references
    assert client.images.get(pin.reference).attrs["RootFS"]["Layers"]
    size = len(image.layers[0])
    amounts = [done for done, total in told if total == size]
    assert amounts == sorted(amounts)
    assert len({done for done in amounts if 0 < done < size}) >= 3
    assert amounts[-1] == size


def test_what_is_here_is_not_asked_for(registry: Any, docker_images: DockerImages) -> None:
    pin = pin_of(registry, new_image())
    first = docker_images.pull(pin, silent)
    registry.requests.clear()
    assert docker_images.pull(pin, silent) == first
    assert registry.requests == []
    assert docker_images.observe()[pin.reference] == first


@pytest.mark.parametrize(
    ("kind", "path", "message", "hint"),
    [
        ("missing", "*/manifests/*", "manifest unknown", "orch images pin"),
        ("missing", "LAYER", "unknown blob", "orch images pin"),
        ("unauthorized", "*", "auth", "docker login"),
        ("corrupt", "LAYER", "verification failed", "Try again"),
        ("corrupt", "*/manifests/*", "verification failed", "Try again"),
    ],
)
def test_what_a_registry_can_do_wrong_is_4_and_told(
    orch: Orch, registry: Any, client: DockerClient, kind: str, path: str, message: str, hint: str
) -> None:
    # What is said holds the digest, whose numbers say nothing.
    image = next(image for _ in range(10_000) if "401" in (image := new_image(0.001)).digest)
    pin = pin_of(registry, image)
    pinned(orch, "ollama", pin_text("ollama", pin.name, pin.digest))
    # One digit of a size in the manifest, or one byte of the layer.
    offset = image.manifest.index(b'"size": ') + len('"size": ')
    registry.faults.append(Fault(kind, layer_of(image) if path == "LAYER" else path, offset))
    told = orch.run("images", "pull", "ollama", "--json", code=4).lines[-1]
    assert message in told["error"]
    assert hint in told["hint"]
    assert not here(client, pin.reference)
    assert not rows(orch, "ollama")[0]["verified"]
    registry.faults.clear()
    orch.run("images", "pull", "ollama")
    assert here(client, pin.reference)


def test_a_registry_that_is_gone_is_4_with_the_way_without(orch: Orch) -> None:
    with registry_server.RegistryServer({}) as gone:
        pin = pin_of(gone, new_image())
    pinned(orch, "ollama", pin_text("ollama", pin.name, pin.digest))
    told = orch.run("images", "pull", "ollama", "--json", code=4).lines[-1]
    assert "refused" in told["error"]
    assert "orch images load" in told["hint"]


def test_a_layer_that_is_cut_once_comes_all_the_same(registry: Any, docker_images: DockerImages) -> None:
    image = new_image(1)
    pin = pin_of(registry, image)
    registry.faults.append(Fault("cut", layer_of(image), 300_000, times=1))
    assert pin.reference in docker_images.pull(pin, silent).references
    assert [line for line in registry.requests if layer_of(image)[1:] in line and "bytes=" in line]


@pytest.mark.long
def test_a_layer_that_is_always_cut_is_told_in_the_end(registry: Any, docker_images: DockerImages) -> None:
    """The daemon tries it six times, each time it waits longer, more than a minute in all."""
    image = new_image(1)
    pin = pin_of(registry, image)
    registry.faults.append(Fault("cut", layer_of(image), 0))
    with pytest.raises(HostError) as error:
        docker_images.pull(pin, silent)
    assert "EOF" in error.value.message
    assert "Run the same command again" in error.value.hint


def test_a_pull_that_stalls_can_be_interrupted(registry: Any, docker_images: DockerImages) -> None:
    image = new_image(1)
    pin = pin_of(registry, image)
    registry.faults.append(Fault("stall", layer_of(image), 300_000))
    began = time.monotonic()

    def give_up(_what: str, _done: int, _total: int) -> None:
        if time.monotonic() - began > 1:
            raise Interrupted()

    with pytest.raises(Interrupted):
        docker_images.pull(pin, give_up)
    assert time.monotonic() - began < 5


def test_ctrl_c_ends_the_command_and_the_next_one_pulls(orch: Orch, registry: Any, client: DockerClient) -> None:
    image = new_image(4)
    pin = pin_of(registry, image)
    pinned(orch, "ollama", pin_text("ollama", pin.name, pin.digest))
    registry.faults.append(Fault("slow", layer_of(image), 200_000))
    with orch.start("images", "pull", "ollama") as process:
        wait_until(lambda: any(layer_of(image)[1:] in line for line in registry.requests), what="a download")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "Traceback" not in err
    registry.faults.clear()
    orch.run("images", "pull", "ollama")
    assert here(client, pin.reference)


def test_a_confirmed_digest_stays_confirmed(orch: Orch, registry: Any, client: DockerClient) -> None:
    pin = pin_of(registry, new_image(env=["NVIDIA_REQUIRE_CUDA=cuda>=12.9,driver>=1"]))
    pinned(orch, "ollama", pin_text("ollama", pin.name, pin.digest))
    before = rows(orch, "ollama")[0]
    assert (before["here"], before["verified"], before["stated_by"]) == ("no", False, "a test")
    done = orch.run("images", "pull", "ollama", "--json")
    assert done.steps("done")[0] == "PullImage"
    after = rows(orch, "ollama")[0]
    assert (after["here"], after["verified"], after["needs"]) == ("yes", True, "cuda>=12.9")
    assert after["digest"] == pin.digest
    client.images.remove(pin.reference)
    gone = rows(orch, "ollama")[0]
    assert (gone["here"], gone["verified"]) == ("no", True)


def test_a_second_pull_has_nothing_to_do(orch: Orch, registry: Any) -> None:
    pin = pin_of(registry, new_image())
    pinned(orch, "ollama", pin_text("ollama", pin.name, pin.digest))
    assert "PullImage" in orch.run("images", "pull", "ollama", "--json").steps("done")
    registry.requests.clear()
    again = orch.run("images", "pull", "ollama", "--json")
    assert again.steps("started") == []
    assert orch.actions("images", "pull") == []
    assert registry.requests == []


def test_a_tag_is_pinned_by_its_digest_and_a_moved_one_is_shown(orch: Orch, registry: Any) -> None:
    old, new = new_image(labels={"org.opencontainers.image.version": "1.0"}), new_image(entrypoint=["/other"])
    pin = pin_of(registry, old)
    first = orch.run("images", "pin", "ollama", pin.name, "--json").lines
    assert first[-1] == {"pinned": pin.reference, "engine": "ollama", "local": False, "changed": True}
    orch.run("images", "pull", "ollama")
    same = orch.run("images", "pin", "ollama", pin.name, "--json").lines[-1]
    assert not same["changed"]
    registry.put("test/tool:1.0", new)
    moved = orch.run("images", "pin", "ollama", pin.name, "--json").lines
    assert {line["of"]: (line["before"], line["now"]) for line in moved if "of" in line} == {
        "image": (pin.name, pin.name),
        "digest": (old.digest, new.digest),
    }
    assert moved[-1]["changed"]
    assert rows(orch, "ollama")[0]["digest"] == new.digest
    orch.run("images", "pull", "ollama")
    registry.put("test/tool:1.0", old)
    back = orch.run("images", "pin", "ollama", pin.name, "--json").lines
    changes = {line["of"]: (line["before"], line["now"]) for line in back if "of" in line}
    assert changes["entrypoint"] == ("/other", "/nothing")
    assert changes["version"] == ("", "1.0")


def test_a_tag_that_moves_by_nature_is_pinned_and_said(orch: Orch, registry: Any) -> None:
    pin = pin_of(registry, new_image(), tag="latest")
    for name in (pin.name, pin.image):
        told = orch.run("images", "pin", "ollama", name, "--json").lines
        assert told[0] == {"moves": pin.name}
        assert told[-1]["pinned"] == pin.reference


def test_a_registry_that_does_not_answer_leaves_the_digest_of_the_image_that_is_here(
    orch: Orch, registry: Any, docker_images: DockerImages, client: DockerClient
) -> None:
    pin = pin_of(registry, new_image())
    docker_images.pull(pin, silent)
    client.images.get(pin.reference).tag(pin.image, pin.tag)
    registry.faults.append(Fault("unauthorized"))
    told = orch.run("images", "pin", "ollama", pin.name, "--json").lines
    assert told[-1] == {"pinned": pin.reference, "engine": "ollama", "local": False, "changed": True}
    (note,) = (line["note"] for line in told if "note" in line)
    assert "auth" in note


def test_a_tag_that_nobody_knows_is_4(orch: Orch, registry: Any) -> None:
    pin = pin_of(registry, new_image())
    told = orch.run("images", "pin", "ollama", f"{pin.image}:2.0", "--json", code=4).lines[-1]
    assert "manifest unknown" in told["error"]
    assert not (orch.home / "pins" / "ollama.toml").exists()
