"""The levels: what each needs, which of them this machine can run, and which must (`--require`).

A level that cannot run here is skipped with its reason and counted; one that is required and cannot run ends the run.
It also puts tests/ on the path, so that every level can import `fakes` and `orch_command`.
"""

from __future__ import annotations

import gc
import os
import random
import shutil
import subprocess
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import pytest

GIB = 2**30
# Folders whose tests run real parts (sockets, processes, environments); their tests belong to the level `parts`.
PARTS = ("cli", "contract", "faults", "gateway", "hub", "local")
# What is made beside the tests in CI (images, environments, a browser): tests that need it come last.
MADE_BESIDE = ("docker", "vllm", "clients", "browser")
# The files that take longest, the longest first: no process is to be left alone with one at the end.
SLOWEST = (
    *("e2e/test_vllm.py", "e2e/test_vllm_faults.py", "e2e/test_kills.py", "docker/test_container_faults.py"),
    *(
        "clients/test_ollama_clients.py",
        "clients/test_openai_clients.py",
        "e2e/test_gateway_upgrades.py",
        "e2e/test_main_job.py",
    ),
    *("docker/test_images_offline.py", "e2e/test_faults.py", "e2e/test_execs.py", "docker/test_tools.py"),
    *("local/test_environments.py", "faults/test_two_hundred_kills.py", "faults/test_power_cut.py"),
    *("run/test_accidents.py", "artifacts/test_build_gguf.py", "plan/test_properties.py", "plan/test_memory.py"),
)

# Files that take minutes: of their tests each run takes one in so many (ORCH_TEST_SEED), scripts/test long all, and so
# does who names the file.
SHARES = {
    **dict.fromkeys(
        (
            *("artifacts/test_gguf_nvfp4_server.py", "clients/test_migrations.py", "clients/test_ollama_clients.py"),
            *("clients/test_openai_clients.py", "contract/test_target.py", "docker/test_container_faults.py"),
            *("docker/test_images_offline.py", "docker/test_tools.py", "e2e/test_api_keys.py"),
            *("e2e/test_circumstances.py", "e2e/test_execs.py", "e2e/test_faults.py", "e2e/test_gateway_upgrades.py"),
            *("e2e/test_handover.py", "e2e/test_kills.py", "e2e/test_main_job.py", "e2e/test_meaning_served.py"),
            *("e2e/test_ollama_stand_in.py", "e2e/test_upgrades.py", "local/test_environments.py"),
            *("ollama_api/test_runners.py", "ollama_api/test_serve.py"),
        ),
        4,
    ),
    **dict.fromkeys(
        (
            *("docker/test_compose.py", "docker/test_container_memory.py", "docker/test_images_gc.py"),
            *("docker/test_images_registry.py", "docker/test_logs.py", "e2e/test_check.py"),
            *("e2e/test_names_on_every_path.py", "e2e/test_out_of_memory.py", "e2e/test_plan_only.py"),
            "clients/test_anthropic_clients.py",
        ),
        3,
    ),
}


def _llamacpp() -> str:
    flags = Path("/proc/cpuinfo").read_text().split()
    return "" if "avx2" in flags else "the xllamacpp wheel needs a CPU with AVX2"


def _vllm() -> str:
    return _room("vLLM's environment", 8)


def _clients() -> str:
    return _room("the clients' environment", 2)


def _browser() -> str:
    there = "ORCH_BROWSER_MADE" in os.environ or shutil.which("chromium")
    return "" if there else "there is no chromium on PATH"


def _room(what: str, gib: int) -> str:
    if kept := os.environ.get("ORCH_TEST_ENVIRONMENTS"):
        Path(kept).mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(kept or "/tmp").free
    return "" if free > gib * GIB else f"{what} needs {gib} GiB of disk, {free / GIB:.1f} are free"


def _docker() -> str:
    from orchestrator.drivers.docker.daemon import Daemon
    from orchestrator.drivers.docker.endpoints import SOCKET, Endpoint

    with warnings.catch_warnings():
        # Where no daemon answers, Docker's own client leaves its socket to the collector, which would blame some test.
        warnings.simplefilter("ignore", ResourceWarning)
        problem = Daemon(Endpoint(os.environ.get("DOCKER_HOST", SOCKET))).facts().problem
        gc.collect()
    return problem


def _ollama() -> str:
    return "" if shutil.which("ollama") else "there is no ollama binary on PATH"


def _gpu() -> str:
    from orchestrator.drivers.nvml import read_gpus

    gpus, problem = read_gpus()
    return "" if gpus else problem or "there is no NVIDIA GPU"


def _groups() -> str:
    from control_groups import cannot

    return cannot()


def _nothing() -> str:
    return ""


