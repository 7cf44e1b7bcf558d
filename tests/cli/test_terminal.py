"""What people see: at 80 columns nothing sticks out, and names, which are there to be copied, are never folded."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from typing import Any

import pytest
from orch_command import ASSETS, Orch, script

from orchestrator.cli.screen import moving
from orchestrator.core.progress_view import PartLine, waited

hub_server = script("hub_server")

WIDTH = 80


def on_terminal(orch: Orch, *args: str, columns: int = WIDTH, code: int = 0) -> list[str]:
    """The lines that a command leaves on a terminal of so many columns, all that moved among them."""
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environ = {**orch.environ(), "TERM": "xterm"}
    environ.pop("COLUMNS", None)
    command = [sys.executable, "-m", "orchestrator", *args]
    with subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environ) as process:
        os.close(terminal)
        told = b""
        try:
            while block := os.read(main, 4096):
                told += block
        except OSError:
            pass  # how a terminal says that its last writer has left
        os.close(main)
        assert process.wait(timeout=60) == code, told
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", told.decode()).replace("\r", "").splitlines()


def too_wide(lines: list[str]) -> list[str]:
    return [line for line in lines if len(line) > WIDTH]


@pytest.mark.parametrize(
    "words", ["--help", "build --help", "profile ls", "engines ls", "artifacts ls", "lora ls", "status", "schema"]
)
def test_80_columns_are_enough(orch: Orch, words: str) -> None:
    lines = on_terminal(orch, *words.split())
    assert lines
    assert too_wide(lines) == []


def test_text_wraps_between_words_under_its_column(orch: Orch) -> None:
    whole = orch.run("profile", "ls").out.splitlines()
    narrow = on_terminal(orch, "profile", "ls", columns=60)
    assert len(narrow) > len(whole)
    assert max(map(len, narrow)) <= 60
    assert " ".join(" ".join(narrow).split()) == " ".join(" ".join(whole).split())
    column = whole[1].index("about")
    assert all(line[column - 2 : column] == "  " for line in narrow[1:])


def test_the_store_with_something_in_it(orch: Orch, hub: object) -> None:
    orch.run("pull", "--repo", "test/tiny")
    (row,) = orch.run("artifacts", "ls", "--json").lines
    lines = on_terminal(orch, "artifacts", "ls")
    assert too_wide(lines) == []
    assert [line.split()[0] for line in lines] == ["Artifacts", "key", row["key"]]
    assert re.search(r"  \d+\.\d MB  \d{4}-\d\d-\d\d \d\d:\d\d  ", lines[-1])


def test_files_that_come_at_once(orch: Orch, hub: Any) -> None:
    hub.faults.append(hub_server.Fault("slow", path="*", value=5_000_000))
    told = "\n".join(on_terminal(orch, "pull", "--repo", "test/tiny"))
    assert re.search(r"test/tiny   \d\.\d of \d\.\d MB \(\d+ %\)   \d\.\d MB/s   \d s left\n", told)
    assert re.search(r"\n  model\.safetensors +\u2501+\u2500+ +\d+ % of \d\.\d MB", told)
    assert told.splitlines()[-1].strip().startswith("+ pull test/tiny at ")
    # Each picture begins with the next look of the spinner.
    assert max(map(len, re.split("[\u2800-\u28ff]|\n", told))) <= WIDTH


def test_a_hub_that_asks_to_wait_is_told_of(orch: Orch, hub: Any) -> None:
    hub.faults.append(hub_server.Fault("status", "model.safetensors", 429, times=1, headers=(("Retry-After", "1"),)))
    told = "\n".join(on_terminal(orch, "pull", "--repo", "test/tiny"))
    assert "\n  the hub asks to wait (429): trying again in 1 s" in told


@pytest.mark.llamacpp
def test_what_serves(orch: Orch) -> None:
    orch.run("up", "llamacpp", "-p", str(orch.profile))
    try:
        orch.run("lora", "add", "a-legal-assistant", str(ASSETS / "lora-a"))
        orch.run("lora", "add", "a-second-assistant", str(ASSETS / "lora-b"))
        (instance,) = orch.engines()
        for words in (("status",), ("artifacts", "ls"), ("up", "--plan"), ("down", "--all", "--plan")):
            assert too_wide(on_terminal(orch, *words)) == []
        told = "\n".join(on_terminal(orch, "status"))
        for name in (instance, "a-legal-assistant", "a-second-assistant", f"http://{orch.listen}/v1", "test/Tiny"):
            assert name in told
        keys = [row["key"] for row in orch.run("artifacts", "ls", "--json").lines]
        shown = "\n".join(on_terminal(orch, "artifacts", "ls"))
        assert len(keys) == 5
        assert all(key in shown for key in keys)
    finally:
        orch.run("down", "--all")


@pytest.mark.llamacpp
@pytest.mark.long
def test_a_wait_tells_how_long_it_has_taken_and_how_long_it_may(orch: Orch) -> None:
    orch.run("up", "llamacpp", "-p", str(orch.profile))
    (row,) = orch.engines().values()
    os.kill(row["pid"], signal.SIGSTOP)
    try:
        words, wait = ("up", "--timeout", "4"), f"wait for {row['instance']} to answer"
        told = "\n".join(on_terminal(orch, *words, code=4))
        for seconds in (1, 2, 3):
            assert f"{wait}   0:0{seconds} of 0:04" in told
        assert max(map(len, re.split("[\u2800-\u28ff]|\n", told.partition("ERROR")[0]))) <= WIDTH
        # A log is not flooded: it is told beforehand, and when it is over.
        plain = [line for line in orch.run(*words, code=4).err.splitlines() if wait in line]
        assert plain == [f"  . {wait}   at most 0:04", f"  ! {wait}"]
        lines = [line for line in orch.run(*words, "--json", code=4).lines if line.get("what") == wait]
        assert [(line["event"], line.get("limit")) for line in lines] == [("started", 4.0), ("failed", None)]
    finally:
        os.kill(row["pid"], signal.SIGCONT)
        orch.run("down", "--all")


def test_times_are_told_as_a_clock_shows_them() -> None:
    assert waited("wait", 7.9, 600) == "wait   0:07 of 10:00"
    assert waited("wait", 92.4) == "wait   1:32"
    assert waited("wait", 3723, 7200) == "wait   1:02:03 of 2:00:00"


@pytest.mark.parametrize("width", [10, 40, 78])
@pytest.mark.parametrize("is_utf", [True, False])
def test_files_under_way_fit_any_width(width: int, is_utf: bool) -> None:
    name = "A-Model-Of-A-Long-Name-00B-Instruct-Q6_K-0000{}-of-00009.gguf"
    parts = [PartLine(name.format(n), n / 9, "4.0 GB") for n in range(10)]
    parts.insert(0, PartLine("the hub asks to wait (429): trying again in 28 s", None))
    lines = moving("Some/Model   3.1 of 16.4 GB (19 %)", parts, width, is_utf).plain.splitlines()
    assert len(lines) == 1 + 8 + 1
    assert max(map(len, lines)) <= width
    assert is_utf or "".join(lines).isascii()
    if width == 78:
        assert lines[-1] == "  and 3 more"
        assert "...Instruct-Q6_K-00001-of-00009.gguf " in lines[3]
        assert lines[3].endswith(" 11 % of 4.0 GB")


@pytest.mark.parametrize("hung_up_on", [False, True], ids=["hangup", "nohup"])
@pytest.mark.parametrize(
    "words", ["status", "profile show qwen3-8b", "profile check tiny.toml", "render vllm -p tiny.toml"]
)
def test_a_terminal_that_is_closed_interrupts(orch: Orch, words: str, hung_up_on: bool) -> None:
    """As Ctrl-C does: without a word about a bug, where there is still a place for words."""

    def before() -> None:
        if hung_up_on:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    main, terminal = pty.openpty()
    command = [sys.executable, "-m", "orchestrator", *words.split()]
    with (orch.home / "err").open("w+") as err:
        process = subprocess.Popen(
            command,
            stdin=terminal,
            stdout=terminal,
            stderr=err,
            env=orch.environ(),
            cwd=orch.home,
            preexec_fn=before,
        )
        os.close(terminal)
        os.close(main)
        code = process.wait(timeout=60)
        err.seek(0)
        assert (code, err.read()) == (130, "")
