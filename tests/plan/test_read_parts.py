"""What is read without pydantic is what pydantic would have read, and is written as pydantic would write it."""

from __future__ import annotations

import json
import random
import tomllib
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from orch_command import ASSETS
from pydantic import TypeAdapter, ValidationError

from orchestrator import resources
from orchestrator.core.deployment import Deployment, Desired
from orchestrator.core.part import Part, Unfit, Unknown, read, read_json
from orchestrator.core.pins import EnginePin, GpuProfile
from orchestrator.core.profile import Profile
from orchestrator.engines import ENGINES

EARLIER = ASSETS / "protocol-1"
EXTRA: tuple[Unknown, ...] = ("forbid", "ignore")
SAMPLE = 15
ODD = (None, "", "x", "é", "7", 0, -1, 1, 1.5, 2**70, True, [], ["x"], [1], {}, {"x": 1}, float("nan"))


def toml(folder: str) -> list[Path]:
    return sorted((resources.root() / "profiles" / folder).glob("*.toml"))


def documents() -> Iterator[tuple[type[Part], Any]]:
    """What orch ships, and what it has written."""
    for folder, kind in (("models", Profile), ("engines", EnginePin), ("builders", EnginePin), ("gpus", GpuProfile)):
        for path in toml(folder):
            yield kind, tomllib.loads(path.read_text())
    for name, sheet in ENGINES.items():
        yield sheet.settings, tomllib.loads(toml("models")[0].read_text())["engines"][name]
    for path in sorted(EARLIER.glob("*/records/desired/*.json")):
        document = json.loads(path.read_text())
        assert document.pop("previous") is None
        yield Desired, {"spec" if key == "wish" else key: value for key, value in document.items()}
    spec = json.loads((EARLIER / "local" / "processes" / "tiny-llamacpp-g2" / "spec.json").read_text())
    yield Deployment, json.loads(spec["label"])


DOCUMENTS = tuple(documents())


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value in a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def changed(document: Any, way: tuple[Any, ...], odd: object) -> Any:
    """The document with something else at a place."""
    other = deepcopy(document)
    holder = other
    for key in way[:-1]:
        holder = holder[key]
    holder[way[-1]] = odd
    return other


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.parametrize(("kind", "document"), DOCUMENTS, ids=[kind.__name__ for kind, _ in DOCUMENTS])
def test_what_is_read_is_what_pydantic_reads(
    kind: type[Part], document: Any, thorough: bool, chance: random.Random
) -> None:
    adapter = TypeAdapter(kind)
    all_of_it = [(way, odd) for way in places(document) for odd in ODD]
    tried = all_of_it if thorough else chance.sample(all_of_it, min(SAMPLE, len(all_of_it)))
    refused = 0
    for other in (document, document | {"unknown": 1}, {}, *(changed(document, *one) for one in tried)):
        for extra in EXTRA:
            try:
                wanted = adapter.validate_python(other, extra=extra)
            except ValidationError:
                refused += 1
                with pytest.raises(Unfit):
                    read(kind, other, extra)
                continue
            # As text: what is no number is not equal to itself, and 1 would be to True.
            assert repr(read(kind, other, extra)) == repr(wanted)
    assert refused


@pytest.mark.parametrize(("kind", "document"), DOCUMENTS, ids=[kind.__name__ for kind, _ in DOCUMENTS])
def test_what_is_written_is_what_pydantic_writes(kind: type[Part], document: Any) -> None:
    value, adapter = read(kind, document), TypeAdapter(kind)
    assert value.model_dump_json().encode() == adapter.dump_json(value)
    assert value.model_dump(exclude_defaults=True) == adapter.dump_python(value, mode="json", exclude_defaults=True)
    assert read_json(kind, value.model_dump_json()) == value
