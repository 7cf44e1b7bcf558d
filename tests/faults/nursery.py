"""A process that forks an `orch` for every command that it reads, and imports what its children had to: a try costs a
fork, not the second that imports take, so that it can be killed two hundred times.

It reads JSON lines and answers each with one. {"start": WORDS, "out": FILE} answers the pid of the child, which
writes to FILE; {"wait": PID} answers its exit status.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from pathlib import Path


def run(words: list[str], out: str) -> int:
    """`orch WORDS` in this process; its exit status."""
    descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["orch", *words]
    try:
        importlib.import_module("orchestrator.cli").main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 (a child of a fork must not go on as its parent)
        traceback.print_exc()
        return 1
    return 0


def child(words: list[str], out: str) -> None:
    """Never returns. What was imported is written down beside the output, for those that come after."""
    code = run(words, out)
    sys.stdout.flush()
    sys.stderr.flush()
    found = [name for name, module in sys.modules.items() if getattr(module, "__spec__", None) is not None]
    Path(f"{out}.modules").write_text("\n".join(found))
    os._exit(code)


def learn(noted: Path) -> None:
    """Imports what a child has imported."""
    for name in noted.read_text().split() if noted.exists() else ():
        if name not in sys.modules:
            importlib.import_module(name)


def main() -> None:
    # The children's standard output is another one.
    answers, commands, out = os.fdopen(os.dup(1), "w"), os.fdopen(os.dup(0)), {}
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for line in commands:
        command = json.loads(line)
        if "wait" in command:
            answer = os.waitstatus_to_exitcode(os.waitpid(command["wait"], 0)[1])
            learn(Path(f"{out.pop(command['wait'])}.modules"))
        elif answer := os.fork():
            out[answer] = command["out"]
        else:
            child(command["start"], command["out"])
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    main()
