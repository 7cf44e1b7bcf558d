"""orch images gc: what orch has brought and nothing needs goes; what somebody else has named stays."""

from __future__ import annotations

from typing import Any

import pytest
from docker import DockerClient
from image_bench import here, new_image, pin_text, small_image
from orch_command import Orch
from test_images_registry import pin_of

from orchestrator.core.images import ImageFacts
from orchestrator.core.pins import ImagePin
from orchestrator.core.progress import silent
from orchestrator.drivers.docker.images import DockerImages
from orchestrator.errors import HostError
from orchestrator.planning.images_gc import sort_out_images


def pin(orch: Orch, pin: ImagePin) -> None:
    """Make it the user's pin of Ollama."""
    (orch.home / "pins").mkdir(exist_ok=True)
    (orch.home / "pins" / "ollama.toml").write_text(pin_text("ollama", pin.name, pin.digest))


def verdicts(orch: Orch) -> dict[str, tuple[str, str]]:
    rows = orch.run("images", "gc", "--plan", "--json").lines
    return {row["image"]: (row["do"], row["why"]) for row in rows if "do" in row}


def test_an_image_that_is_pinned_no_more_goes(
    orch: Orch, registry: Any, docker_images: DockerImages, client: DockerClient
) -> None:
    first, second = pin_of(registry, new_image(), tag="1"), pin_of(registry, new_image(), tag="2")
    for one in (first, second):
        docker_images.pull(one, silent)
    pin(orch, second)
    told = verdicts(orch)
    assert told[first.reference] == ("go", "nothing needs it")
    assert told[second.reference] == ("stay", "it is pinned for ollama")
    assert here(client, first.reference), "--plan removes nothing"

    before = orch.home / "pins" / "before"
    before.mkdir()
    (before / "ollama.toml").write_text(pin_text("ollama", first.name, first.digest))
    assert verdicts(orch)[first.reference] == ("stay", "orch images pin ollama --back goes back to it")

    client.images.get(first.reference).tag("somebody/elses", "mine")
    (before / "ollama.toml").write_text("")
    assert first.reference not in verdicts(orch)
    client.images.remove("somebody/elses:mine")


def test_one_that_is_removed_is_gone_by_all_its_names(
    registry: Any, docker_images: DockerImages, client: DockerClient
) -> None:
    one = pin_of(registry, new_image())
    facts = docker_images.pull(one, silent)
    container = client.containers.create(one.reference, "nothing")
    try:
        with pytest.raises(HostError):
            docker_images.remove(facts)
        assert here(client, one.reference)
    finally:
        container.remove()
    docker_images.remove(facts)
    assert not here(client, one.reference)
    assert not here(client, facts.id)
    docker_images.remove(facts)


def test_old_gateways_go_and_the_one_that_is_used_next_stays(orch: Orch, client: DockerClient) -> None:
    name = f"orch-gateway:old-{orch.home.parent.name[:20]}".lower().replace("_", "-")
    small_image(client, name)
    try:
        told = verdicts(orch)
    finally:
        client.images.remove(name)
    assert told[name] == ("go", "nothing needs it")


def test_where_no_gateway_can_be_made_those_that_there_are_stay(orch: Orch, client: DockerClient) -> None:
    name = f"orch-gateway:kept-{orch.home.parent.name[:20]}".lower().replace("_", "-")
    small_image(client, name)
    orch.env["ORCH_GATEWAY_BASE"] = "nobody/has:this"
    try:
        do, why = verdicts(orch)[name]
    finally:
        client.images.remove(name)
    assert (do, why.startswith("the next gateway cannot be determined: ")) == ("stay", True)


def test_a_tag_of_somebody_else_keeps_an_image() -> None:
    digest = "@sha256:" + "1" * 64
    pulled = ImageFacts("sha256:a", references=(f"vllm/vllm-openai{digest}",), size=2)
    tagged = ImageFacts("sha256:b", references=(f"vllm/vllm-openai{digest}",), tags=("vllm/vllm-openai:v1",), size=3)
    foreign = ImageFacts("sha256:c", references=(f"other/vllm{digest}",), size=1)
    gateway = ImageFacts("sha256:d", tags=("orch-gateway:1",), size=4)
    found = sort_out_images([pulled, tagged, foreign, gateway], "orch-gateway", {"vllm/vllm-openai"}, {"sha256:d": "x"})
    assert [(one.facts.id, one.stays, one.why) for one in found] == [
        ("sha256:d", True, "x"),
        ("sha256:a", False, "nothing needs it"),
    ]


def test_as_long_as_a_record_cannot_be_read_nothing_goes(orch: Orch) -> None:
    (orch.home / "records" / "desired").mkdir(parents=True)
    (orch.home / "records" / "desired" / "tiny.json").write_text("{")
    told = orch.run("images", "gc", "--json", code=5).lines[-1]
    assert "What is needed cannot be determined" in told["error"]
