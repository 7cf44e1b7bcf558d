"""A process that forks a command for everyone who asks: `python -m MODULE` without the second that its imports take.

`nursery.py FD` reads requests from a socket (forks.py is its client). Each command is as good as one of its own
process, because the nursery has only imported what commands before had to, and has run nothing of it. It refuses to
fork where that is not true: when an import has started a thread, and when what it has imported has read a variable of
the environment that is another one for this command. (C libraries read theirs unseen: forks.EARLY names these, and a
nursery is started for their values.)
"""

from __future__ import annotations

import atexit
import fcntl
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

# Reads its settings (HF_ENDPOINT and others) when it is imported: each command imports it itself.
NEVER_KEPT = ("huggingface_hub",)
# They look through all variables, or for a home; what they keep of it is nothing that orch uses.
HARMLESS = ("tqdm.std", "sysconfig", "zoneinfo._tzpath")
FDS = 3
# Above all that is open here; a process of its own has nothing below it but its three.
HIGH = 500
# The interpreter's exit status when what it still has to write cannot be written.
UNFLUSHED = 120

_read: dict[str, str] = {}


class Watched(os._Environ):  # type: ignore[type-arg]
    """The environment, which notes what is read of it by modules in the making."""

    def __getitem__(self, key: str) -> str:
        frame = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") not in ("__main__", *HARMLESS):
                _read.setdefault(key, frame.f_globals["__name__"])
            if frame.f_globals.get("__name__") in HARMLESS:
                break
            frame = frame.f_back
        return super().__getitem__(key)


def learn(names: list[str]) -> None:
    """Import what a command has imported, in its order."""
    for name in names:
        if name not in sys.modules and name.split(".")[0] not in NEVER_KEPT:
            # What a package puts there itself cannot always be imported by its name.
            with suppress(ImportError):
                importlib.import_module(name)
    gc.freeze()


def trouble(environ: dict[str, str]) -> str:
    """Why a fork would not be as good as a process of its own, or nothing."""
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        return f"one of these starts a thread when it is imported: {sorted(sys.modules)}"
    told = [f"{key} ({name})" for key, name in _read.items() if environ.get(key) != os.environ.get(key)]
    return f"read by a module when it was imported, and another one now: {', '.join(told)}" if told else ""


def note(path: int, known: frozenset[str]) -> None:
    """Write down what a command has imported."""
    found = [name for name, module in list(sys.modules.items()) if getattr(module, "__spec__", None) is not None]
    os.write(path, "\n".join(name for name in found if name not in known and name != "__mp_main__").encode())


def become(request: dict[str, Any], fds: list[int]) -> None:
    """In the child: what `python -m MODULE ARGS` finds when it starts."""
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
    os.closerange(FDS, HIGH)
    os.chdir(request["cwd"])
    os.environ.__class__ = os._Environ
    # The interpreter itself sets it where no locale is given.
    coerced = {key: value for key, value in os.environ.items() if key == "LC_CTYPE"}
    os.environ.clear()
    os.environ.update(coerced | request["env"])
    sys.path[0] = request["cwd"]
    sys.argv = ["-m", *request["args"]]


def run(module: str) -> NoReturn:
    """`-m MODULE`, and what the interpreter does at its end, but for taking all modules apart (0.1 s)."""
    code: object = None
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except BaseException as error:  # noqa: BLE001  what is told here would be told by the interpreter
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
        traceback.print_exc()
    if isinstance(code, str):
        sys.stderr.write(f"{code}\n")
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    status = code if isinstance(code, int) else int(code is not None)
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        traceback.print_exc()
        status = UNFLUSHED
    with suppress(OSError, ValueError):
        sys.stderr.flush()
    if status == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(status & 0xFF)


def serve(control: socket.socket) -> str:
    """Answer requests until nobody is there (then: ""). In a child it returns the name of the module to run."""
    noted: dict[int, int] = {}
    while True:
        message, fds, _, _ = socket.recv_fds(control, 1 << 20, FDS)
        if not message:
            return ""
        request = json.loads(message)
        if "wait" in request:
            code = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
            with os.fdopen(noted.pop(request["wait"]), "rb") as names:
                names.seek(0)
                learn(names.read().decode().split())
            answer: dict[str, Any] = {"code": code}
        elif problem := trouble(request["env"]):
            answer = {"problem": problem}
        else:
            notes, known = os.memfd_create("imported"), frozenset(sys.modules)
            if (pid := os.fork()) == 0:
                atexit.register(note, fcntl.fcntl(notes, fcntl.F_DUPFD_CLOEXEC, HIGH), known)
                become(request, fds)
                control.detach()
                return str(request["module"])
            noted[pid], answer = notes, {"pid": pid}
        for fd in fds:
            os.close(fd)
        control.sendall(json.dumps(answer).encode())


def main() -> None:
    os.environ.__class__ = Watched
    sys.path[0] = ""
    if module := serve(socket.socket(fileno=int(sys.argv[1]))):
        run(module)


if __name__ == "__main__":
    main()
