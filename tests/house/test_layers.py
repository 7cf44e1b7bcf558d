"""Who may import whom, who may ask the environment, and which names are not used. DESIGN.md says why."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator

import pytest
from source import PACKAGE, ROOT, Module, imports, modules

from orchestrator.engines import ENGINES

# What a room may import of the product; a room may always import itself. The longest prefix decides.
ARROWS: dict[str, set[str]] = {
    "": set(),
    "__main__": {"cli"},
    # cli, and what comes beside it, over app; never back.
    "cli": {"app", "bench", "core", "settings", "errors", "__version__"},
    "bench": {"app", "core", "resources", "errors"},
    "app": {
        *(
            "run",
            "observe",
            "perform",
            "probes",
            "interview",
            "engines",
            "planning",
            "artifacts",
            "drivers",
            "core",
            "settings",
        ),
        *("resources", "gateway.limits", "gateway.origins", "gateway.sockets", "errors", "__version__"),
    },
    "run": {"perform", "core", "drivers.base", "errors"},
    "observe": {"core", "engines", "drivers.base", "errors"},
    "perform": {"probes", "interview", "core", "engines", "drivers.base", "errors"},
    "probes": {"core", "engines", "drivers.base", "errors"},
    "interview": {"probes", "core", "engines", "drivers.base", "errors"},
    "planning": {"core", "errors"},
    "engines": {"core", "errors"},
    "core": {"errors"},
    "settings": {"errors"},
    "resources": {"core", "errors"},
    "errors": set(),
    "artifacts": {"core", "drivers.cgroups", "errors"},
    "drivers": {"core", "drivers.base", "drivers.files", "drivers.cancellable", "errors"},
    "drivers.base": {"core"},
    "drivers.files": {"errors"},
    "drivers.cgroups": set(),
    "drivers.children": {"core"},
    "drivers.memory": {"core", "drivers.cgroups"},
    "drivers.host": {"core", "drivers.cgroups", "drivers.memory", "drivers.nvml", "errors"},
    "drivers.keys": {"core", "drivers.files", "errors"},
    "drivers.secrets": {"drivers.files", "errors"},
    "drivers.cancellable": set(),
    "drivers.hub": {"core", "drivers.base", "drivers.files", "drivers.cancellable", "drivers.local.proc", "errors"},
    "drivers.ports": {"drivers.local.proc", "errors"},
    "drivers.local": {
        *("core", "drivers.base", "drivers.cgroups", "drivers.children", "drivers.files", "drivers.ports"),
        *("drivers.secrets", "errors"),
    },
    "drivers.docker": {
        *("core", "drivers.base", "drivers.cancellable", "drivers.cgroups", "drivers.children", "drivers.files"),
        *("drivers.memory", "drivers.ports", "drivers.secrets", "errors"),
    },
    # It packs the gateway's part of the package, wherever that is.
    "drivers.docker.gateway_image": {"errors", "__version__"},
    "gateway": {"core", "drivers.files", "errors", "__version__"},
}

# What a room may import of others; the longest prefix decides, and what is not named may import the standard library.
PACKAGES: dict[str, set[str]] = {
    "cli": {"typer"},
    "cli.screen": {"rich", "typer"},
    "resources": {"jinja2"},
    "core.part": {"pydantic"},
    "engines": {"jinja2"},
    "artifacts": {"numpy", "gguf", "numba"},
    "artifacts.chat_rendering": {"jinja2"},
    "artifacts.reference_tokens": {"tokenizers"},
    "drivers.docker": {"docker", "requests", "urllib3", "packaging"},
    "drivers.hub": {"huggingface_hub"},
    "drivers.nvml": {"pynvml"},
    "drivers.nvml_samples": {"pynvml"},
    "drivers.local.llamacpp_server": {"xllamacpp"},
    # It runs in an environment that orch makes, which has these.
    "drivers.local.llmcompressor_job": {"torch", "transformers", "datasets", "llmcompressor"},
    "gateway": {"aiohttp", "uvloop", "orjson", "msgspec"},
    "bench.charts": {"matplotlib"},
    "bench.ceiling": {"uvloop"},
    # It runs in an environment that orch makes, which has it.
    "bench.lm_eval_job": {"lm_eval"},
    "gateway.metrics": {"prometheus_client"},
    "bench.client": {"aiohttp", "uvloop", "orjson"},
}

# Who asks the process environment, and for what.
ENVIRONMENT = {
    "bench.lm_eval_job": "tells the harness, which looks for its key there",
    "cli.session": "hands it to settings",
    "drivers.host": "CUDA_VISIBLE_DEVICES decides which GPUs there are",
    "drivers.hub.client": "tells the hub's client, which reads it when it is imported",
    "drivers.local.command": "the part of it that engines inherit",
    "drivers.local.keeper": "the part of it that engines inherit",
    "drivers.local.llamacpp_server": "what it is to ask of its clients",
    "drivers.local.pip": "the part of it that pip inherits",
}
# Who may expand "~": paths that a person has written.
HOME = {"settings", "app.profiles", "core.profile"}

# Who names engines, besides their sheets, and for what.
NAMES_ENGINES = {
    "cli": "examples in --help",
    "bench.tools": "vllm bench serve",
    "bench.imports": "vllm bench serve",
    "core.routes": "an API that is called after one",
    "gateway.refusals": "an example in an answer",
    "gateway.dialects.ollama": "its own API",
}

UNUSED_WORDS = {"runtime", "manager", "service", "handler", "util", "utils", "common", "helper", "helpers"}
# Names of the wrapped library.
FOREIGN_NAMES = {"common_params"}

# What decides and computes; what it would need these for belongs to a driver.
IMPURE = {
    "os",
    "subprocess",
    "socket",
    "shutil",
    "signal",
    "threading",
    "time",
    "random",
    "tempfile",
    "http",
    "urllib.request",
}


def of(table: dict[str, set[str]], name: str) -> tuple[str, set[str]]:
    """The entry of a table for a module: the longest prefix."""
    fits = [room for room in table if room == name or (room and name.startswith(f"{room}."))]
    room = max(fits, key=len, default="")
    return room, table.get(room, set())


def within(name: str, room: str) -> bool:
    return room == "" or name == room or name.startswith(f"{room}.")


def test_files_of_tests_have_names_of_their_own() -> None:
    """pytest imports them as modules beside each other: the second of a name is not collected."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []


