"""The API key in ORCH_API_KEY: said in the plan, taken while clients stream, and given back where the run fails."""

from __future__ import annotations

import signal

import httpx
import pytest
from orch_command import Orch, wait_until

pytestmark = pytest.mark.llamacpp

FIRST, SECOND = "the-first-key", "the-second-key"


@pytest.fixture
def keyed(orch: Orch) -> Orch:
    """The tiny model behind a gateway that asks for the key FIRST."""
    orch.env["ORCH_API_KEY"] = FIRST
    assert orch.actions("up", "llamacpp", "-p", str(orch.profile))[:2] == ["BuildArtifact", "TakeKey"]
    orch.run("up", "llamacpp", "-p", str(orch.profile))
    assert admitted(orch) == {FIRST}
    return orch


def admitted(orch: Orch) -> set[str]:
    """Which of the keys of these tests the gateway lets in."""

    def status(key: str) -> int:
        url = f"http://{orch.listen}/v1/models"
        head = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.get(url, headers=head, timeout=10, trust_env=False).status_code

    return {key for key in ("", FIRST, SECOND) if status(key) == 200}


def test_another_key_is_in_the_plan_and_only_then_taken(keyed: Orch) -> None:
    keyed.env["ORCH_API_KEY"] = SECOND
    plan = keyed.run("up", "--plan", "--json").out
    assert "ask clients for the API key given with ORCH_API_KEY, and for no other" in plan
    assert SECOND not in plan
    assert admitted(keyed) == {FIRST}
    assert keyed.run("up", "--json").steps("started") == ["TakeKey", "VerifyRoute"]
    assert admitted(keyed) == {SECOND}
    assert keyed.actions("up") == []
    del keyed.env["ORCH_API_KEY"]
    keyed.status()
    assert keyed.actions("up") == []


def test_a_run_that_fails_gives_the_key_back(keyed: Orch) -> None:
    keyed.env["ORCH_API_KEY"] = SECOND
    told = keyed.signal_at(1, signal.SIGINT, "up")
    assert told.code == 130
    assert told.steps("undone") == ["GiveKeyBack"]
    wait_until(lambda: admitted(keyed) == {FIRST}, what="the key of before")
    assert SECOND not in (keyed.home / "journal.jsonl").read_text()


def test_where_nothing_serves_no_key_is_left(orch: Orch) -> None:
    orch.env["ORCH_API_KEY"] = FIRST
    command = ("up", "llamacpp", "-p", str(orch.profile))
    step = orch.actions(*command).index("AwaitReady")
    assert orch.signal_at(step, signal.SIGINT, *command).code == 130
    assert not list((orch.home / "keys").glob("*"))


def test_killed_after_it_was_taken_the_same_command_finishes(keyed: Orch) -> None:
    keyed.env["ORCH_API_KEY"] = SECOND
    assert keyed.signal_at(1, signal.SIGKILL, "up").code == -signal.SIGKILL
    keyed.run("up")
    assert admitted(keyed) == {SECOND}
    keyed.status()


@pytest.mark.parametrize("brought", [SECOND, None])
def test_killed_before_the_gateway_has_read_it_the_next_up_has_it_read(keyed: Orch, brought: str | None) -> None:
    """As a kill between the two leaves it: the key is written, and the gateway goes by the one before."""
    (keyed.home / "keys" / "unread").touch()
    (keyed.home / "keys" / "api-keys").write_text(f"{SECOND}\n")
    assert admitted(keyed) == {FIRST}
    del keyed.env["ORCH_API_KEY"]
    if brought is not None:
        keyed.env["ORCH_API_KEY"] = brought
    keyed.run("up")
    assert admitted(keyed) == {SECOND}
    assert keyed.actions("up") == []
