"""The gateway's image: the installed orch and what it needs, copied onto a base image that has the same Python.

Nothing is downloaded: what is tested here is what runs there. The image's name carries a hash of all that is in it.
Its last line runs while it is built: a base that has another Python, or another C library, makes no image.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import orchestrator
from orchestrator.errors import HostError

# What the gateway imports besides the standard library; what these need themselves is found out.
NEEDED = ("aiohttp", "uvloop", "orjson", "msgspec", "prometheus-client")
# The rooms that the gateway is made of: core values, errors, small files.
ROOMS = ("__init__.py", "errors.py", "core", "gateway", "drivers/__init__.py", "drivers/files.py")
PLACE = "opt/orch"
NAME = "orch-gateway"
_OTHER_PYTHON = "it has Python %s, and the packages of this orch are made for %s"


def reference(base: str) -> str:
    """NAME:VERSION-HASH of the image on that base."""
    digest = hashlib.sha256(base.encode())
    for name, data in _files():
        digest.update(f"{name} {len(data)}\n".encode())
        digest.update(data)
    return f"{NAME}:{orchestrator.__version__}-{digest.hexdigest()[:12]}"


def context(base: str) -> io.BytesIO:
    """The build context, a tar: a Dockerfile and the files. Always the same bytes for the same orch."""
    lines = (
        f"FROM {base}",
        f"COPY {PLACE} /{PLACE}",
        f"ENV PYTHONPATH=/{PLACE} PYTHONDONTWRITEBYTECODE=1",
        "ENTRYPOINT []",
        f"RUN {json.dumps(['python3', '-c', _check()])}",
    )
    dockerfile = "\n".join((*lines, ""))
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in [("Dockerfile", dockerfile.encode()), *((f"{PLACE}/{n}", d) for n, d in _files())]:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            tar.addfile(entry, io.BytesIO(data))
    out.seek(0)
    return out


def python() -> str:
    """The Python that the base must have, as MAJOR.MINOR: compiled packages are made for one."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def unfit(base_python: str) -> str:
    """Why a base that says which Python it has ("": it does not say) cannot be the gateway's; empty when it can."""
    if base_python in ("", python()):
        return ""
    return _OTHER_PYTHON % (base_python, python())


def _check() -> str:
    """A program that ends with 1, and says why, where the gateway could not run."""
    return (
        f"import sys; has = '%d.%d' % sys.version_info[:2]; "
        f"has == '{python()}' or sys.exit('{_OTHER_PYTHON}' % (has, '{python()}')); "
        "import orchestrator.gateway.__main__"
    )


@cache
def _files() -> tuple[tuple[str, bytes], ...]:
    found = dict(_own())
    for name in _distributions():
        for path in metadata.files(name) or ():
            place = str(path)
            if not place.startswith("..") and "__pycache__" not in place and not place.endswith(".pth"):
                found[place] = Path(str(path.locate())).read_bytes()
    return tuple(sorted(found.items()))


def _own() -> Iterator[tuple[str, bytes]]:
    """orch's own part; from where it is imported, because an editable install lists no files."""
    root = Path(orchestrator.__file__).parent
    for room in ROOMS:
        place = root / room
        for path in sorted(place.rglob("*.py")) if place.is_dir() else (place,):
            yield f"orchestrator/{path.relative_to(root)}", path.read_bytes()


def _distributions() -> tuple[str, ...]:
    from packaging.requirements import Requirement

    found: list[str] = []
    waiting = list(NEEDED)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError as error:
            raise HostError(f"The package {name} is not installed.", hint="Reinstall orch.") from error
        found.append(name)
        wanted = (Requirement(text) for text in requires)
        waiting += [one.name for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    return tuple(found)
