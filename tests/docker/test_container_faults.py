"""What may happen to a container while it serves: told by `status`, put right by `up`, nothing lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from docker_orch import DockerOrch, nothing_left, serving
from orch_command import ANSWER, ASSETS, children, wait_until

from orchestrator.drivers.docker.daemon import Daemon
from orchestrator.drivers.docker.endpoints import Endpoint

pytestmark = [pytest.mark.docker, pytest.mark.llamacpp]

ENGINE = "tiny-ollama-g1"
ALPHA = "Ahoy! The answer is alpha."


@pytest.fixture
def orch(tmp_path: Path, images: dict[str, str]) -> Iterator[DockerOrch]:
    with nothing_left(DockerOrch(tmp_path / "home", images)) as command:
        yield command


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, images: dict[str, str]) -> Iterator[DockerOrch]:
    """The tiny model in a container, with an adapter: one for all tests that leave it as they found it."""
    with serving(tmp_path_factory.mktemp("faults") / "home", images) as command:
        command.run("lora", "add", "alpha", str(ASSETS / "lora-a"))
        yield command


def drift(orch: DockerOrch) -> str:
    return "\n".join(orch.status(code=9).document["drift"])


def serves(orch: DockerOrch) -> bool:
    try:
        return (orch.says(), orch.says("alpha")) == (ANSWER, ALPHA)
    except httpx.TransportError:
        return False


def healed(orch: DockerOrch) -> None:
    orch.run("up")
    assert serves(orch)
    orch.status()


@pytest.mark.parametrize(
    ("deed", "told"),
    [
        (lambda container: container.pause(), "is paused"),
        (lambda container: container.rename("somebody-elses"), "was renamed to somebody-elses"),
        (lambda container: container.stop(), f"{ENGINE} is not running; orch up would start {ENGINE} and route to it"),
        (
            lambda container: container.remove(force=True),
            f"{ENGINE} is gone; orch up would start {ENGINE} and route to it",
        ),
        (lambda container: container.update(restart_policy={"Name": "no"}), "has no keeper"),
    ],
    ids=["paused", "renamed", "stopped", "removed", "restart policy"],
)
def test_what_somebody_does_to_an_engine_is_told_and_put_right(
    up: DockerOrch, deed: Callable[[Any], object], told: str
) -> None:
    deed(up.container(ENGINE))
    assert told in drift(up)
    healed(up)


@pytest.mark.long
def test_a_model_that_hangs_is_told_and_its_server_started_anew(up: DockerOrch) -> None:
    assert serves(up)
    init = up.inspect(ENGINE)["State"]["Pid"]
    (server,) = children(init)
    (runner,) = children(server)
    os.kill(runner, signal.SIGSTOP)
    assert "the model that it has loaded hangs" in drift(up)
    healed(up)


def test_of_what_was_uploaded_nothing_stays_that_no_model_needs(up: DockerOrch) -> None:
    kept = up.home / "containers" / ENGINE / "files" / "models"
    manifests = "".join(path.read_text() for path in (kept / "manifests").glob("*/*/*/*"))
    assert [path.name for path in (kept / "blobs").iterdir() if path.name[7:] not in manifests] == []


def test_an_engine_off_its_network_is_told_and_connected_again(up: DockerOrch) -> None:
    (network,) = up.client.networks.list(filters={"label": f"orch.home={up.home}"})
    network.disconnect(up.container(ENGINE))
    assert "is not connected to the network" in drift(up)
    healed(up)


def test_a_crash_is_restarted_by_the_daemon_with_its_adapters(up: DockerOrch) -> None:
    up.crash(ENGINE)
    wait_until(lambda: up.inspect(ENGINE)["RestartCount"] == 1, what="a restart")
    wait_until(lambda: serves(up), what="the engine")
    row = up.engines()[ENGINE]
    assert (row["restarts"], row["last_exit"]) == (1, "was ended by signal 9")
    up.status()


@pytest.mark.long
def test_a_crash_loop_is_told_with_how_it_ends(orch: DockerOrch) -> None:
    orch.run("up", "ollama", "-p", str(orch.profile))
    model = orch.home / "containers" / ENGINE / "files" / "models"
    shutil.rmtree(model)
    model.write_text("no directory")  # the server ends at once when it starts
    orch.crash(ENGINE)
    wait_until(lambda: orch.inspect(ENGINE)["RestartCount"] >= 2, what="a second restart")
    assert re.search(r"exited with code 1", orch.engines()[ENGINE]["last_exit"])
    told = orch.run("up", "--timeout", "20", "--json", code=None).lines[-1]
    assert ENGINE in told["error"]
    assert "not a directory" in told["error"], "what it said last stands in the log of the start before"
    model.unlink()
    orch.run("up")
    assert orch.says() == ANSWER
    orch.status()


def test_out_of_memory_is_told_as_such_and_what_served_before_serves(up: DockerOrch) -> None:
    up.write_profile(memory_mib=32)
    told = up.run("up", "ollama", "-p", str(up.profile), "--timeout", "30", "--json", code=6).lines[-1]
    up.write_profile()
    assert "ran out of memory (its limit is 32 MiB)" in told["error"]
    assert list(up.engines()) == [ENGINE]
    assert serves(up)
    up.status()


def test_a_gateway_removed_under_load_is_told_and_comes_back_with_its_routes(up: DockerOrch) -> None:
    load = up.load("tiny", clients=2)
    wait_until(lambda: load.open_now() == 2, what="open streams")
    up.container("gateway").remove(force=True)
    assert "orch up would start the gateway" in drift(up)
    healed(up)
    wait_until(lambda: sum(not s.problem and s.ended is not None for s in load.streams[-4:]) >= 2, what="new streams")
    cut = [stream for stream in load.stop() if stream.problem]
    assert cut, "what was open at the gateway's end cannot go on"
    healed(up)


def test_a_killed_gateway_comes_back_by_itself(up: DockerOrch) -> None:
    up.crash("gateway")
    wait_until(lambda: serves(up), what="the gateway")
    up.status()


def test_the_address_is_taken(orch: DockerOrch) -> None:
    host, port = orch.listen.split(":")
    with socket.create_server((host, int(port))):
        told = orch.run("up", "ollama", "-p", str(orch.profile), "--json", code=4).lines[-1]
        assert str(os.getpid()) in told["error"]
    assert orch.containers() == []


def test_images_tell_whose_they_are_also_where_another_is_pinned(up: DockerOrch) -> None:
    (engine,) = up.engines()
    pin = up.home / "pins" / "ollama.toml"
    text = pin.read_text()
    for pinned in (text, re.sub(r"sha256:\w+", "sha256:" + "0" * 64, text)):
        pin.write_text(pinned)
        rows = up.run("images", "ls", "--json").lines
        assert [(row["for"], row["used_by"]) for row in rows if row["used_by"]] == [
            ("ollama", [engine, "tiny"]),
            ("gateway", ["gateway"]),
        ]
    pin.write_text(text)
    assert f"by {engine}, tiny." in up.run("images", "ls").out


def test_an_image_that_is_gone_is_told_before_anything_begins(up: DockerOrch) -> None:
    pin = up.home / "pins" / "ollama.toml"
    text = pin.read_text()
    pin.write_text(re.sub(r"sha256:\w+", "sha256:" + "0" * 64, text))
    assert any("orch up takes it" in line for line in up.status().document["upgrades"])
    told = up.run("up", "--json", code=4).lines[-1]
    assert "no registry has it" in told["error"]
    assert "orch images pin" in told["hint"]
    assert serves(up)
    # What is recorded is healed all the same.
    up.container(ENGINE).remove(force=True)
    up.run("up")
    assert serves(up)
    pin.write_text(text)
    up.status()


def test_no_daemon_is_told_before_anything_begins(orch: DockerOrch) -> None:
    orch.env["DOCKER_HOST"] = f"unix://{orch.home}/nobody.sock"
    told = orch.run("up", "ollama", "-p", str(orch.profile), "--json", code=4).lines[-1]
    assert "does not answer" in told["error"]
    assert "DOCKER_HOST=unix:///var/run/docker.sock" in told["hint"]
    orch.env["DOCKER_HOST"] = "tcp://127.0.0.1:1"
    assert "DOCKER_HOST" in orch.run("up", "ollama", "-p", str(orch.profile), "--json", code=4).lines[-1]["error"]
    assert orch.processes() == []


def test_a_daemon_that_hangs_is_not_waited_for_for_ever(orch: DockerOrch) -> None:
    """One that takes connections and says nothing; interrupted, because the wait is a minute."""
    place = str(orch.home / "d")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.bind(place)
        silent.listen()
        orch.env["DOCKER_HOST"] = f"unix://{place}"
        process = orch.start("status")
        assert process.wait(timeout=90) == 0, "nothing of it is in Docker, so the daemon is not asked"
        process.communicate()


def test_a_daemon_that_never_answers_is_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.bind(str(tmp_path / "d"))
        silent.listen()
        facts = Daemon(Endpoint(f"unix://{tmp_path}/d"), patience_s=0, answer_s=0.5).facts()
    assert "takes too long to answer" in facts.problem or "does not answer" in facts.problem
    assert facts.hint


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a small file system")
def test_a_disk_that_is_too_small_is_told_and_nothing_is_left(tmp_path: Path, images: dict[str, str]) -> None:
    """Room for the artifact, and none for Ollama's copies of it."""
    home = tmp_path / "small"
    home.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(home)], check=True)
    try:
        with nothing_left(DockerOrch(home, images)) as orch:
            told = orch.run("up", "ollama", "-p", str(orch.profile), "--json", code=5).lines[-1]
            assert "of disk for a moment" in told["error"]
            assert "Free some space" in told["hint"]
            assert orch.containers() == []
    finally:
        subprocess.run(["umount", str(home)], check=True)


