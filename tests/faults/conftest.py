"""The smallest model that all builders take, and what becomes of it when nothing goes wrong."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from orch_command import ROOT
from orch_nursery import nursery_of, sound

sys.path.append(str(ROOT / "tests" / "artifacts"))


@dataclass(frozen=True)
class Undisturbed:
    """`source` is a model's directory, `made` what a store lists of it in the end: SHA-256 by file, by key."""

    source: Path
    made: dict[str, dict[str, str]]

    @property
    def weights(self) -> str:
        """The key of the weights."""
        return next(key for key in self.made if key.startswith("weights-"))


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """3 MB of weights, and a GGUF and NVFP4 of them."""
    from tiny_models import write_model

    place = tmp_path_factory.mktemp("undisturbed")
    source = write_model("qwen2-tied", place / "source")
    with nursery_of(place, source) as (nursery, _):
        nursery.run("build", "-p", str(place / "tiny.toml"))
        made = sound(nursery.home / "store")
    assert len(made) == 3
    return Undisturbed(source, made)
