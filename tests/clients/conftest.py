"""Real clients in their environment, and gateways to ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from client_programs import Clients
from docker_orch import environments
from orch_command import script

__all__ = ["environments"]


@pytest.fixture(scope="session")
def clients(environments: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clients]:
    """The clients; whoever needs them first has their environment made."""
    made = script("clients_environment").ensure(environments)
    started = Clients(made.command, made.modules, tmp_path_factory.mktemp("clients"))
    yield started
    started.close()
