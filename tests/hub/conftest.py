"""A hub on loopback and the driver that asks it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hub_repos import ASSETS, TINY, UNTIED, hub_server

from orchestrator.drivers.hub import Hub


@pytest.fixture
def server() -> Iterator[Any]:
    """A hub with the tiny and the sharded, untied weights."""
    repos = {TINY.repo: ASSETS / "tiny-qwen3", UNTIED.repo: ASSETS / "untied-qwen3"}
    with hub_server.HubServer(repos) as running:
        yield running


@pytest.fixture
def hub(server: Any) -> Hub:
    """A hub driver that tries again at once, three times."""
    return Hub(server.url, pauses=(0.01, 0.01, 0.01))
