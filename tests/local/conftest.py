from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.core.progress import silent
from orchestrator.drivers.local.processes import LocalTarget
from orchestrator.errors import HostError


def no_environment(name: str) -> Path:
    raise HostError(f"Environment {name} is not ready: it is not installed.")


@pytest.fixture
def target(tmp_path: Path) -> Iterator[LocalTarget]:
    made = LocalTarget(tmp_path / "processes", tmp_path / "logs", no_environment, sys.executable, log_limit=20_000)
    yield made
    for instance in made.observe():
        made.stop(instance.name, silent)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "processes"
