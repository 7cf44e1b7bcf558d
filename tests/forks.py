"""`python -m MODULE` in a fork of a process that has its imports already (nursery.py), and what a Popen can of it."""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[1]
PROGRAM = Path(__file__).with_name("nursery.py")
# What the interpreter and C libraries read when they start, by the beginnings of their names.
EARLY = ("LANG", "LC_", "LD_", "MALLOC_", "MKL_", "NUMBA_", "OMP_", "OPENBLAS_", "PYTHON", "TZ")
# So many values of these at once; each has a process of 200 MB.
MOST = 3
PIPE = subprocess.PIPE


class Nursery:
    """The process that forks, for these values of EARLY variables."""

    def __init__(self, early: Mapping[str, str]) -> None:
        others = {key: value for key, value in os.environ.items() if not key.startswith((*EARLY, "ORCH_", "HF_"))}
        # A thread of a library's would be missing in a fork.
        environ = others | {"OPENBLAS_NUM_THREADS": "1", **early}
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            fd = theirs.fileno()
            self._process = subprocess.Popen(
                [sys.executable, str(PROGRAM), str(fd)],
                cwd=ROOT,
                env=environ,
                pass_fds=(fd,),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        self._lock = threading.Lock()

    def ask(self, request: Mapping[str, Any], fds: Sequence[int] = ()) -> dict[str, Any]:
        """One request, one answer; RuntimeError when it cannot be."""
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(request).encode()], fds)
            answer: dict[str, Any] = json.loads(self._socket.recv(1 << 20) or b'{"problem": "the nursery has ended"}')
        if "problem" in answer:
            raise RuntimeError(f"{request}: {answer['problem']}")
        return answer

    def close(self) -> None:
        """What it has forked goes on."""
        self._socket.close()
        self._process.wait(timeout=60)

    # One that had to make room ends with the last of its commands that anybody waits for.
    __del__ = close


_nurseries: dict[tuple[tuple[str, str], ...], Nursery] = {}
_lock = threading.Lock()


def _nursery(env: Mapping[str, str]) -> Nursery:
    early = tuple(sorted((key, value) for key, value in env.items() if key.startswith(EARLY)))
    with _lock:
        if early not in _nurseries and len(_nurseries) == MOST:
            _nurseries.pop(next(iter(_nurseries)))
        # The one that was used last comes last.
        nursery = _nurseries[early] = _nurseries.pop(early, None) or Nursery(dict(early))
        return nursery


@atexit.register
def _close() -> None:
    while _nurseries:
        _nurseries.popitem()[1].close()


class Forked:
    """A command that was started: what subprocess.Popen with text=True has, as far as tests need it."""

    def __init__(
        self,
        module: str,
        *args: str,
        env: Mapping[str, str],
        cwd: Path = ROOT,
        stdout: IO[Any] | int = PIPE,
        stderr: IO[Any] | int = PIPE,
    ) -> None:
        self.args = ["-m", module, *args]
        self.returncode: int | None = None
        self._nursery = _nursery(env)
        self._waiting = threading.Lock()
        theirs: list[int] = []
        with open(os.devnull, "rb") as nothing:  # noqa: PTH123
            self.stdout = self._out(stdout, theirs)
            self.stderr = self._out(stderr, theirs)
            try:
                request = {"module": module, "args": args, "env": dict(env), "cwd": str(cwd)}
                self.pid = int(self._nursery.ask(request, [nothing.fileno(), *theirs])["pid"])
            except BaseException:
                self._close()
                raise
            finally:
                for fd in theirs:
                    os.close(fd)
        self._pidfd = os.pidfd_open(self.pid)

    @staticmethod
    def _out(target: IO[Any] | int, theirs: list[int]) -> IO[str] | None:
        if target != PIPE:
            theirs.append(os.dup(target if isinstance(target, int) else target.fileno()))
            return None
        ours, other = os.pipe()
        theirs.append(other)
        return os.fdopen(ours)

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()
        self.wait()

    def _close(self) -> None:
        for pipe in (self.stdout, self.stderr):
            if pipe is not None:
                pipe.close()

    def __del__(self) -> None:
        # Never waited for: what is left of it goes with the nursery.
        if getattr(self, "_pidfd", None) is not None:
            os.close(self._pidfd)

    def poll(self) -> int | None:
        """The exit status (the negative signal of a killed one); None while it runs."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, when it has ended; subprocess.TimeoutExpired if it does not."""
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def _ended(self, timeout: float | None) -> int | None:
        with self._waiting:
            if self.returncode is None:
                poll = select.poll()
                poll.register(self._pidfd, select.POLLIN)
                if poll.poll(None if timeout is None else timeout * 1000):
                    self.returncode = int(self._nursery.ask({"wait": self.pid})["code"])
            return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """All that it still says, once it has ended and nobody holds its outputs any more."""
        said = {"stdout": "", "stderr": ""}

        def read(name: str, pipe: IO[str]) -> None:
            with pipe:
                said[name] = pipe.read()

        pipes = {"stdout": self.stdout, "stderr": self.stderr}
        threads = [
            threading.Thread(target=read, args=(name, pipe), daemon=True)
            for name, pipe in pipes.items()
            if pipe is not None and not pipe.closed
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout)
            if thread.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(timeout)
        return said["stdout"], said["stderr"]

    def send_signal(self, number: int) -> None:
        """Does nothing once it has been waited for."""
        if self.poll() is None:
            signal.pidfd_send_signal(self._pidfd, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