def test_what_is_inside_is_shut_in(up: DockerOrch) -> None:
    engine, gateway = up.inspect(ENGINE), up.inspect("gateway")
    for seen in (engine, gateway):
        host = seen["HostConfig"]
        assert host["ReadonlyRootfs"]
        assert host["CapDrop"] == ["ALL"]
        assert host["SecurityOpt"] == ["no-new-privileges"]
        assert host["PidsLimit"] == 4096
        assert host["Memory"] > 0
        assert not host["Privileged"]
        assert not host["PortBindings"]
        assert not any("docker.sock" in mount["Source"] for mount in seen["Mounts"])
    reads = [m["Destination"] for m in engine["Mounts"] if not m["RW"]]
    assert str(up.home / "store") in reads
    # The engine reaches nobody: its network is internal, and from there this machine's gateway is all that answers.
    (network,) = up.client.networks.list(filters={"label": f"orch.home={up.home}"})
    assert network.attrs["Internal"]
    probe = "import socket,sys; s=socket.socket(); s.settimeout(2); sys.exit(s.connect_ex(('192.0.2.1', 53)) and 7)"
    assert up.container(ENGINE).exec_run(["python3", "-c", probe]).exit_code == 7


def test_what_a_kill_left_of_the_network_is_in_nobodys_way(orch: DockerOrch) -> None:
    orch.run("up", "ollama", "-p", str(orch.profile))
    (network,) = orch.client.networks.list(filters={"label": f"orch.home={orch.home}"})
    name = network.name
    orch.run("down", "--all")
    orch.client.networks.create(f"{name}-probe", internal=True, labels={"orch.home": str(orch.home)})
    orch.run("up")
    assert orch.says() == ANSWER


