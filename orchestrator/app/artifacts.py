"""The store of weights and artifacts, as people see it: what is in it, whether it is sound, and removing entries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from orchestrator.artifacts.store_directory import Damage
from orchestrator.errors import PlanRefused, SourceError

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator

__all__ = ["Damage", "entry_rows", "known_keys", "remove", "verify"]


def entry_rows(orch: Orchestrator) -> list[dict[str, Any]]:
    """Finished entries, newest last; sizes in bytes."""
    return [
        {
            "key": one.key,
            "recipe": one.recipe.value,
            "size": one.size,
            "created": one.created,
            "place": str(orch.store.directory_of(one.key).root),
            "source": one.source,
        }
        for one in sorted(orch.store.all(), key=lambda manifest: manifest.created)
    ]


def known_keys(orch: Orchestrator, typed: list[str]) -> list[str]:
    """What was typed, as keys; of nothing: what is finished anywhere, and what of the own entries is broken.

    SourceError for what can be no key.
    """
    if not typed:
        return sorted({*orch.store.own.names(), *(manifest.key for manifest in orch.store.all())})
    for key in typed:
        try:
            orch.store.path(key)
        except ValueError as error:
            raise SourceError(f"{key} is not a key of the store.", hint="orch artifacts ls") from error
    return typed


def verify(orch: Orchestrator, keys: list[str]) -> list[Damage]:
    """Read every byte of these entries; what is not as its manifest says. SourceError for one that is not there."""
    damages: list[Damage] = []
    for key in keys:
        _refuse_unknown(orch, key)
        damages += orch.store.verify(key, orch.progress)
    return damages


def remove(orch: Orchestrator, keys: list[str]) -> Iterator[str]:
    """Remove entries, and yield each that is gone. PlanRefused where an engine uses one, or it is another's."""
    # What is used is known by resolving all that is recorded; looking needs none of it.
    from orchestrator.app.gc import refuse_used

    refuse_used(orch, keys)
    for key in keys:
        if not orch.store.remove(key, orch.progress):
            _refuse_unknown(orch, key)
            place = orch.store.directory_of(key).root
            raise PlanRefused(f"{key} is in the shared store {place}.", hint="Remove it there.")
        yield key
    orch.store.sweep()


def _refuse_unknown(orch: Orchestrator, key: str) -> None:
    if orch.store.get(key) is None and key not in {damage.key for damage in orch.store.broken()}:
        raise SourceError(f"There is no {key} in the store.", hint="orch artifacts ls")
