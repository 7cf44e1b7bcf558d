"""What Ollama does with large models, and orch with that: the stand-in as the `ollama` on PATH, told to take its time.

tests/ollama_api shows that it does so as the real one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from orch_command import ANSWER, ASSETS, children, stopped_afterwards, wait_until
from stand_in_orch import ENGINE, OnStandIn

pytestmark = pytest.mark.llamacpp

ALPHA, BRAVO = "Ahoy! The answer is alpha.", "Greetings. The answer is bravo."


@pytest.fixture
def orch(tmp_path: Path) -> Iterator[OnStandIn]:
    with stopped_afterwards(OnStandIn(tmp_path / "home")) as command:
        yield command


def drift(orch: OnStandIn) -> list[str]:
    drift: list[str] = orch.status(code=None).document["drift"]
    return drift


def test_a_load_may_take_as_long_as_the_engine_has(orch: OnStandIn) -> None:
    orch.slow(load=4)
    told = orch.up("--timeout", "2", "--json", code=6).lines[-1]
    assert "did not answer within 2 s" in told["error"]
    assert "--timeout" in told["hint"]
    orch.up("--timeout", "60")
    assert orch.loads() == 1 + 1, "the one that was given up, and one that was waited for"
    assert orch.says() == ANSWER


def test_its_home_is_its_own(orch: OnStandIn, tmp_path: Path) -> None:
    home = tmp_path / "caller"
    home.mkdir()
    orch.env["HOME"] = str(home)
    orch.up()
    assert list(home.rglob("*ed25519*")) == []
    assert (orch.kept / ".ollama" / "id_ed25519").exists()


def test_it_needs_not_be_on_the_path_of_who_looks_or_heals(orch: OnStandIn) -> None:
    orch.up()
    orch.env["PATH"] = os.environ["PATH"]
    orch.status()
    orch.run("up")
    orch.run("down")
    orch.run("up")
    assert orch.says() == ANSWER


def test_an_import_leaves_what_is_needed_and_no_upload(orch: OnStandIn) -> None:
    orch.up()
    orch.run("lora", "add", "alpha", str(ASSETS / "lora-a"))
    assert {path.name for path in orch.blobs()} == orch.needed()
    assert len(orch.blobs(1_000_000)) == 1
    assert (orch.says(), orch.says("alpha")) == (ANSWER, ALPHA)


def test_what_was_imported_is_not_imported_again(orch: OnStandIn) -> None:
    orch.up()
    before = {path: path.stat().st_ino for path in orch.blobs(1_000_000)}
    for who in ("keeper", "engine"):
        os.kill(orch.record(ENGINE)[who][0], signal.SIGKILL)
    orch.run("up")
    assert {path: path.stat().st_ino for path in orch.blobs(1_000_000)} == before
    log = (orch.home / "logs" / f"{ENGINE}.log").read_text()
    assert log.count('"/api/create"') == 1
    assert orch.says() == ANSWER


def test_up_after_a_kill_in_the_middle_of_an_import(orch: OnStandIn) -> None:
    orch.slow(create=3)
    process = orch.start("up", "ollama", "-p", str(orch.profile))
    wait_until(lambda: orch.blobs(1_000_000), what="the upload")
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    orch.up()
    orch.status()
    assert orch.says() == ANSWER
    assert {path.name for path in orch.blobs()} == orch.needed()


def test_of_an_adapter_that_was_replaced_nothing_stays(orch: OnStandIn, tmp_path: Path) -> None:
    orch.up()
    orch.run("lora", "add", "alpha", str(ASSETS / "lora-a"))
    first = orch.models()
    planned = orch.run("lora", "add", "alpha", str(ASSETS / "lora-b"), "--plan").out
    assert "remove from the store of tiny-ollama-g1 what nothing needs any more" in planned
    orch.run("lora", "add", "alpha", str(ASSETS / "lora-b"))
    assert (orch.says("alpha"), orch.says()) == (BRAVO, ANSWER)
    assert len(orch.models()) == 2
    assert orch.models() != first
    assert {path.name for path in orch.blobs()} == orch.needed()
    orch.status()
    orch.run("lora", "rm", "alpha")
    assert orch.models() == ["tiny"]
    assert {path.name for path in orch.blobs()} == orch.needed()
    orch.status()


def test_rollback_after_an_adapter_was_replaced(orch: OnStandIn) -> None:
    orch.up()
    orch.run("lora", "add", "alpha", str(ASSETS / "lora-a"))
    orch.run("migrate", "--to", "llamacpp")
    orch.run("lora", "add", "alpha", str(ASSETS / "lora-b"))
    orch.run("rollback")
    assert (orch.says("alpha"), orch.says()) == (BRAVO, ANSWER)
    orch.status()


def test_what_was_left_there_before_is_removed_by_the_next_up_and_is_no_drift(orch: OnStandIn) -> None:
    orch.up()
    library = orch.kept / "models" / "manifests" / "registry.ollama.ai" / "library"
    (library / "adapter-0123456789ab").mkdir()
    (library / "adapter-0123456789ab" / "latest").write_bytes((library / "tiny" / "latest").read_bytes())
    orch.status()
    orch.run("up")
    assert orch.models() == ["tiny"]
    assert orch.says() == ANSWER


def test_an_adapter_costs_one_load_however_many_there_are(orch: OnStandIn) -> None:
    orch.up()
    for count, (name, directory) in enumerate([("a", "lora-a"), ("b", "lora-b"), ("c", "lora-a")]):
        before = orch.loads()
        orch.run("lora", "add", name, str(ASSETS / directory))
        assert orch.loads() == before + 1, f"with {count} adapters before"
    orch.status()


def test_a_look_loads_nothing(orch: OnStandIn) -> None:
    orch.up()
    orch.status()
    orch.status()
    assert orch.loads() == 1
    os.kill(orch.runner(), signal.SIGKILL)
    wait_until(lambda: not children(int(orch.engines()[ENGINE]["pid"])), what="the runner's end")
    orch.status()
    assert orch.loads() == 1
    assert orch.says() == ANSWER
    assert orch.loads() == 2


@pytest.mark.slow
def test_names_that_give_way_to_each_other_do_not_hang(orch: OnStandIn) -> None:
    orch.slow(load=1)
    orch.up()
    orch.run("lora", "add", "alpha", str(ASSETS / "lora-a"))
    load = orch.load("tiny", "alpha", clients=4, tokens=400)
    wait_until(lambda: load.streams, what="a stream")
    for _ in range(6):
        orch.status()
    assert [stream.problem for stream in load.stop() if stream.problem] == []


@pytest.mark.slow
def test_a_runner_that_hangs_is_told_and_healed(orch: OnStandIn) -> None:
    orch.up()
    load = orch.load("tiny", clients=1, tokens=400)
    wait_until(lambda: load.open_now() > 0, what="an open stream")
    os.kill(orch.runner(), signal.SIGSTOP)
    began = time.monotonic()
    assert any("the model that it has loaded hangs" in line for line in drift(orch))
    assert orch.engines()[ENGINE]["answers"] is False
    assert time.monotonic() - began < 20
    orch.run("up", "--timeout", "60")
    assert orch.says() == ANSWER
    orch.status()
    load.stop()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a small file system")
@pytest.mark.parametrize("size", ["12m", "30m"], ids=["too small", "enough"])
def test_a_disk_that_is_too_small_is_told_before_anything_changes(tmp_path: Path, size: str) -> None:
    """It takes the artifact of 3.6 MB, and three times that for a moment."""
    home = tmp_path / "home"
    home.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(home)], check=True)
    try:
        with stopped_afterwards(OnStandIn(home)) as orch:
            if size == "30m":
                assert "MB of disk meanwhile" in orch.up("--plan").out
                orch.up()
                return
            told = orch.up("--json", code=5).lines
            assert "MB of disk" in told[-1]["error"]
            assert "ORCH_HOME" in told[-1]["hint"]
            assert orch.processes() == []
    finally:
        subprocess.run(["umount", "-l", str(home)], check=True)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a small file system")
def test_a_disk_that_fills_up_in_an_import_is_told_in_our_words(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m", "none", str(home)], check=True)
    try:
        with stopped_afterwards(OnStandIn(home)) as orch:
            orch.slow(create=3)
            process = orch.start("up", "ollama", "-p", str(orch.profile), "--json")
            wait_until(lambda: orch.blobs(1_000_000), what="the upload")
            free = os.statvfs(home)
            with (home / "filler").open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - 2_000_000)
            out, _ = process.communicate(timeout=60)
            told = json.loads(out.splitlines()[-1])
            assert process.returncode == 6
            assert "could not write the model into its store" in told["error"]
            assert "free some space" in told["hint"]
            assert orch.engines() == {}
    finally:
        subprocess.run(["umount", "-l", str(home)], check=True)