LEVELS: dict[str, Callable[[], str]] = {
    "parts": _nothing,
    "build": _nothing,
    "llamacpp": _llamacpp,
    "vllm": _vllm,
    "clients": _clients,
    "browser": _browser,
    "docker": _docker,
    "groups": _groups,
    "ollama": _ollama,
    "gpu": _gpu,
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require", default="", help=f"levels that must run, comma-separated: {', '.join(LEVELS)}")
    parser.addoption("--long", action="store_true", help="run what other runs leave out or sample, and nothing else")


def pytest_configure(config: pytest.Config) -> None:
    required = [name for name in config.getoption("--require").split(",") if name]
    for name in required:
        if name not in LEVELS:
            raise pytest.UsageError(f"--require: there is no level {name}; levels: {', '.join(LEVELS)}")
        if reason := _reason(name):
            raise pytest.UsageError(f"--require={name}: {reason}")


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    for item in items:
        if item.path.parent.name in PARTS:
            item.add_marker("parts")
    # What -k and -m leave takes turns, so that a case that is asked for by its name runs.
    yield
    _leave_out(config, items)
    late = {item.path for item in items if _needs(item) & {*MADE_BESIDE}}

    def place(item: pytest.Item) -> tuple[bool, int]:
        name = _file_of(item)
        return item.path in late, [*SLOWEST, name].index(name)

    items.sort(key=place)
    for item in items:
        for name, reason in _cannot(item).items():
            item.add_marker(pytest.mark.skip(reason=f"level {name}: {reason}"))


def _needs(item: pytest.Item) -> set[str]:
    """The levels that a test belongs to."""
    return {mark.name for mark in item.iter_markers()} & {*LEVELS}


@cache
def _reason(level: str) -> str:
    return LEVELS[level]()


def _cannot(item: pytest.Item) -> dict[str, str]:
    """Why this machine cannot run a test, by level; empty when it can."""
    return {name: reason for name in sorted(_needs(item)) if (reason := _reason(name))}


def _leave_out(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps the tests of this run, and counts those that `scripts/test long` runs, or runs more of."""
    only = {item for item in items if item.get_closest_marker("long")}
    more = {item for item in items if _is_more_in_long(item)}
    named = {Path(argument.partition("::")[0]).absolute() for argument in config.args}
    others = [item for item in items if item.path not in named]
    their_turn = only | _not_their_turn(items) | _not_this_share(others)
    left = set(items) - only - more if config.getoption("--long") else their_turn
    config.hook.pytest_deselected(items=[item for item in items if item in left])
    items[:] = [item for item in items if item not in left]
    config.stash[COUNTED] = Counter(only=len(only))


def _not_their_turn(items: list[pytest.Item]) -> set[pytest.Item]:
    """Of each test that is marked `rotated` all cases but one of those that this machine can run; in a file the same
    one, because what its tests share takes long to start."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("rotated"):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    left: set[pytest.Item] = set()
    for test, all_of_it in cases.items():
        able = [item for item in all_of_it if not _cannot(item) and not item.get_closest_marker("long")]
        possible = able or all_of_it
        file = test.partition("::")[0]
        left |= set(all_of_it) - {random.Random(f"{sample_seed()} {file}").choice(possible)}
    return left


def _not_this_share(items: list[pytest.Item]) -> set[pytest.Item]:
    """Of the tests of each file of SHARES all but this run's share."""
    files: dict[str, dict[str, list[pytest.Item]]] = {}
    for item in items:
        if _file_of(item) in SHARES:
            files.setdefault(_file_of(item), {}).setdefault(item.nodeid.partition("[")[0], []).append(item)
    left: set[pytest.Item] = set()
    for file, tests in files.items():
        names = random.Random(f"{sample_seed()} {file}").sample(sorted(tests), len(tests))
        left |= {item for n, name in enumerate(names) if n % SHARES[file] for item in tests[name]}
    return left


def _file_of(item: pytest.Item) -> str:
    return f"{item.path.parent.name}/{item.path.name}"


def pytest_collection_finish(session: pytest.Session) -> None:
    session.config.stash[COUNTED]["more"] = sum(_is_more_in_long(item) for item in session.items)


def _is_more_in_long(item: pytest.Item) -> bool:
    marked = any(item.get_closest_marker(name) is not None for name in ("sampled", "rotated"))
    return marked or _file_of(item) in SHARES


COUNTED = pytest.StashKey[Counter[str]]()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """With pytest-xdist it is its processes that collect; each has the same."""
    node.config.stash[COUNTED] = Counter(getattr(node, "workeroutput", {}).get("counted", {}))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["counted"] = dict(session.config.stash.get(COUNTED, Counter()))


@pytest.fixture(scope="session")
def thorough(request: pytest.FixtureRequest) -> bool:
    """Whether a test that is marked `sampled` is to try all that it can, as `scripts/test long` has it."""
    return bool(request.config.getoption("--long"))


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """What a sample is taken by: another one with each commit, the same in each run of it (ORCH_TEST_SEED)."""
    return random.Random(f"{sample_seed()} {request.node.name}")


def sample_seed() -> str:
    """ORCH_TEST_SEED, else the commit, else the day."""
    said = os.environ.get("ORCH_TEST_SEED")
    commit = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return said or subprocess.run(commit, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return date.today().isoformat()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
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
    if (counted := config.stash.get(COUNTED, Counter())) and not config.getoption("--long"):
        sampled = f"{counted['more']} sampled (ORCH_TEST_SEED={sample_seed()})"
        terminalreporter.line(f"{'long':<9} {counted['only']} left to scripts/test long, {sampled}")
