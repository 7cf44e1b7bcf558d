"""Every test twice: with the stand-in (level llamacpp) and with the real binary (level ollama).

What is expected was recorded from a real server; where a test names a file, it is the recorded exchange.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ollama_bench import Command, Files, Server, fill, make_files

KINDS = (
    pytest.param("stand-in", marks=pytest.mark.llamacpp),
    pytest.param("real", marks=pytest.mark.ollama),
)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return make_files(tmp_path_factory.mktemp("gguf"))


@pytest.fixture(scope="session", params=KINDS)
def ollama(request: pytest.FixtureRequest) -> Command:
    return Command.of(request.param)


@pytest.fixture(scope="session")
def server(ollama: Command, files: Files, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that need no environment of their own, with tiny, tiny-a and tiny-b."""
    with ollama.serve(tmp_path_factory.mktemp("ollama") / "home") as started:
        fill(started, files)
        yield started


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A home for a server of a test's own."""
    return tmp_path / "home"
