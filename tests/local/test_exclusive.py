"""The one lock of a data directory: it keeps others out, and asking who has it keeps nobody out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from orch_command import wait_until

from orchestrator.drivers.records import at_work, exclusive
from orchestrator.errors import LockHeld

HOLDER = "import sys, time; from pathlib import Path; from orchestrator.drivers.records import exclusive\n"
HOLDER += "with exclusive(Path(sys.argv[1]), 'up vllm'): time.sleep(60)"


def test_who_has_it_is_told_until_its_holder_is_killed(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    assert at_work(lock) == ""
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)])
    told = wait_until(lambda: at_work(lock), what="the lock")
    assert f"`orch up vllm` (pid {holder.pid}) has been at work since" in told
    with pytest.raises(LockHeld, match="`orch up vllm`"), exclusive(lock, "down"):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert at_work(lock) == ""
    with exclusive(lock, "down"):
        assert "`orch down`" in at_work(lock)


def test_looking_keeps_nobody_from_taking_it(tmp_path: Path) -> None:
    lock, over, looks = tmp_path / "lock", threading.Event(), [0]

    def look() -> None:
        while not over.is_set():
            at_work(lock)
            looks[0] += 1

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(2000):
            with exclusive(lock, "up"):
                pass
    finally:
        over.set()
        for looker in lookers:
            looker.join()
    assert looks[0] > 100
