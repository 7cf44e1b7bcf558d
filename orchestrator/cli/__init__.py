"""The `orch` command.

A file of verbs each: what serves in deploy and status, who may ask in keys, what it is started with in render; what it
is made of in pull, build, artifacts, lock, engines, images, profiles and inspect; what they print for programs in
schema; how fast it is in bench, and which engine that speaks for in advise. What they do lies in app/ and bench/; they
parse, ask and print.
Everything heavy is imported inside them: `orch --help` pays for typer only, and a verb for no other.
"""

from __future__ import annotations

import errno
import os
import sys
from importlib import import_module

STDERR = 2
# The first words of command lines, by the file that adds them to the app; in the order of --help.
VERBS = {
    "advise": ("advise",),
    "artifacts": ("artifacts",),
    "bench_changes": ("bench",),
    "bench_quality": ("bench",),
    "build": ("build",),
    "check": ("check",),
    "deploy": ("up", "migrate", "rollback", "down", "lora"),
    "engines": ("engines",),
    "fit": ("fit",),
    "images": ("images",),
    "inspect": ("inspect",),
    "keys": ("keys",),
    "lock": ("lock",),
    "profiles": ("profile",),
    "pull": ("pull",),
    "render": ("render",),
    "schema": ("schema",),
    "status": ("status", "logs"),
}


def main() -> None:
    """The entry point; the exit codes are drawn in errors.py."""
    _open_what_is_closed()
    try:
        _main()
    except KeyboardInterrupt:
        # Before a verb has begun to watch for it.
        from orchestrator.errors import Interrupted

        sys.exit(Interrupted.exit_code)


def _open_what_is_closed() -> None:
    """Where a standard stream is closed (`>&-`), the next file that is opened would get its place."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode))


def _main() -> None:
    for file in _files_of(*sys.argv[1:2]):
        import_module(f"orchestrator.cli.{file}")
    from orchestrator.cli.options import command
    from orchestrator.errors import BUG, OK, HostError, Interrupted

    try:
        command()(prog_name="orch")
    except Exception as error:  # noqa: BLE001  what nobody knows is a bug, and says so
        if (interrupts := _reader_has_left(error)) is not None:
            # There is nobody to tell; nor may Python try at its end.
            os._exit(Interrupted.exit_code if interrupts else OK)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            # Drivers tell of full disks in their own words: this is where the output goes.
            sys.stderr.write("ERROR The output cannot be written: no space left.\n")
            os._exit(HostError.exit_code)
        import traceback

        traceback.print_exc()
        sys.stderr.write("ERROR This is a bug in orch; the lines above say where.\n")
        sys.exit(BUG)


def _files_of(word: str = "") -> list[str]:
    """Where a verb is; for what is none (an option, a wrong word) all of them."""
    return [file for file, verbs in VERBS.items() if word in verbs] or list(VERBS)


def _reader_has_left(error: BaseException) -> bool | None:
    """Whether the output's reader has left, and whether that is meant like Ctrl-C: a pipe's reader (head, less) has
    enough, a closed terminal (a connection that dropped) asks for no more. None: it is another error."""
    from orchestrator.cli.screen import NobodyReadsError

    if isinstance(error, NobodyReadsError):
        return error.interrupts
    if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.EIO) and error.filename is None:
        # typer's own words: its help, its errors.
        return error.errno == errno.EIO
    return None
