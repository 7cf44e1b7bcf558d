"""Fills a store and empties it again, for ever: pulls, builds, removals. Its power is cut by test_power_cut.py.

python power_worker.py STORE WEIGHTS ENDPOINT [ROUNDS]
"""

from __future__ import annotations

import importlib.util
import sys
from itertools import count
from pathlib import Path

from orchestrator.artifacts.builder import Builder
from orchestrator.artifacts.store import Store
from orchestrator.core.artifact import Recipe, artifact_key
from orchestrator.core.progress import silent
from orchestrator.core.weights import HubSource
from orchestrator.drivers.hub import Hub

RECIPES = (Recipe.GGUF_BF16, Recipe.NVFP4A16, Recipe.GGUF_Q8_0)


def main(root: Path, weights: Path, endpoint: str, rounds: int) -> None:
    spec = importlib.util.find_spec("xllamacpp")
    assert spec is not None
    assert spec.origin is not None
    store, builder = Store(root), Builder(next(Path(spec.origin).parent.glob("xllamacpp*.so")))
    hub, source = Hub(endpoint), HubSource("test/tiny", "main")
    for number in count() if not rounds else range(rounds):
        key = artifact_key(Recipe.WEIGHTS, f"round {number % 2}")
        with store.building(key) as turn:
            if turn.manifest is None:
                files = hub.fetch(hub.snapshot(source, 30), turn.work, silent)
                turn.finish(Recipe.WEIGHTS, "test/tiny", {}, files)
        for recipe in RECIPES:
            built = artifact_key(recipe, f"round {number % 2}")
            with store.building(built, fresh=True) as turn:
                if turn.manifest is None:
                    builder.build(recipe, weights, turn.work, silent)
                    turn.finish(recipe, "test/tiny", {})
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()
        for old in (key, *(artifact_key(recipe, f"round {(number + 1) % 2}") for recipe in RECIPES)):
            store.remove(old)
        store.sweep()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]) if len(sys.argv) > 4 else 0)
