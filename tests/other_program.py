"""Another installation of orch, of another version: the upgrades of the one that is tested."""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

from orch_command import Orch

from orchestrator import resources
from orchestrator.core.routes import PROTOCOL

ROOT = Path(__file__).parents[1]
# The last commit whose gateway cannot hand over.
BEFORE_HANDOVER = "16b9139"
# The last that keeps API keys as they are.
BEFORE_DIGESTS = "52f9fa6"
# The last that gives engines the directory of weights itself, and knows nothing of what a model means.
BEFORE_MEANING = "22a4997"


def with_protocol(place: Path, protocol: int, version: str) -> Path:
    """This program, but for the number of the gateway's protocol and its own version; the interpreter that runs it."""
    python, package = _installed(place)
    shutil.copytree(ROOT / "orchestrator", package, ignore=shutil.ignore_patterns("__pycache__"))
    _set(package / "core" / "routes.py", rf"^PROTOCOL = {PROTOCOL}$", f"PROTOCOL = {protocol}")
    _set(package / "__init__.py", r"^__version__ = .*$", f'__version__ = "{version}"')
    for name in ("templates", "profiles"):
        (package / "_data").mkdir(exist_ok=True)
        (package / "_data" / name).symlink_to(resources.root() / name)
    return python


def of_commit(place: Path, commit: str) -> Path:
    """The program of an earlier commit; the interpreter that runs it."""
    python, package = _installed(place)
    archive = subprocess.run(
        ["git", "archive", commit, "orchestrator", "templates", "profiles"], cwd=ROOT, capture_output=True, check=True
    ).stdout
    subprocess.run(["tar", "-x", "-C", str(package.parent)], input=archive, check=True)
    return python


def another(orch: Orch, python: Path) -> Orch:
    """The same data directory, in the hands of another program."""
    other = type(orch).__new__(type(orch))
    other.__dict__ |= {**orch.__dict__, "python": str(python)}
    return other


def _installed(place: Path) -> tuple[Path, Path]:
    """An environment with what orch needs, which is this one's, and where its package is to lie."""
    venv.create(place, with_pip=False, symlinks=True)
    packages = place / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    # What its .pth files add, an editable install of this program, is not followed from here.
    others = [path for path in (*site.getsitepackages(), *sys.path) if path.endswith("site-packages")]
    (packages / "needed.pth").write_text("".join(f"{path}\n" for path in dict.fromkeys(others)))
    return place / "bin" / "python", packages / "orchestrator"


def _set(file: Path, pattern: str, line: str) -> None:
    text, count = re.subn(pattern, line, file.read_text(), flags=re.MULTILINE)
    assert count == 1, f"{os.fspath(file)}: {pattern}"
    file.write_text(text)
