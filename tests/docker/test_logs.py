"""orch logs over both targets: whose line it is, that lines come at once and whole, and when it ends."""

from __future__ import annotations

import os
import pty
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker_orch import DockerOrch, serving
from orch_command import ANSWER, wait_until

pytestmark = pytest.mark.docker

ENGINE = "tiny-ollama-g1"
FROM_ENGINE, FROM_GATEWAY = f"{ENGINE} | ", f"{'gateway':<{len(ENGINE)}} | "


@pytest.fixture
def up(tmp_path: Path, images: dict[str, str]) -> Iterator[DockerOrch]:
    """One that the test may end."""
    with serving(tmp_path / "home", images) as command:
        yield command


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory, images: dict[str, str]) -> Iterator[DockerOrch]:
    """One that goes on serving."""
    with serving(tmp_path_factory.mktemp("lasting") / "home", images) as command:
        yield command


class Following:
    """A started `orch logs -f`; its lines so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def sees(self, text: str) -> str:
        """The first line that has it, waited for."""
        line: str = wait_until(lambda: next((one for one in self.lines if text in one), ""), what=f"a line with {text}")
        return line

    def end(self) -> tuple[int, str]:
        """Exit code and stderr, once it is over."""
        assert self.process.stderr is not None
        assert self.process.stdout is not None
        code, err = self.process.wait(timeout=30), self.process.stderr.read()
        self._thread.join()
        self.process.stdout.close()
        self.process.stderr.close()
        return code, err


def untimed(told: str) -> list[str]:
    """The lines without the time that each of the gateway's begins with."""
    return [re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+[+-]\d\d:\d\d ", "", line) for line in told.splitlines()]


def test_without_a_name_engine_and_gateway_are_told_apart(lasting: DockerOrch) -> None:
    lines = untimed(lasting.run("logs").out)
    assert any(line.startswith(FROM_ENGINE) and "/v1/chat/completions" in line for line in lines)
    assert f"{FROM_GATEWAY}INFO tiny: routes to {ENGINE}" in lines
    assert all(line.startswith((FROM_ENGINE, FROM_GATEWAY)) for line in lines)
    assert len(lasting.run("logs", "-n", "1").out.splitlines()) == 2
    alone = untimed(lasting.run("logs", "gateway").out)
    assert f"INFO tiny: routes to {ENGINE}" in alone
    assert [line for line in untimed(lasting.run("logs", "gateway", ENGINE).out) if "routes to" in line] == [
        f"{FROM_GATEWAY}INFO tiny: routes to {ENGINE}"
    ]


def test_following_shows_lines_of_both_at_once_until_interrupted(lasting: DockerOrch) -> None:
    following = Following(lasting.start("logs", "--follow", "-n", "1"))
    wait_until(lambda: len(following.lines) >= 2, what="the last line of each")
    before = len(following.lines)
    assert lasting.says() == ANSWER
    chats = lambda: [one for one in following.lines[before:] if "/v1/chat/completions" in one]  # noqa: E731
    assert wait_until(chats, what="the chat's line")[0].startswith(FROM_ENGINE)
    lasting.run("lora", "add", "alpha", str(Path(__file__).parents[1] / "assets" / "lora-a"))
    wait_until(lambda: [one for one in following.lines[before:] if one.startswith(FROM_GATEWAY)], what="the gateway's")
    started = time.monotonic()
    following.process.send_signal(signal.SIGINT)
    assert following.end() == (0, "")
    assert time.monotonic() - started < 3


def test_following_ends_when_nothing_is_left_and_the_logs_are_kept(up: DockerOrch) -> None:
    following = Following(up.start("logs", "-f"))
    following.sees("INFO Listening")
    up.run("down", "--all")
    assert following.end() == (0, "")
    assert f"{FROM_GATEWAY}INFO Stopped." in untimed("\n".join(following.lines))
    # Of what is gone the log is kept, and following it ends at once.
    assert "/v1/chat/completions" in up.run("logs", ENGINE).out
    assert up.run("logs", ENGINE, "-f", "-n", "2", timeout=20).out == up.run("logs", ENGINE, "-n", "2").out
    refused = up.run("logs", "nobody", code=5).err
    assert "There is no log of nobody" in refused
    assert f"gateway, {ENGINE}" in refused
    assert "Nothing is being served" in up.run("logs", code=5).err


def test_following_goes_on_over_a_crash(lasting: DockerOrch) -> None:
    following = Following(lasting.start("logs", ENGINE, "-f", "-n", "1"))
    wait_until(lambda: following.lines, what="the last line")
    lasting.crash(ENGINE)
    wait_until(lambda: lasting.status(code=None).code == 0, seconds=60, what="the engine's return")
    seen = len(following.lines)
    assert lasting.says() == ANSWER
    wait_until(lambda: [one for one in following.lines[seen:] if "/v1/chat/completions" in one], what="a new line")
    following.process.send_signal(signal.SIGINT)
    assert following.end()[0] == 0


def test_local_logs_are_shown_when_the_daemon_does_not_answer(up: DockerOrch) -> None:
    up.run("migrate", "--to", "llamacpp", "--target", "local")
    assert up.says() == ANSWER
    served = up.run("logs").out
    assert "tiny-llamacpp-g2 | " in served
    host, up.env["DOCKER_HOST"] = up.env["DOCKER_HOST"], "unix:///nonexistent/docker.sock"
    try:
        told = up.run("logs", "tiny-llamacpp-g2", "-n", "5000")
        assert "The Docker daemon does not answer" in told.err
        assert "--- started " in told.out
        assert "tiny-llamacpp-g2 | " in up.run("logs").out
        # Its log may be there, with the daemon.
        assert "The Docker daemon does not answer" in up.run("logs", "nobody", code=4).err
    finally:
        up.env["DOCKER_HOST"] = host


def test_long_lines_come_whole(lasting: DockerOrch) -> None:
    """The daemon cuts at 16 KiB."""
    name, long = "long", "x" * 50_000
    code = f"import time\nfor n in range(3): print('{long}', n, flush=True); time.sleep(1)\ntime.sleep(600)"
    image = lasting.client.images.get(lasting.env["ORCH_GATEWAY_BASE"]).id
    labels = {key: value for key, value in lasting.container(ENGINE).labels.items() if key.startswith("orch.")}
    made = lasting.client.containers.run(
        image,
        ["python3", "-c", code],
        detach=True,
        labels=labels | {"orch.instance": name},
        init=True,
        network_mode="none",
    )
    try:
        following = Following(lasting.start("logs", name, "-f"))
        following.sees(f"{long} 2")
        assert following.lines == [f"{long} {number}" for number in range(3)]
        following.process.send_signal(signal.SIGINT)
        assert following.end()[0] == 0
        assert lasting.run("logs", name).out.splitlines() == following.lines
    finally:
        made.remove(force=True)


def test_names_are_coloured_on_a_terminal_only(lasting: DockerOrch) -> None:
    ours, theirs = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", "logs", "-n", "1"], stdout=theirs, stderr=theirs, env=lasting.environ()
    )
    os.close(theirs)
    seen: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    try:
        while block := os.read(ours, 65536):
            seen.put(block)
    except OSError:  # the other side is closed
        pass
    os.close(ours)
    assert done.wait(timeout=60) == 0
    text = b"".join(seen.get() for _ in range(seen.qsize())).decode()
    colours = re.findall(r"\x1b\[(\d+)m(\S+) +\| \x1b\[0m", text)
    assert {name for _, name in colours} == {ENGINE, "gateway"}
    assert len({colour for colour, _ in colours}) == 2
    assert "\x1b[" not in lasting.run("logs", "-n", "1").out
