"""The demo where it cannot be told, or not to its end: a clear word, its exit code, and nothing left running."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from orch_command import ROOT, Orch, wait_until


class Demo(Orch):
    """scripts/story.py over one data directory."""

    def begin(self, *words: str) -> subprocess.Popen[str]:
        """Start to tell it."""
        return subprocess.Popen(
            [sys.executable, str(ROOT / "scripts" / "story.py"), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**self.environ(), "ORCH_DEMO_HOME": str(self.home)},
            text=True,
        )

    def told(self, *words: str) -> tuple[int, str, str]:
        """The whole of it: exit code and outputs."""
        process = self.begin(*words)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    made = Demo(tmp_path / "home")
    yield made
    assert made.processes() == []


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("unix:///nowhere/docker.sock", "does not answer at /nowhere/docker.sock"),
        ("tcp://127.0.0.1:1", "DOCKER_HOST is tcp://127.0.0.1:1"),
        ("nonsense", "DOCKER_HOST is nonsense"),
    ],
)
def test_without_a_daemon_it_is_4_with_what_is_needed(demo: Demo, host: str, said: str) -> None:
    demo.env["DOCKER_HOST"] = host
    code, _, err = demo.told("--target", "docker")
    assert code == 4
    assert said in err
    assert "TIP A Docker daemon" in err
    assert "scripts/demo without --target docker needs none of it" in err
    assert "Traceback" not in err


# Imported as root, because the interpreter may lie where nobody else can read.
AS_NOBODY = """import os, sys
sys.path.insert(0, "scripts")
import docker.transport, docker_images
os.seteuid(65534)
sys.exit(docker_images.main())
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_a_daemon_that_this_user_may_not_ask_is_told_as_that(tmp_path: Path) -> None:
    # Not below tmp_path, into which nobody else may look.
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as daemon:
        Path(directory).chmod(0o755)
        place = Path(directory) / "d"
        daemon.bind(str(place))
        daemon.listen()
        place.chmod(0o600)
        words = [sys.executable, "-c", AS_NOBODY, "python", "--environments", str(tmp_path)]
        env = {**os.environ, "DOCKER_HOST": f"unix://{place}"}
        # Images that somebody else makes are not looked at.
        env.pop("ORCH_IMAGES_MADE", None)
        done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr
    assert f"This user may not use the Docker daemon at {place}" in done.stderr
    assert "group docker" in done.stderr
    assert "Traceback" not in done.stderr


def test_where_its_data_cannot_be_it_is_4(demo: Demo) -> None:
    shutil.rmtree(demo.home)
    demo.home.write_text("no directory")
    code, _, err = demo.told()
    assert (code, "ERROR Cannot use" in err, "Traceback" in err) == (4, True, False)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a small file system")
@pytest.mark.parametrize("size", ["4k", "1m"], ids=["at once", "while it pulls"])
def test_without_room_it_is_4(demo: Demo, size: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(demo.home)], check=True)
    try:
        code, _, err = demo.told()
    finally:
        subprocess.run(["umount", "-l", str(demo.home)], check=True)
    assert code == 4, err
    assert "ERROR" in err
    assert "space" in err or "disk" in err
    assert "Traceback" not in err


def test_two_at_once_do_not_stop_each_other(demo: Demo) -> None:
    first = demo.begin()
    wait_until((demo.home / "demo.lock").exists, what="the first")
    wait_until((demo.home / "tiny-qwen3.toml").exists, what="the first")
    code, _, err = demo.told()
    assert code == 4
    assert "ORCH_DEMO_HOME" in err
    assert first.poll() is None
    first.terminate()
    assert first.wait(timeout=60) == 130
    first.communicate()


@pytest.mark.llamacpp
@pytest.mark.parametrize(
    ("line", "number"),
    [
        ("== 1.", signal.SIGINT),
        ("$ orch build", signal.SIGTERM),
        ("$ orch up", signal.SIGINT),
        ("   Who are you?", signal.SIGHUP),
    ],
)
def test_interrupted_it_is_130_and_nothing_is_left(demo: Demo, line: str, number: signal.Signals) -> None:
    process = demo.begin()
    assert process.stdout is not None
    for said in process.stdout:
        if said.startswith(line):
            break
    process.send_signal(number)
    process.send_signal(number)  # impatience changes nothing
    _, err = process.communicate(timeout=120)
    assert (process.returncode, "Interrupted." in err, "Traceback" in err) == (130, True, False), err
    assert demo.processes() == []


def test_a_reader_that_leaves_is_like_an_interrupt(demo: Demo) -> None:
    process = demo.begin()
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read()
    process.stderr.close()
    assert (process.wait(timeout=60), "Traceback" in err) == (130, False), err
