"""The main job with the real Ollama: served beside the user's own, migrated away and back under load."""

from __future__ import annotations

import pytest
from orch_command import ANSWER, ASSETS, Orch, wait_until

pytestmark = [pytest.mark.ollama, pytest.mark.llamacpp]


def test_up_on_ollama_and_a_migration_there_and_back_fails_no_stream(orch: Orch) -> None:
    orch.run("up", "ollama", "-p", str(orch.profile))
    assert {orch.says(name) for name in ("tiny", "tiny:latest", "test/Tiny")} == {ANSWER}
    load = orch.load("tiny", clients=2)
    wait_until(lambda: load.open_now() > 0, what="an open stream")
    orch.run("migrate", "--to", "llamacpp")
    assert orch.says() == ANSWER
    orch.run("rollback")
    assert [row["engine"] for row in orch.engines().values()] == ["ollama"]
    assert orch.says() == ANSWER
    assert [stream.problem for stream in load.stop() if stream.problem] == []
    orch.status()


def test_adapters_are_models_of_their_own(orch: Orch) -> None:
    orch.run("up", "ollama", "-p", str(orch.profile))
    orch.run("lora", "add", "alpha", str(ASSETS / "lora-a"))
    assert (orch.says("alpha"), orch.says()) == ("Ahoy! The answer is alpha.", ANSWER)
    orch.run("lora", "rm", "alpha")
    assert orch.chat("alpha").status_code == 404
    assert orch.says() == ANSWER
    orch.status()
