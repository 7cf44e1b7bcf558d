"""`orch --help` is instant: what is heavy is imported by the verb that needs it."""

from __future__ import annotations

import re
import subprocess
import sys

HEAVY = {
    *("docker", "httpx", "huggingface_hub", "aiohttp", "pydantic", "rich", "numpy", "gguf", "jinja2", "xllamacpp"),
    *("uvloop", "orjson", "pynvml", "asyncio"),
}


def imported_by(*args: str) -> set[str]:
    """The top-level names of all that `python -m orchestrator ARGS` imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "orchestrator", *args], capture_output=True, text=True, check=True
    )
    lines = re.findall(r"^import time:\s*\d+ \|\s*\d+ \|\s*(\S+)$", done.stderr, re.MULTILINE)
    return {line.split(".")[0] for line in lines}


def test_help_imports_nothing_heavy() -> None:
    found = imported_by("--help")
    assert {"typer", "orchestrator"} <= found
    assert found & HEAVY == set()


def test_help_of_a_verb_imports_nothing_heavy() -> None:
    # typer reads the types of options with pydantic.
    assert imported_by("up", "--help") & HEAVY <= {"pydantic"}


def test_a_json_line_needs_no_rich() -> None:
    assert "rich" not in imported_by("profile", "ls", "--json")
