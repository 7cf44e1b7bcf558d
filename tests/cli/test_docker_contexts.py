"""Which Docker daemon is asked: what Docker's own client would ask, told where orch cannot use it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from orch_command import Orch

from orchestrator.drivers.docker.endpoints import SOCKET, Endpoint, Kept, keep, meant


@pytest.fixture
def config(orch: Orch, tmp_path: Path) -> Path:
    """Docker's own directory, which `orch` goes by."""
    del orch.env["HF_ENDPOINT"]
    place = tmp_path / "docker"
    place.mkdir()
    orch.env |= {"DOCKER_CONFIG": str(place), "DOCKER_HOST": "", "DOCKER_CONTEXT": "", "ORCH_TARGET": ""}
    return place


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[str]:
    """The socket of a daemon that has ended."""
    place = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as ended:
        ended.bind(place)
    yield place


def context(config: Path, name: str, host: str, in_use: bool = True) -> Path:
    """A context as `docker context create` writes it; where its meta.json is."""
    meta = config / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest() / "meta.json"
    meta.parent.mkdir(parents=True)
    docker = {"Host": host, "SkipTLSVerify": False}
    meta.write_text(json.dumps({"Name": name, "Metadata": {}, "Endpoints": {"docker": docker}}))
    if in_use:
        (config / "config.json").write_text(json.dumps({"currentContext": name}))
    return meta


def told(orch: Orch) -> dict[str, Any]:
    """How `orch up ollama` is refused without an Ollama on PATH."""
    orch.env["PATH"] = "/nowhere"
    return orch.run("up", "ollama", "-p", str(orch.profile), "--json", code=4).lines[-1]


def test_a_context_at_a_socket_is_the_daemon_that_is_asked(orch: Orch, config: Path, silent: str) -> None:
    context(config, "mine", f"unix://{silent}")
    line = told(orch)
    assert f"does not answer at {silent}" in line["error"]
    assert f"DOCKER_HOST={SOCKET}" in line["hint"]
    assert "Or without Docker: install Ollama" in line["hint"]


@pytest.mark.parametrize("host", ["ssh://me@there", "tcp://10.0.0.1:2376", "npipe:////./pipe/docker"])
def test_a_context_of_another_machine_is_why_not_docker(orch: Orch, config: Path, host: str) -> None:
    context(config, "far", host)
    line = told(orch)
    assert f"the Docker context far is {host}" in line["error"]
    assert f"DOCKER_HOST={SOCKET}" in line["hint"]
    orch.run("up", "ollama", "-p", str(orch.profile), "--target", "docker", code=4)


def test_a_context_that_is_gone_or_damaged_is_told(orch: Orch, config: Path) -> None:
    meta = context(config, "mine", "unix:///x")
    for text in ("{", "[]", '{"Endpoints": {"kubernetes": {}}}', '{"Endpoints": {"docker": null}}'):
        meta.write_text(text)
        assert f"{meta} names no daemon" in told(orch)["error"]
    meta.unlink()
    assert f"no Docker context mine, which {config}/config.json names" in told(orch)["error"]
    orch.env["DOCKER_CONTEXT"] = "other"
    line = told(orch)
    assert "no Docker context other, which DOCKER_CONTEXT names" in line["error"]
    assert "docker context ls" in line["hint"]


def test_what_a_plan_leaves_out_docker_for_is_told(orch: Orch, config: Path, tmp_path: Path) -> None:
    """The same machine with an Ollama: a process is what it is to be, and the plan says why."""
    context(config, "far", "ssh://me@there")
    program = tmp_path / "bin" / "ollama"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    orch.env["PATH"] = f"{program.parent}:{os.environ['PATH']}"
    lines = orch.run("up", "ollama", "-p", str(orch.profile), "--plan", "--json").lines
    (plan,) = (line for line in lines if "plan" in line)
    assert [item["why"] for item in plan["items"] if item.get("skip") == "use Docker"] == [
        "orch needs the Docker daemon of this machine, at a unix socket; the Docker context far is ssh://me@there."
    ]


def test_which_says_what(tmp_path: Path) -> None:
    config, nothing = tmp_path / "docker", tmp_path / "containers"
    config.mkdir()
    context(config, "used", "unix:///used")
    context(config, "named", "unix:///named", in_use=False)

    def host(docker_host: str | None = None, named: str | None = None, config: Path | None = config) -> str:
        return meant(docker_host, named, config, nothing).host

    assert host() == "unix:///used"
    assert host(named="named") == "unix:///named"
    assert host(named="default") == SOCKET
    assert host("unix:///said", "named") == "unix:///said"
    assert host(config=None) == SOCKET
    for text in ("no JSON", "[]", "{}", '{"currentContext": ""}', '{"currentContext": "default"}'):
        (config / "config.json").write_text(text)
        assert host() == SOCKET, text
    # What runs stays with its daemon, whatever context is in use by now.
    keep(nothing, Kept("unix:///kept", "an ID"))
    assert (host(named="named"), host("unix:///said")) == ("unix:///kept", "unix:///said")


def test_without_a_word_of_where_they_are_containers_are_with_the_systems_daemon(tmp_path: Path) -> None:
    """An earlier orch asked no other, unless DOCKER_HOST said so."""
    context(tmp_path, "used", "unix:///used")
    (tmp_path / "containers").mkdir()
    assert meant(None, None, tmp_path, tmp_path / "containers").host == SOCKET


@pytest.mark.skipif(shutil.which("docker") is None, reason="there is no docker command here")
def test_contexts_of_dockers_own_client_are_found(tmp_path: Path) -> None:
    def docker(*words: str) -> None:
        env = {**os.environ, "DOCKER_CONFIG": str(tmp_path), "DOCKER_HOST": "", "DOCKER_CONTEXT": ""}
        subprocess.run(["docker", *words], env=env, check=True, capture_output=True)

    docker("context", "create", "far", "--docker", "host=ssh://me@there")
    docker("context", "use", "far")
    found = meant(None, None, tmp_path, tmp_path / "containers")
    assert found == Endpoint("ssh://me@there", "the Docker context far")
    docker("context", "use", "default")
    assert meant(None, None, tmp_path, tmp_path / "containers").host == SOCKET
