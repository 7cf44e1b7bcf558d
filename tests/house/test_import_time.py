"""`orch --help` is instant: what is heavy is imported by the verb that needs it."""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cli import VERBS

ROOT = Path(__file__).parents[2]
HEAVY = {
    *("docker", "httpx", "huggingface_hub", "aiohttp", "pydantic", "rich", "numpy", "gguf", "jinja2", "xllamacpp"),
    *("uvloop", "orjson", "msgspec", "pynvml", "asyncio", "prometheus_client"),
}
DRIFT = 9
TINY = {
    "name": "tiny",
    "public_names": ["tiny"],
    "weights": {"path": str(ROOT / "tests" / "assets" / "tiny-qwen3")},
    "serving": {"context": 512},
}
MANIFEST = {
    "key": "weights-1",
    "recipe": "weights",
    "source": "dir:1",
    "builder": {},
    "files": [],
    "created": "2026-01-01",
}


def imported_by(*args: str, home: Path | None = None) -> set[str]:
    """The top-level names of all that `python -m orchestrator ARGS` imports."""
    env = {**os.environ, "ORCH_TARGET": "local"} | ({"ORCH_HOME": str(home)} if home is not None else {})
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "orchestrator", *args], capture_output=True, text=True, env=env
    )
    assert done.returncode in (0, DRIFT), done.stderr
    lines = re.findall(r"^import time:\s*\d+ \|\s*\d+ \|\s*(\S+)$", done.stderr, re.MULTILINE)
    return {line.split(".")[0] for line in lines}


def test_help_imports_nothing_heavy() -> None:
    found = imported_by("--help")
    assert {"typer", "orchestrator"} <= found
    assert found & HEAVY == set()


def test_help_of_a_verb_imports_nothing_heavy() -> None:
    assert imported_by("up", "--help") & HEAVY == set()


def test_a_json_line_needs_no_rich() -> None:
    assert "rich" not in imported_by("profile", "ls", "--json")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A data directory with what is looked at: a profile that is to be served, an adapter, an entry of the store."""
    fields = ("name", "digest", "origin", "key", "path", "gguf_key", "gguf")
    desired = {
        "version": 2,
        "spec": {"profile": TINY, "engine": "llamacpp", "target": "local"},
        "adapters": [{"rank": 8, **dict.fromkeys(fields, "one")}],
    }
    for path, document in (("records/desired/tiny.json", desired), ("store/weights-1/manifest.json", MANIFEST)):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(json.dumps(document))
    return tmp_path


@pytest.mark.parametrize("verb", ["status", "lora ls", "artifacts ls", "profile ls"])
def test_a_look_imports_nothing_heavy(verb: str, home: Path) -> None:
    """Above all not pydantic, whose import costs as much as the rest: typer is spared it (cli/options.py), and what
    orch wrote or ships itself is read without it (core/part.py). Nor NVML's binding, where the library is not."""
    found = imported_by(*verb.split(), home=home)
    assert "orchestrator" in found
    assert found & HEAVY <= ({"pynvml"} if verb == "status" and _has_nvml() else set())


def _has_nvml() -> bool:
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


@pytest.mark.slow
def test_a_verb_is_where_the_command_line_is_looked_up() -> None:
    """Only the file that a verb is in is imported for it (cli/__init__.py)."""
    for file, verbs in VERBS.items():
        module = f"orchestrator.cli.{file}"
        code = f"import {module}; from orchestrator.cli.options import app; from typer.main import get_command; "
        code += "print(*get_command(app).commands)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert set(done.stdout.split()) == set(verbs)
