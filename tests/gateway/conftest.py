"""A real gateway process, real engines to put behind it, and a plain client."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import peers_by_hand
import pytest
from gateway_process import Gateway, Stream
from upstream import Upstream


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """A directory with a short path: a unix socket's may have 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="gw"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory with a short path."""
    with short_directory() as path:
        yield path


@pytest.fixture(scope="module")
def running_gateway() -> Iterator[Gateway]:
    """One gateway for all tests of a module that leave no trace but in its counts."""
    with short_directory() as path:
        gateway = Gateway(path)
        try:
            gateway.start()
            yield gateway
        finally:
            gateway.close()


@pytest.fixture
def idle_gateway(home: Path) -> Iterator[Gateway]:
    """A gateway that is not started yet."""
    gateway = Gateway(home)
    yield gateway
    gateway.close()


@pytest.fixture
def gateway(idle_gateway: Gateway) -> Gateway:
    """A running gateway without routes."""
    idle_gateway.start()
    return idle_gateway


@pytest.fixture
def engine() -> Iterator[Callable[..., Upstream]]:
    """Makes engines."""
    made: list[Upstream] = []

    def make(name: str, port: int = 0) -> Upstream:
        made.append(Upstream(name, port))
        return made[-1]

    yield make
    for upstream in made:
        upstream.close()


@pytest.fixture
def stream(gateway: Gateway) -> Iterator[Callable[..., Stream]]:
    """Opens streams."""
    made: list[Stream] = []

    def make(headers: dict[str, str] | None = None, **body: object) -> Stream:
        made.append(Stream(gateway, headers, **body))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(autouse=True)
def clients_closed() -> Iterator[None]:
    """Those that a test has connected by hand."""
    yield
    while peers_by_hand.clients:
        peers_by_hand.clients.pop().close()
