"""An engine environment: a virtual environment that orch makes, pins and owns."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass


@dataclass(frozen=True)
class EnvironmentSpec:
    """What to install, exactly; the name carries a hash of all of it, so a changed pin is another environment.

    requirements are NAME==VERSION each; they are complete (`--no-deps`) unless `resolve` lets pip add what they ask
    for. `indexes` is tried, one after the other, only for the requirements in `indexed` and only when pip's own
    configuration does not have them. `metadata` are (name, version) of metadata-only distributions to add. `checks`
    are argv lists, run with the environment's bin/ first on PATH; all must exit 0 before the environment counts as
    ready. `size_gb` is the disk space that must be free before the install starts.
    """

    engine: str
    version: str
    requirements: tuple[str, ...]
    indexed: tuple[str, ...] = ()
    indexes: tuple[str, ...] = ()
    metadata: tuple[tuple[str, str], ...] = ()
    checks: tuple[tuple[str, ...], ...] = ()
    resolve: bool = False
    size_gb: float = 0

    @property
    def name(self) -> str:
        """`ENGINE-VERSION-HASH8`; the indexes do not count: they say where from, not what."""
        text = json.dumps([self.requirements, self.metadata, self.checks, self.resolve])
        return f"{self.engine}-{self.version}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class EnvironmentObserved:
    """One environment on disk: `problem` is empty when it is ready, else what is wrong with it."""

    name: str
    engine: str
    version: str
    size: int
    problem: str = ""
