"""A data directory per test, and the check that nothing is left running after it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from orch_command import Orch


@pytest.fixture
def orch(tmp_path: Path) -> Iterator[Orch]:
    """`orch` with an empty data directory; everything that it started is stopped by it afterwards."""
    command = Orch(tmp_path / "home")
    yield command
    command.run("down", "--all", timeout=120)
    assert command.processes() == []


@pytest.fixture(scope="session")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engine environments that the tests of this run share (ORCH_TEST_ENVIRONMENTS keeps them between runs)."""
    kept = os.environ.get("ORCH_TEST_ENVIRONMENTS")
    path = Path(kept) if kept else tmp_path_factory.mktemp("environments")
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture
def orch_vllm(orch: Orch, environments: Path) -> Orch:
    """`orch` whose vLLM environment is the shared one; the first test that needs it has orch install it."""
    (orch.home / "environments").symlink_to(environments)
    orch.run("engines", "install", "vllm", timeout=900)
    return orch
