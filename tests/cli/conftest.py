"""`orch` over a data directory that starts empty, and a hub on loopback. No engine runs at this level."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from orch_command import ASSETS, Orch, free_port, script

hub_server = script("hub_server")


@pytest.fixture
def orch(tmp_path: Path) -> Iterator[Orch]:
    """`orch` with an empty data directory and a hub that nobody runs; nothing is left running by it."""
    command = Orch(tmp_path / "home")
    command.env["HF_ENDPOINT"] = f"http://127.0.0.1:{free_port()}"
    yield command
    assert command.processes() == []


@pytest.fixture
def hub(orch: Orch) -> Iterator[Any]:
    """A hub that serves the tiny weights as test/tiny, for `orch` to pull from."""
    with hub_server.HubServer({"test/tiny": ASSETS / "tiny-qwen3"}) as server:
        orch.env["HF_ENDPOINT"] = server.url
        yield server


@pytest.fixture
def hub_profile(orch: Orch) -> str:
    """The path of a profile whose weights are the hub's, at a branch."""
    text = orch.profile.read_text()
    path = orch.home / "hub.toml"
    path.write_text(text.replace(f'path = "{ASSETS / "tiny-qwen3"}"', 'repo = "test/tiny"\nrevision = "main"'))
    return str(path)
