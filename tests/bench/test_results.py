"""Results that are kept: what is damaged, or of another version, costs nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.bench.results import Results
from orchestrator.errors import HostError


def test_what_is_damaged_costs_nothing_else(tmp_path: Path) -> None:
    results = Results(tmp_path / "bench")
    assert results.runs() == {}
    one = {"version": 1, "run": "20260101-000000", "profile": "tiny", "engine": "vllm"}
    results.add(one)
    with (tmp_path / "bench" / "tiny.jsonl").open("a") as file:
        file.write('{"version": 1, "run": "20260102-0000\n\x00\n[]\n{"version": 2, "run": "later"}\n{"run": "none"}\n')
    results.add({**one, "run": "20260103-000000"})
    assert list(results.runs()) == ["20260101-000000", "20260103-000000"]
    assert results.run(None) == [{**one, "run": "20260103-000000"}]
    with pytest.raises(HostError, match="There is no measurement 20990101"):
        results.run("20990101-000000")
