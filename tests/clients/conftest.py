"""Real clients in their environment, a real browser among them, and gateways to ask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from browser import Browser
from client_programs import Clients
from docker_orch import environments
from orch_command import script

__all__ = ["environments"]


@pytest.fixture(scope="session")
def made(environments: Path) -> Any:
    """The clients' environment; whoever needs it first has it made."""
    return script("clients_environment").ensure(environments)


@pytest.fixture(scope="session")
def clients(made: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clients]:
    """The clients."""
    with closing(Clients(made.command, made.modules, tmp_path_factory.mktemp("clients"))) as started:
        yield started


@pytest.fixture(scope="session")
def browser(made: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser with a page of this machine."""
    with closing(Browser(made.modules, tmp_path_factory.mktemp("browser"))) as opened:
        yield opened
