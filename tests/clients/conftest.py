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
from served import Served, serving

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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A module says in ENGINES which its clients ask."""
    if "served" in metafunc.fixturenames and hasattr(metafunc.module, "ENGINES"):
        metafunc.parametrize("served", metafunc.module.ENGINES, indirect=True, scope="module")


@pytest.fixture(scope="module")
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, environments: Path
) -> Iterator[Served]:
    """An engine with its models, behind a gateway."""
    with serving(request.param, tmp_path_factory.mktemp("served"), environments) as started:
        yield started


@pytest.fixture
def capable(served: Served) -> Served:
    """An engine with the model that thinks and calls tools."""
    if not served.chain:
        pytest.skip("its model has neither tools nor thoughts")
    return served
