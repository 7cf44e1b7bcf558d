"""An engine that orch does not ship is planned, shown, locked, run and taken down like its own: tests/parrot.py."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from orch_command import ASSETS, Orch, stopped_afterwards

SERVER = Path(__file__).parents[1] / "parrot_server.py"
SETTINGS = '[engines.parrot]\nwords = "Who is there?"\ntimes = 2\n'
ENGINE = "tiny-parrot-g1"


@pytest.fixture
def orch(tmp_path: Path) -> Iterator[Orch]:
    """`orch` that knows the parrot, whose program is on PATH, and a profile that says what it is to say."""
    command = Orch(tmp_path / "home")
    command.module = "tests.parrot"
    program = tmp_path / "bin" / "parrot-server"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {SERVER} "$@"\n')
    program.chmod(0o755)
    command.env["PATH"] = f"{program.parent}:/usr/bin:/bin"
    command.profile.write_text(command.profile.read_text() + SETTINGS)
    with stopped_afterwards(command):
        yield command


def with_settings(orch: Orch, settings: str) -> None:
    orch.profile.write_text(orch.profile.read_text().partition("[engines.parrot]")[0] + settings)


def test_what_a_profile_says_of_it_is_checked_where_it_is_read(orch: Orch) -> None:
    profile = str(orch.profile)
    orch.run("profile", "check", profile)
    with_settings(orch, '[engines.parrot]\ntimes = 10\nloud = true\nrecipes = ["gguf"]\n[engines.cockatoo]\n')
    for words in (("profile", "check", profile), ("up", "parrot", "-p", profile), ("lock", "-p", profile)):
        refused = orch.run(*words, code=3).err
        assert "has 4 problems" in refused
        assert "engines.parrot.times: Input should be less than or equal to 9 (given: 10)" in refused
        assert "engines.parrot.loud: unknown key (given: true)" in refused
        assert "engines.parrot.recipes[0]: Input should be" in refused
        assert "engines.cockatoo: unknown engine; known: llamacpp, ollama, parrot, vllm" in refused
    with_settings(orch, '[engines.parrot]\nwords = "  "\n')
    assert "engines.parrot: a parrot needs words" in orch.run("profile", "check", profile, code=3).err


def test_it_is_where_engines_are_listed_and_shown(orch: Orch) -> None:
    profile = str(orch.profile)
    rows = {row["engine"]: row for row in orch.run("engines", "ls", "--json").lines if "engine" in row}
    assert rows["parrot"]["state"] == "ready"
    assert "gguf-q8_0" in orch.run("build", "-p", profile, "--plan").out
    config, launch = orch.run("render", "parrot", "-p", profile, "--json").lines
    assert config["file"] == "parrot.json"
    assert json.loads(config["text"])["words"] == "Who is there?"
    assert launch["argv"][1:] == ["{dir}/parrot.json", "{port}"]
    for words, code in ((("pull", "parrot"), 5), (("pin", "parrot", "x/parrot:1"), 5)):
        assert "orch runs parrot only as a local process" in orch.run("images", *words, code=code).err
    assert "parrot needs no environment" in orch.run("engines", "install", "parrot", code=5).err
    refused = orch.run("up", "cockatoo", "-p", profile, code=2).err
    assert "Known engines: ollama, llamacpp, vllm, parrot" in refused
    orch.env.update({"_ORCH_COMPLETE": "complete_bash", "COMP_WORDS": "orch up p", "COMP_CWORD": "2"})
    assert orch.run("up").out.split() == ["parrot"]


def test_its_program_has_to_be_here(orch: Orch) -> None:
    orch.env["PATH"] = "/usr/bin:/bin"
    refused = orch.run("up", "parrot", "-p", str(orch.profile), code=4).err
    assert "There is no parrot-server on PATH." in refused
    assert "Buy a parrot." in refused
    rows = {row["engine"]: row for row in orch.run("engines", "ls", "--json").lines if "engine" in row}
    assert rows["parrot"]["state"] == "There is no parrot-server on PATH."


def test_it_serves_and_is_taken_down(orch: Orch, tmp_path: Path) -> None:
    profile, lock = str(orch.profile), tmp_path / "orch.lock"
    planned = orch.actions("up", "parrot", "-p", profile)
    assert orch.engines() == {}
    done = orch.run("up", "parrot", "-p", profile, "--json").steps("done")
    assert [step for step in planned if step not in done] == []
    assert orch.says() == "Who is there? Who is there?"
    row = orch.engines()[ENGINE]
    assert (row["engine"], row["recipe"], row["answers"]) == ("parrot", "gguf-q8_0", True)
    assert orch.actions("up", "parrot", "-p", profile) == []

    orch.run("lock", "-p", profile, "-o", str(lock))
    assert 'recipe = "gguf-q8_0"' in lock.read_text()
    orch.run("up", "parrot", "-p", profile, "--locked", str(lock))
    (key,) = (row["key"] for row in orch.run("artifacts", "ls", "--json").lines if row.get("recipe") == "gguf-q8_0")
    stays = {row["key"]: row["do"] for row in orch.run("artifacts", "gc", "--plan", "--json").lines if "key" in row}
    assert stays[key] == "stay"

    with_settings(orch, '[engines.parrot]\nwords = "Pretty bird"\n')
    assert "tiny differs from its lock" in orch.run("up", "-p", profile, "--locked", str(lock), code=5).err
    told = orch.run("up", "-p", profile, "--json", code=6).lines[-1]
    assert "under a JSON schema it says 'Pretty bird" in told["error"]
    assert "--skip-probe schema" in told["hint"]
    orch.run("up", "-p", profile, "--skip-probe", "schema", "--skip-probe", "stop")
    assert orch.says() == "Pretty bird"
    orch.run("rollback")
    assert orch.says() == "Who is there? Who is there?"
    orch.run("down")
    assert orch.engines() == {}
    orch.run("up")
    assert orch.says() == "Who is there? Who is there?"


def test_what_it_does_not_do_is_refused_in_its_words(orch: Orch) -> None:
    with_settings(orch, '[engines.parrot]\nrecipes = ["weights"]\n')
    refused = orch.run("up", "parrot", "-p", str(orch.profile), code=5).err
    assert "parrots read GGUF files only" in refused
    assert "engines.parrot.recipes" in refused
    with_settings(orch, "")
    orch.run("up", "parrot", "-p", str(orch.profile))
    assert orch.says() == "Hello"
    refused = orch.run("lora", "add", "alpha", str(ASSETS / "lora-a"), code=5).err
    assert "Parrots learn nothing new (alpha)." in refused
    assert "use another engine" in refused


def test_it_is_carried_to_another_machine(orch: Orch, tmp_path: Path) -> None:
    saved = tmp_path / "all.tar"
    orch.run("up", "parrot", "-p", str(orch.profile))
    orch.run("images", "save", str(saved), "-p", str(orch.profile))
    other = Orch(tmp_path / "other")
    refused = other.run("images", "load", str(saved), code=10).err
    assert "has settings that this orch does not know: engines.parrot" in refused
    assert not (other.home / "store").exists()
    other.module, other.env = orch.module, orch.env
    profile = tmp_path / "all.profile.toml"
    assert other.run("images", "load", str(saved), "--json").lines[-1] == {
        "next": f"orch up parrot -p {profile} --target local"
    }
    assert "Who is there?" in other.run("render", "parrot", "-p", str(profile)).out


def test_an_orch_without_it_tells_of_it_and_ends_it(orch: Orch) -> None:
    """As one that was put back to an earlier version."""
    orch.run("up", "parrot", "-p", str(orch.profile))
    orch.module = "orchestrator"
    assert "does not know the engine parrot" in orch.run("status", code=9).out
    assert "engines.parrot: unknown engine" in orch.run("profile", "check", str(orch.profile), code=3).err
    orch.run("down", "--all")
