"""Every decision of the planner, a case file each: adding a case is adding a file to cases/."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from situation import Situation, shown

from orchestrator.errors import OrchError

CASES = {path.stem: path for path in sorted((Path(__file__).parent / "cases").glob("*.toml"))}
KEYS = {
    *(
        "title",
        "command",
        "profile",
        "host",
        "ollama",
        "free_gib",
        "free_disk_gb",
        "free_gpu_gib",
        "engines",
        "gateway",
    ),
    *("routes", "docker", "driver", "images", "requires", "lingering_gib", "gpu_users", "gateway_target"),
    *("gateway_name", "gateway_protocol", "gateway_version", "gateway_origins", "other_gateways", "in_flight"),
    *("origins", "engine_memory_gib", "paused"),
    *("foreign", "desired", "previous", "finished", "environment", "expect", "error", "hint"),
}


def load(name: str) -> dict[str, Any]:
    case = tomllib.loads(CASES[name].read_text())
    unknown = case.keys() - KEYS
    assert not unknown, f"{name}: unknown keys {unknown}"
    assert ("expect" in case) != ("error" in case), f"{name}: either expect or error"
    return case


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    case = load(name)
    situation = Situation(case)
    if "expect" in case:
        assert shown(situation.plan(situation.observed())) == case["expect"].strip()
        return
    with pytest.raises(OrchError) as refused:
        situation.plan(situation.observed())
    assert f"{type(refused.value).__name__}: {refused.value.message}" == case["error"]
    assert refused.value.hint == case["hint"]