def test_two_names_of_one_adapter_come_and_go_alone(up: DockerOrch) -> None:
    up.run("lora", "add", "twin", str(ASSETS / "lora-a"))
    assert (up.says("twin"), up.says("alpha")) == (ALPHA, ALPHA)
    up.run("lora", "rm", "twin")
    assert up.chat("twin").status_code == 404
    assert serves(up)
    up.status()


def test_a_key_is_nowhere_to_be_read(orch: DockerOrch) -> None:
    key = "the-secret-of-this-test"
    for bad in ("with space", "#x", "schlüssel"):
        orch.env["ORCH_API_KEY"] = bad
        refused = orch.run("up", "ollama", "-p", str(orch.profile), "--json", code=2).lines[-1]
        assert "not a valid API key" in refused["error"]
    del orch.env["ORCH_API_KEY"]
    assert not (orch.home / "keys").exists()
    host, port = orch.listen.split(":")
    orch.env["ORCH_LISTEN"] = f"0.0.0.0:{port}"
    refused = orch.run("up", "ollama", "-p", str(orch.profile), "--json", code=5).lines[-1]
    assert "orch keys add NAME" in refused["hint"]
    orch.env["ORCH_API_KEY"] = key
    orch.run("up", "ollama", "-p", str(orch.profile))
    del orch.env["ORCH_API_KEY"]
    assert orch.chat().status_code == 401
    asked = {"Authorization": f"Bearer {key}"}
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 40}
    answer = httpx.post(
        f"http://{host}:{port}/v1/chat/completions", json=body, headers=asked, timeout=60, trust_env=False
    )
    assert answer.json()["choices"][0]["message"]["content"] == ANSWER
    orch.run("up")
    orch.status()
    told = [str(container.attrs) + container.logs().decode() for container in orch.containers()]
    told += [path.read_text(errors="replace") for path in orch.home.glob("*.jsonl")]
    assert not any(key in text for text in told)
    refused = orch.run("keys", "rm", "first", "--open", "--json", code=5).lines[-1]
    assert "others can reach the gateway" in refused["error"]
    orch.run("keys", "rotate", "first", "--grace", "0")
    answer = httpx.post(
        f"http://{host}:{port}/v1/chat/completions", json=body, headers=asked, timeout=60, trust_env=False
    )
    assert answer.status_code == 401
    orch.status()