def test_every_module_has_a_room() -> None:
    rooms = {module.name.split(".")[0] for module in modules()}
    assert rooms <= ARROWS.keys()
    assert rooms >= {"cli", "app", "planning", "perform", "core", "engines", "artifacts", "drivers", "gateway"}


def test_own_imports_follow_the_arrows() -> None:
    wrong = []
    for module in modules():
        room, allowed = of(ARROWS, module.name)
        for item in imports(module):
            if item.own is None:
                continue
            # `import orchestrator` gives its version and its place.
            names = {alias.name for alias in item.node.names}
            own = "__version__" if item.own == "" and names <= {"__version__", PACKAGE} else item.own
            is_room = room != "" and within(own, room)
            if not is_room and not any(within(own, target) for target in allowed):
                wrong.append(f"{module.where(item.node)}: {module.name} imports {item.target}")
    assert wrong == []


def test_other_packages_stay_in_their_rooms() -> None:
    wrong = []
    for module in modules():
        _, allowed = of(PACKAGES, module.name)
        for item in imports(module):
            package = item.target.split(".")[0]
            if package not in sys.stdlib_module_names and package != PACKAGE and package not in allowed:
                wrong.append(f"{module.where(item.node)}: {module.name} imports {package}")
    assert wrong == []


@pytest.mark.parametrize(
    ("package", "rooms"),
    [("asyncio", ("gateway", "bench.client", "bench.ceiling")), ("rich", ("cli.screen",)), ("typer", ("cli",))],
)
def test_only_these_rooms_use(package: str, rooms: tuple[str, ...]) -> None:
    users = {module.name for module in modules() for item in imports(module) if within(item.target, package)}
    assert users
    assert [name for name in users if not any(within(name, room) for room in rooms)] == []


