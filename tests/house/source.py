"""The product's modules as syntax trees, the imports in them, and what they say."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "orchestrator"


@dataclass(frozen=True, eq=False)
class Module:
    """A module of the product; `name` without the package ("core.plan"; "" is the package itself)."""

    name: str
    path: Path
    tree: ast.Module
    lines: tuple[str, ...]

    def where(self, node: ast.AST) -> str:
        """File and line of a node, for messages."""
        return f"{self.path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


@dataclass(frozen=True)
class Import:
    """One imported module by its full name; `inside` says whether it is in a function."""

    target: str
    node: ast.Import | ast.ImportFrom
    inside: bool

    @property
    def own(self) -> str | None:
        """The name without the package, if it is the product's own."""
        if self.target != PACKAGE and not self.target.startswith(f"{PACKAGE}."):
            return None
        return self.target.removeprefix(PACKAGE).removeprefix(".")


@cache
def modules() -> tuple[Module, ...]:
    """Every module of the product."""
    found = []
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text()
        found.append(Module(name, path, ast.parse(text), tuple(text.splitlines())))
    return tuple(found)


@cache
def _own_names() -> frozenset[str]:
    return frozenset(f"{PACKAGE}.{module.name}".rstrip(".") for module in modules())


@cache
def imports(module: Module) -> tuple[Import, ...]:
    """The module's imports; `from package import submodule` counts as the submodule, the rest as its origin."""
    return tuple(
        Import(target, node, inside)
        for node, inside in _statements(module.tree, inside=False)
        for target in _targets(node)
    )


def _statements(tree: ast.AST, inside: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, inside
        else:
            yield from _statements(node, inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def _targets(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert node.level == 0, "imports are absolute"
    origin = node.module or ""
    names = (f"{origin}.{alias.name}" for alias in node.names)
    return [name if name in _own_names() else origin for name in names]


def said() -> Iterator[tuple[str, str]]:
    """Each text of the product that people may see, and where it is; {} stands for what is filled in.

    A docstring is shown if it is a verb's: of a decorated function of the command line.
    """
    for module in modules():
        filled = [node for node in ast.walk(module.tree) if isinstance(node, ast.JoinedStr)]
        inside = {id(part) for node in filled for part in node.values}
        for text in filled:
            parts = (part.value if isinstance(part, ast.Constant) else "{}" for part in text.values)
            yield f"{module.name}:{text.lineno}", "".join(map(str, parts))
        unseen = inside | {id(text) for text in _docstrings(module)}
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in unseen:
                yield f"{module.name}:{node.lineno}", node.value
    for path in sorted((ROOT / "templates").rglob("*.j2")):
        yield path.name, path.read_text()


def _docstrings(module: Module) -> Iterator[ast.Constant]:
    for node in ast.walk(module.tree):
        verb = isinstance(node, ast.FunctionDef) and bool(node.decorator_list) and module.name.startswith("cli")
        for statement in getattr(node, "body", ()) if not isinstance(node, ast.Lambda | ast.IfExp) else ():
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and not verb:
                yield statement.value
