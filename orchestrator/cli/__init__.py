"""The `orch` command: parse, load, observe, plan, run, render, exit.

Verbs are in deploy (what serves), inspect (what is) and materials (weights, artifacts, engines, profiles). Everything
heavy is imported inside them: `orch --help` pays for typer only.
"""

from __future__ import annotations

import sys


def main() -> None:
    """The entry point; the exit codes are drawn in errors.py."""
    from orchestrator.cli import deploy, inspect, materials  # noqa: F401  each adds its verbs to the app
    from orchestrator.cli.options import app
    from orchestrator.errors import BUG

    try:
        app()
    except BrokenPipeError:
        # The reader (head, less) has left; there is nobody to tell.
        sys.stderr.close()
    except Exception:  # noqa: BLE001  what arrives here is a bug, and says so
        import traceback

        traceback.print_exc()
        sys.stderr.write("ERROR This is a bug in orch; the lines above say where.\n")
        sys.exit(BUG)