@pytest.mark.parametrize("room", ["core", "planning", "engines"])
def test_what_decides_is_pure(room: str) -> None:
    wrong = [
        f"{module.where(item.node)}: {item.target}"
        for module in modules()
        if within(module.name, room)
        for item in imports(module)
        if any(within(item.target, name) for name in IMPURE)
    ]
    assert wrong == []


def test_imports_of_its_own_are_at_the_top_or_say_why() -> None:
    """The CLI imports inside verbs, and orch its drivers and builders when they are asked for, so that each pays only
    for what it uses; elsewhere a comment must say why."""
    wrong = [
        f"{module.where(item.node)}: {item.target}"
        for module in modules()
        if not within(module.name, "cli") and module.name not in ("app.orchestrator", "artifacts.builder")
        for item in imports(module)
        if item.inside and item.own is not None and not _has_comment(module, item.node.lineno)
    ]
    assert wrong == []


def _has_comment(module: Module, line: int) -> bool:
    return any("#" in module.lines[number] for number in (line - 1, line - 2))


def test_only_the_named_modules_ask_the_environment() -> None:
    found = {
        module.name
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute)
        and node.attr in {"environ", "getenv", "environb"}
        and _is_name(node.value, "os")
    }
    assert found == ENVIRONMENT.keys()


def test_only_the_named_modules_ask_for_the_home_directory() -> None:
    asked = {
        module.name
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute)
        and (node.attr == "expanduser" or (node.attr == "home" and _is_name(node.value, "Path")))
    }
    assert asked == HOME


def _is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def test_engines_are_named_by_their_sheets_alone() -> None:
    """Everybody else was told which one is meant, or asks the registry (engines/__init__.py)."""
    name = re.compile(rf"\b({'|'.join(ENGINES)})\b")
    found = {
        module.name: f"{module.where(node)}: {text}"
        for module in modules()
        if module.name not in {f"engines.{engine}" for engine in ENGINES}
        for node, text in _words_that_count(module)
        if name.search(text)
    }
    rooms = {room: [one for one in found if within(one, room)] for room in NAMES_ENGINES}
    assert [found[one] for one in found if not any(one in ones for ones in rooms.values())] == []
    assert all(rooms.values())


def _words_that_count(module: Module) -> Iterator[tuple[ast.AST, str]]:
    """What could name something: strings that are no docstrings, attributes and keywords."""
    docstrings = {node.value for node in ast.walk(module.tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(module.tree):
        match node:
            case ast.Constant(value=str(text)) | ast.Attribute(attr=text) | ast.keyword(arg=str(text)):
                if node not in docstrings:
                    yield node, text


def test_nothing_is_named_by_an_empty_word() -> None:
    wrong = []
    for module in modules():
        names = [(module.name.rpartition(".")[2], 1)]
        names += [
            (node.name, node.lineno)
            for node in ast.walk(module.tree)
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        wrong += [
            f"{module.path.name}:{line}: {name}"
            for name, line in names
            if name not in FOREIGN_NAMES and _words(name) & UNUSED_WORDS
        ]
    assert wrong == []


def _words(name: str) -> set[str]:
    return set(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().split("_"))


def test_no_module_is_empty_but_for_packages() -> None:
    empty = [module.name for module in modules() if not module.tree.body and module.path.name != "__init__.py"]
    assert empty == []


def test_nothing_is_imported_from_a_conftest() -> None:
    """Every level has a module of this name: which of them is meant depends on the folders that pytest was given."""
    line = re.compile(r"^\s*(from|import) conftest\b", re.MULTILINE)
    wrong = [path.relative_to(ROOT) for path in (ROOT / "tests").rglob("*.py") if line.search(path.read_text())]
    assert wrong == []
