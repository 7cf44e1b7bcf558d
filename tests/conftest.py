"""The levels: what each needs, which of them this machine can run, and which must (`--require`).

A level that cannot run here is skipped with its reason and counted; one that is required and cannot run ends the run.
It also puts tests/ on the path, so that every level can import `fakes` and `orch_command`.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

GIB = 2**30
# Folders whose tests run real parts (sockets, processes, environments); their tests belong to the level `parts`.
PARTS = ("cli", "contract", "faults", "gateway", "hub", "local")
# Folders whose tests take long, the longest first.
LONG = ("e2e", "docker")


def _llamacpp() -> str:
    flags = Path("/proc/cpuinfo").read_text().split()
    return "" if "avx2" in flags else "the xllamacpp wheel needs a CPU with AVX2"


def _vllm() -> str:
    if kept := os.environ.get("ORCH_TEST_ENVIRONMENTS"):
        Path(kept).mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(kept or "/tmp").free
    return "" if free > 8 * GIB else f"vLLM's environment needs 8 GiB of disk, {free / GIB:.1f} are free"


def _docker() -> str:
    from orchestrator.drivers.docker.daemon import SOCKET, Daemon

    return Daemon(os.environ.get("DOCKER_HOST", SOCKET)).facts().problem


def _ollama() -> str:
    return "" if shutil.which("ollama") else "there is no ollama binary on PATH"


def _gpu() -> str:
    from orchestrator.drivers.nvml import read_gpus

    gpus, problem = read_gpus()
    return "" if gpus else problem or "there is no NVIDIA GPU"


def _nothing() -> str:
    return ""


LEVELS: dict[str, Callable[[], str]] = {
    "parts": _nothing,
    "build": _nothing,
    "llamacpp": _llamacpp,
    "vllm": _vllm,
    "docker": _docker,
    "ollama": _ollama,
    "gpu": _gpu,
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require", default="", help=f"levels that must run, comma-separated: {', '.join(LEVELS)}")


def pytest_configure(config: pytest.Config) -> None:
    required = [name for name in config.getoption("--require").split(",") if name]
    for name in required:
        if name not in LEVELS:
            raise pytest.UsageError(f"--require: there is no level {name}; levels: {', '.join(LEVELS)}")
        if reason := LEVELS[name]():
            raise pytest.UsageError(f"--require={name}: {reason}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The long ones first, so that with several processes none is left alone with them at the end.
    items.sort(key=lambda item: [*LONG, item.path.parent.name].index(item.path.parent.name))
    reasons = {name: needs() for name, needs in LEVELS.items()}
    for item in items:
        if item.path.parent.name in PARTS:
            item.add_marker("parts")
        for name, reason in reasons.items():
            if reason and item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=f"level {name}: {reason}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many tests of each level ran, and how many did not."""
    counts: Counter[tuple[str, str]] = Counter()
    # A report's keywords hold its markers, also one that came from another process.
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            for name in LEVELS:
                counts[name, outcome] += name in getattr(report, "keywords", ())
    terminalreporter.section("levels")
    for name in LEVELS:
        told = [f"{counts[name, outcome]} {outcome}" for outcome in ("passed", "failed", "error", "skipped")]
        terminalreporter.line(f"{name:<9} " + ", ".join(part for part in told if not part.startswith("0 ")))
