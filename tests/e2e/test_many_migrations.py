"""Over and over, there and back, by each form, while twelve clients ask without a pause: no request fails, no stream is
cut, no answer is another model's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from mixed_load import MixedLoad, problems, waits
from orch_command import ASSETS, stopped_afterwards, wait_until, with_environments
from stand_in_orch import OnStandIn

pytestmark = [pytest.mark.llamacpp, pytest.mark.sampled]

# How much engines may take together, so that one fits, by what the larger of the two asks for.
ONE_FITS = {("llamacpp", "ollama"): "300MiB", ("llamacpp", "vllm"): "1250MiB", ("ollama", "vllm"): "1250MiB"}
# Moves under one load: what scripts/test long makes, in some 20 minutes each, and others.
MOVES = {"overlap": (50, 2), "handover": (20, 2)}


@pytest.mark.rotated
@pytest.mark.parametrize("form", MOVES)
@pytest.mark.parametrize(
    "pair",
    [
        ("llamacpp", "ollama"),
        pytest.param(("llamacpp", "vllm"), marks=[pytest.mark.vllm, pytest.mark.long]),
        pytest.param(("ollama", "vllm"), marks=[pytest.mark.vllm, pytest.mark.long]),
    ],
    ids="-".join,
)
def test_nobody_notices(
    tmp_path: Path,
    request: pytest.FixtureRequest,
    thorough: bool,
    pair: tuple[str, str],
    form: str,
    record_property: Callable[[str, object], None],
) -> None:
    with stopped_afterwards(OnStandIn(tmp_path / "home")) as orch:
        if "vllm" in pair:
            with_environments(orch, request.getfixturevalue("environments"))
        if form == "handover":
            orch.env["ORCH_ENGINE_MEMORY"] = ONE_FITS[pair]
        orch.run("up", pair[0], "-p", str(orch.profile))
        orch.run("lora", "add", "alpha", str(ASSETS / "lora-a"))
        load = MixedLoad(f"http://{orch.listen}", ("tiny", "alpha")).start()
        wait_until(lambda: any(asked.first for asked in load.asked), what="an answer")
        moves = MOVES[form][0 if thorough else 1]
        for n in range(moves):
            move = orch.run("migrate", "--to", pair[(n + 1) % 2], "--json", timeout=600)
            assert ("HoldRequests" in move.steps("done")) == (form == "handover")
        asked = load.stop()
        record_property("waits", f"{moves} moves, {waits(asked)}")
        assert problems(asked) == []
