"""Processes in control groups with limits: what they are given, and what is told of those that run out of memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conditions import Seen, only, program, wait_until
from control_groups import MIB, Group, group

from orchestrator.core.launch import Exit
from orchestrator.drivers.local import proc, records
from orchestrator.drivers.local.processes import LocalTarget

pytestmark = pytest.mark.groups

HOST = """
import json
from dataclasses import asdict
from orchestrator.drivers.host import read_host
print(json.dumps({**asdict(read_host()), "cpu_flags": [], "memory": read_host().memory.name}))
"""
# What `orch up` does to have an engine run, as a process of its own: keepers are in the group of who starts them.
ENSURE = """
import sys
from pathlib import Path
from orchestrator.core.launch import Launch
from orchestrator.drivers.local.processes import LocalTarget
root, logs, text = sys.argv[1:]
target = LocalTarget(Path(root), Path(logs), Path, sys.executable)
argv = (sys.executable, "-S", "-u", "-c", text)
target.ensure("a", Launch(argv, (("OMP_NUM_THREADS", "{threads}"),), stop_grace_s=2.0), "")
"""
WAIT = "import os, time\nwhile not os.path.exists({gate!r}): time.sleep(0.02)\n"
EAT = "held = []\nfor _ in range(400): held.append(b'1' * 2**20)\ntime.sleep(600)\n"
LIMIT = 96 * MIB


@pytest.fixture
def limited() -> Iterator[Group]:
    """A group with limits that a few small Pythons fit into."""
    with group() as made:
        made.limit_memory(LIMIT)
        made.limit_cpus(0.5)
        yield made


def python(made: Group, text: str, *words: str) -> str:
    """What a Python program in the group says."""
    done = subprocess.run(
        [*made.within, sys.executable, "-c", text, *words], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_memory_and_cpus_are_those_of_the_group() -> None:
    with group() as made:
        free: dict[str, Any] = json.loads(python(made, HOST))
        assert (free["memory"], free["memory_limit_file"]) == ("this machine", "")
        assert free["cpus"] == len(os.sched_getaffinity(0))
        made.limit_memory(600 * MIB)
        made.limit_cpus(0.5)
        host: dict[str, Any] = json.loads(python(made, HOST))
        assert (host["memory"], host["memory_total"]) == ("this control group (600 MiB)", 600 * MIB)
        assert host["memory_limit_file"] == str(made.memory_file)
        assert 400 * MIB < host["memory_available"] < 600 * MIB
        assert host["cpus"] == 1


Start = Callable[[str], LocalTarget]


@pytest.fixture
def start(limited: Group, target: LocalTarget, root: Path, tmp_path: Path) -> Start:
    """Have a Python program run in the group, under the name a; it waits for the file `gate` first."""

    def made(text: str) -> LocalTarget:
        waiting = WAIT.format(gate=str(tmp_path / "gate")) + text
        python(limited, ENSURE, str(root), str(tmp_path / "logs"), waiting)
        return target

    return made


def ended(target: LocalTarget) -> Exit:
    """How it ended, once that is known."""
    found = wait_until(lambda: only(target, "a").last_exit, "its end", timeout_s=30)
    assert isinstance(found, Exit)
    return found


def test_an_engine_that_runs_out_of_memory_is_told_as_that(start: Start, tmp_path: Path) -> None:
    target = start(EAT)
    (tmp_path / "gate").touch()
    told = ended(target)
    assert str(told) == "ran out of memory (its limit is 96 MiB)"
    assert (told.signal, told.memory_limit) == (signal.SIGKILL, LIMIT)
    log = target.log_path("a").read_text()
    assert "signal 9 for want of memory, nobody asked for it ---" in log


def test_so_is_one_that_exits_because_a_process_of_its_own_did(start: Start, tmp_path: Path) -> None:
    """As vLLM does when its engine core is gone."""
    inner = f"import time\n{EAT}"
    target = start(f"import subprocess, sys\nsubprocess.run([sys.executable, '-S', '-c', {inner!r}])\nsys.exit(3)\n")
    (tmp_path / "gate").touch()
    told = ended(target)
    assert str(told) == "exited with code 3 as memory ran out (its limit is 96 MiB)"
    assert (told.code, told.signal, told.memory_limit) == (3, None, LIMIT)


def test_one_that_lives_on_has_it_in_its_log(start: Start, tmp_path: Path) -> None:
    """As Ollama does when a runner of its is gone."""
    inner = f"import time\n{EAT}"
    target = start(
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-S', '-c', {inner!r}])\ntime.sleep(600)\n"
    )
    (tmp_path / "gate").touch()
    wait_until(lambda: "--- memory ran out " in target.log_path("a").read_text(), "the line", timeout_s=30)
    assert only(target, "a").last_exit is None


def test_one_that_was_adopted_is_told_too(start: Start, root: Path, tmp_path: Path) -> None:
    start(EAT)
    keeper = Seen(root, "a").keeper
    assert proc.send(keeper, signal.SIGKILL)
    wait_until(lambda: not proc.alive(keeper), "the keeper's end")
    target = start(EAT)
    assert Seen(root, "a").keeper != keeper
    (tmp_path / "gate").touch()
    assert str(ended(target)) == "ran out of memory (its limit is 96 MiB)"


def test_one_that_somebody_has_killed_is_not(start: Start, root: Path, tmp_path: Path) -> None:
    target = start(EAT)
    assert proc.send(Seen(root, "a").engine, signal.SIGKILL)
    told = ended(target)
    assert (str(told), told.memory_limit) == ("was ended by signal 9", None)


def test_what_a_group_ended_before_it_started_is_not_its_own(start: Start, limited: Group, root: Path) -> None:
    before = subprocess.run([*limited.within, sys.executable, "-c", f"import time\n{EAT}"], check=False, timeout=60)
    assert before.returncode == -signal.SIGKILL
    target = start(EAT)
    assert proc.send(Seen(root, "a").engine, signal.SIGKILL)
    assert ended(target).memory_limit is None


def test_how_many_threads_it_is_to_have_is_seen_where_it_starts(start: Start, root: Path) -> None:
    start(EAT)
    engine = Seen(root, "a").engine.pid
    assert b"OMP_NUM_THREADS=1" in Path(f"/proc/{engine}/environ").read_bytes().split(b"\0")


TOOL = """
import sys
from pathlib import Path
from orchestrator.drivers.local.tools import run_tool
words = (sys.executable, "-S", "-c", sys.argv[2])
print(run_tool("Converting", words, Path(sys.argv[1]), lambda *_: None).out_of_memory)
"""


def test_a_tool_that_runs_out_of_memory_is_told_as_that(limited: Group, tmp_path: Path) -> None:
    eat, killed = f"import time\n{EAT}", "import os; os.kill(os.getpid(), 9)"
    assert python(limited, TOOL, str(tmp_path), eat) == "ran out of memory (its limit is 96 MiB)\n"
    assert python(limited, TOOL, str(tmp_path), killed) == "\n"


def test_a_record_of_the_version_before_is_read(target: LocalTarget, root: Path) -> None:
    target.ensure("a", program("import sys; sys.exit(3)"), "")
    wait_until(lambda: only(target, "a").last_exit, "its end")
    target.stop("a", lambda *_: None)
    file = root / "a" / records.STATE
    fields = json.loads(file.read_text())
    assert len(fields["last_exit"]) == 4
    fields["last_exit"] = fields["last_exit"][:3]
    file.write_text(json.dumps(fields))
    seen = only(target, "a")
    assert (seen.problem, str(seen.last_exit)) == ("", "exited with code 3")
