"""The smallest model that all builders take, and what becomes of it when nothing goes wrong."""

from __future__ import annotations

import sys

import pytest
from orch_command import ROOT
from orch_nursery import Undisturbed, nursery_of, sound

sys.path.append(str(ROOT / "tests" / "artifacts"))


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
