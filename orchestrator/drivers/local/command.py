"""One foreground command: its output as lines, ended with all its children when it must not go on."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from orchestrator.core.launch import ran_out
from orchestrator.drivers import cgroups
from orchestrator.drivers.local import proc

# What a process needs of the caller's world; everything else (tokens, PYTHONPATH, ...) stays with the caller.
_ALLOWED = {
    "PATH", "HOME", "LANG", "LANGUAGE", "TMPDIR", "TZ", "USER", "LOGNAME", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
}  # fmt: skip
_ALLOWED_PREFIXES = ("LC_", "NVIDIA_")
_TICK_S = 0.2
_GRACE_S = 3.0


# What a program needs besides that asks the hub.
_OF_THE_HUB = ("HF_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")


def allowed_environ(asks_hub: bool = False) -> dict[str, str]:
    """The caller's environment, cut down to the allow-list."""
    prefixes = (*_ALLOWED_PREFIXES, *(_OF_THE_HUB if asks_hub else ()))
    return {key: value for key, value in os.environ.items() if key in _ALLOWED or key.startswith(prefixes)}


class Finished(NamedTuple):
    """The exit code (negative: the signal; None: ended after its time was up) and the last lines of the output;
    `out_of_memory` says, if the kernel ended the command for want of memory, what it did: "ran out of memory ..."."""

    code: int | None
    lines: tuple[str, ...]
    out_of_memory: str = ""


def run_command(
    argv: list[str],
    env: Mapping[str, str],
    *,
    tick: Callable[[], None],
    on_line: Callable[[str], None] | None = None,
    cwd: Path | None = None,
    timeout_s: float | None = None,
    keep_lines: int = 400,
) -> Finished:
    """Run argv in its own session with stdout and stderr together.

    `tick` is called at least every 0.2 s. Whatever it raises ends the command and its whole process group first.
    OSError when it cannot be started.
    """
    deadline = time.monotonic() + timeout_s if timeout_s is not None else None
    lines: deque[str] = deque(maxlen=keep_lines)
    kills = cgroups.Kills(os.getpid())
    with subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(env),
        cwd=cwd,
        start_new_session=True,
    ) as child:
        try:
            for line in _lines(child, tick, deadline):
                lines.append(line)
                if on_line is not None:
                    on_line(line)
            finished = _wait(child, tick, deadline)
        finally:
            # Also what it left behind; it is reaped after that, since until then its group's number is its own.
            proc.end(lambda: proc.group(child.pid), _GRACE_S)
            child.wait()
    if not finished:
        return Finished(None, tuple(lines))
    by_kernel = child.returncode == -signal.SIGKILL and kills.more()
    return Finished(child.returncode, tuple(lines), ran_out(kills.limit) if by_kernel else "")


def _lines(child: subprocess.Popen[bytes], tick: Callable[[], None], deadline: float | None) -> Iterator[str]:
    assert child.stdout is not None
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while deadline is None or time.monotonic() < deadline:
            tick()
            if not selector.select(_TICK_S):
                # A grandchild that inherited the pipe must not keep the command going.
                if _exited(child):
                    break
                continue
            block = os.read(child.stdout.fileno(), 1 << 16)
            if not block:
                break
            *whole, rest = (rest + block).replace(b"\r", b"\n").split(b"\n")
            for line in whole:
                yield line.decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")


def _wait(child: subprocess.Popen[bytes], tick: Callable[[], None], deadline: float | None) -> bool:
    while not _exited(child):
        if deadline is not None and time.monotonic() > deadline:
            return False
        tick()
        time.sleep(0.02)
    return True


def _exited(child: subprocess.Popen[bytes]) -> bool:
    """Whether it has ended, without reaping it."""
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
