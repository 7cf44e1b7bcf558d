"""What a process has started, as the targets see it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from orch_command import children, wait_until

from orchestrator.drivers.children import children_of

STARTS = """
import subprocess, sys, time
for one in sys.argv[1:]:
    subprocess.Popen([sys.executable, "-S", "-c", one])
time.sleep(600)
"""
SPINS = "import time\nwhile True: pass"
SLEEPS = "import time\ntime.sleep(600)"


@contextmanager
def starter(*programs: str) -> Iterator[int]:
    """The pid of a process that has started these, which it never reaps."""
    text = (
        "import subprocess, sys, time\nfor one in sys.argv[1:]: subprocess.Popen([sys.executable, '-S', '-c', one])\n"
    )
    with subprocess.Popen([sys.executable, "-S", "-c", f"{text}time.sleep(600)", *programs]) as process:
        try:
            wait_until(lambda: len(children(process.pid)) == len(programs), what="what it starts")
            yield process.pid
        finally:
            for pid in (*children(process.pid), process.pid):
                os.kill(pid, signal.SIGKILL)


def test_what_computes_and_what_does_not() -> None:
    with starter(SPINS) as pid:
        first = children_of(pid)
        assert first is not None
        assert first.count == 1
        wait_until(lambda: (now := children_of(pid)) is not None and now.ticks > first.ticks + 10, what="computing")
        os.kill(children(pid)[0], signal.SIGSTOP)
        stopped = children_of(pid)
        assert children_of(pid) == stopped


def test_what_has_ended_is_not_counted() -> None:
    with starter(SLEEPS, SLEEPS) as pid:
        os.kill(children(pid)[0], signal.SIGKILL)
        wait_until(lambda: (now := children_of(pid)) is not None and now.count == 1, what="its end")


def test_below_an_init_its_child_is_meant() -> None:
    with starter(SLEEPS) as pid:
        found = children_of(pid, below_init=True)
        assert found is not None
        assert found.count == 0


def test_what_is_not_seen_is_not_known() -> None:
    assert children_of(None) is None
    assert children_of(2**22 + 1) is None
    with starter() as pid:
        found = children_of(pid)
        assert found is not None
        assert found.count == 0
        assert children_of(pid, below_init=True) is None
