"""The `orch` command: parse, load, observe, plan, run, render, exit.

Verbs are in deploy (what serves), look (what is), inspect (what files of weights hold), materials (weights, engines,
profiles), build, artifacts and artifacts_gc (the store), lock, images and images_offline (container images). Everything
heavy is imported inside them: `orch --help` pays for typer only.
"""

from __future__ import annotations

import errno
import os
import sys


def main() -> None:
    """The entry point; the exit codes are drawn in errors.py."""
    # Each adds its verbs to the app.
    from orchestrator.cli import (  # noqa: F401
        artifacts,
        artifacts_gc,
        build,
        deploy,
        images,
        images_offline,
        inspect,
        lock,
        look,
        materials,
    )
    from orchestrator.cli.options import app
    from orchestrator.errors import BUG, HostError

    try:
        app(prog_name="orch")
    except BrokenPipeError:
        # The reader (head, less) has left; there is nobody to tell.
        sys.stderr.close()
    except Exception as error:  # noqa: BLE001  what arrives here is a bug, and says so
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            # Drivers tell of full disks in their own words: this is where the output goes.
            sys.stderr.write("ERROR The output cannot be written: no space left.\n")
            os._exit(HostError.exit_code)
        import traceback

        traceback.print_exc()
        sys.stderr.write("ERROR This is a bug in orch; the lines above say where.\n")
        sys.exit(BUG)