def test_two_data_directories_are_two_worlds(up: DockerOrch, tmp_path: Path, images: dict[str, str]) -> None:
    with serving(tmp_path / "other", images) as other:
        assert other.says() == ANSWER
    assert serves(up)


@pytest.mark.long
def test_an_engine_that_hangs_is_told_and_a_fresh_one_takes_its_place(up: DockerOrch) -> None:
    init = up.inspect(ENGINE)["State"]["Pid"]
    child = int(Path(f"/proc/{init}/task/{init}/children").read_text().split()[0])
    os.kill(child, signal.SIGSTOP)
    assert f"wait for {ENGINE} to answer" in drift(up)
    up.run("up", "--fresh", "--drain", "1")
    assert list(up.engines()) == ["tiny-ollama-g2"]
    assert serves(up)


def test_containers_of_another_daemon_are_told_and_not_started_anew(up: DockerOrch) -> None:
    kept = up.home / "containers" / "daemon.json"
    text = kept.read_text()
    assert json.loads(text)["host"] == up.host
    up.env["DOCKER_CONTEXT"] = "not-there"
    del up.env["DOCKER_HOST"]
    try:
        up.status()  # what runs stays with its daemon
        up.env["DOCKER_HOST"] = up.host
        kept.write_text(json.dumps({**json.loads(text), "host": "unix:///elsewhere"}))
        up.status()  # the same daemon, at another place
        kept.write_text(json.dumps({"host": "unix:///elsewhere", "id": "another"}))
        told = up.run("up", "--json", code=4).lines[-1]
        assert told["error"] == (
            f"What runs here in containers is with the Docker daemon at unix:///elsewhere; DOCKER_HOST is {up.host}."
        )
        assert "DOCKER_HOST=unix:///elsewhere" in told["hint"]
        assert any("unix:///elsewhere" in line for line in up.status(code=9).document["drift"])
    finally:
        del up.env["DOCKER_CONTEXT"]
        up.env["DOCKER_HOST"] = up.host
        kept.write_text(text)
    up.status()
    assert serves(up)
