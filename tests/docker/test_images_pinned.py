"""orch images ls, pull, pin: what is pinned, what is here, and pins by the user."""

from __future__ import annotations

import json

import pytest
from docker import DockerClient
from image_bench import BASE, rows
from orch_command import Orch

from orchestrator import resources
from orchestrator.core.image_names import familiar, moves, split_name
from orchestrator.core.pins import EnginePin
from orchestrator.core.profile import parse_part, parse_profile, profile_toml
from orchestrator.core.toml_text import toml_text
from orchestrator.engines.settings import read_settings


def test_everything_pinned_is_listed(orch: Orch) -> None:
    (ollama,) = rows(orch, "ollama")
    shipped = resources.engine_pins()["ollama"].docker[0]
    assert (ollama["image"], ollama["digest"], ollama["here"]) == (shipped.name, shipped.digest, "no")
    assert ollama["stated_by"] == shipped.source
    assert [row["runs_here"] for row in rows(orch, "vllm")] == ["not for cpu", "not for cpu"]
    base, built = rows(orch, "gateway")
    assert (base["image"], base["here"]) == (BASE, "yes")
    assert built["image"].startswith("orch-gateway:")
    text = orch.run("images", "ls").out
    assert shipped.name in text
    assert shipped.digest[7:19] in text


def test_without_a_daemon_the_pins_are_listed_and_that_is_said(orch: Orch) -> None:
    del orch.env["ORCH_GATEWAY_BASE"]
    orch.env["DOCKER_HOST"] = f"unix://{orch.home}/nobody.sock"
    first, *listed = orch.run("images", "ls", "--json").lines
    assert "nobody.sock" in first["docker"]
    assert {row["here"] for row in listed if "here" in row} == {"?"}
    assert {row["for"] for row in listed} == {"ollama", "vllm", "tools", "gateway"}
    for words in (["pull"], ["pin", "ollama", "a/b:1"]):
        told = orch.run("images", *words, "--json", code=4).lines[-1]
        assert "nobody.sock" in told["error"]


def test_a_pull_without_an_engine_takes_what_this_machine_runs_and_tells_the_rest(orch: Orch) -> None:
    (plan,) = (line for line in orch.run("images", "pull", "--plan", "--json").lines if "plan" in line)
    told = json.dumps(plan["items"])
    assert "pull ollama/ollama:0.40.2" in told
    assert "pull an image of vllm" in told
    assert "none that runs here is pinned for cpu" in told
    (of_gpus,) = orch.run("images", "pull", "vllm", "--accelerator", "cuda", "--plan", "--json").lines
    assert "pull vllm/vllm-openai:v0.31.0" in json.dumps(of_gpus["items"])


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["pull", "vllm"], 5),
        (["pull", "nothing"], 2),
        (["pull", "--accelerator", "tpu"], 2),
        (["pin", "nothing", "a/b:1"], 2),
        (["pin", "ollama"], 2),
        (["pin", "ollama", "a/b:1", "--reset"], 2),
        (["pin", "ollama", "--reset"], 5),
        (["pin", "ollama", "--back"], 5),
        (["pin", "ollama", "--back", "--reset"], 2),
        (["pin", "ollama", "--back", "--accelerator", "cpu"], 2),
        (["pin", "ollama", "a/b@sha256:" + "1" * 64], 2),
        (["pin", "ollama", "Not A Name:1"], 4),
        (["load", "/nothing"], 2),
    ],
)
def test_what_is_refused(orch: Orch, words: list[str], code: int) -> None:
    orch.run("images", *words, "--json", code=code)
    assert not (orch.home / "pins" / "ollama.toml").exists()


def test_an_image_that_no_registry_has_is_pinned_by_its_id(orch: Orch, small: str, client: DockerClient) -> None:
    told = orch.run("images", "pin", "ollama", small, "--json").lines
    assert told[-1]["local"]
    assert told[-1]["pinned"] == client.images.get(small).id
    assert "no registry states it" in json.dumps(told)
    (row, shipped) = rows(orch, "ollama")
    assert (row["image"], row["here"], row["needs"]) == (small, "yes", "cuda>=12.9")
    assert row["size"] > 0
    assert shipped["image"] == "ollama/ollama:0.40.2"


def test_what_neither_image_states_is_not_compared(orch: Orch) -> None:
    """The gateway's base requires nothing of the driver."""
    for _ in range(2):
        told = orch.run("images", "pin", "ollama", BASE, "--json").lines
        compared = {line["of"]: (line["before"], line["now"]) for line in told if "of" in line}
        assert {"image", "digest"} <= compared.keys()
        assert ("", "") not in compared.values()
    assert "requires" not in compared


def test_pins_for_other_accelerators_are_kept_and_reset_one_by_one(orch: Orch, small: str) -> None:
    file = orch.home / "pins" / "ollama.toml"

    def kept() -> list[tuple[str, list[str]]]:
        pin = parse_part(EnginePin, file.read_text(), str(file))
        return [(image.name, [kind.value for kind in image.accelerators]) for image in pin.docker]

    orch.run("images", "pin", "ollama", small, "--accelerator", "cuda", "--accelerator", "cpu")
    orch.run("images", "pin", "ollama", BASE)
    assert kept() == [(BASE, ["cpu"]), (small, ["cuda"])]
    orch.run("images", "pin", "ollama", small, "--accelerator", "cuda")
    assert kept() == [(small, ["cuda"]), (BASE, ["cpu"])]
    file.write_text(file.read_text(), encoding="utf-16")
    orch.run("images", "pin", "ollama", "--reset", "--accelerator", "cuda")
    assert kept() == [(BASE, ["cpu"])]
    orch.run("images", "pin", "ollama", "--reset")
    assert not file.exists()
    orch.run("images", "pin", "ollama", "--back")
    assert kept() == [(BASE, ["cpu"])]


def test_back_goes_to_the_pin_before_and_forward_again(orch: Orch, small: str) -> None:
    def pinned() -> list[str]:
        return [row["image"] for row in rows(orch, "ollama") if row["stated_by"].startswith("pinned by the user")]

    orch.run("images", "pin", "ollama", small)
    assert orch.run("images", "pin", "ollama", "--back", "--json").lines[-1] == {"back": "ollama", "pinned": ""}
    assert pinned() == []
    orch.run("images", "pin", "ollama", "--back")
    assert pinned() == [small]
    orch.run("images", "pin", "ollama", BASE)
    assert small in orch.run("images", "pin", "ollama", "--back").out
    assert pinned() == [small]


def test_names() -> None:
    assert split_name("127.0.0.1:5000/a/b") == ("127.0.0.1:5000/a/b", "")
    assert split_name("127.0.0.1:5000/a/b:1") == ("127.0.0.1:5000/a/b", "1")
    assert familiar("docker.io/library/python") == "python"
    assert familiar("docker.io/ollama/ollama") == "ollama/ollama"
    assert [moves(tag) for tag in ("latest", "rocm", "nightly-12", "v0.31.0", "0.40.2")] == [True] * 3 + [False] * 2


def test_what_is_written_as_toml_is_read_as_it_was() -> None:
    profile = parse_profile(
        (resources.root() / "profiles" / "models" / "qwen3-8b.toml").read_text(), "qwen3-8b", read_settings
    )
    changed = profile.model_copy(update={"description": 'quotes " \\ and\nlines, \x7f, ü'})
    assert parse_profile(profile_toml(changed), "again", read_settings) == changed
    assert parse_profile(profile_toml(changed.preferring(True)), "again", read_settings) == changed.preferring(True)
    for name, pin in resources.engine_pins().items():
        assert parse_part(EnginePin, toml_text(pin.model_dump()), name) == pin
