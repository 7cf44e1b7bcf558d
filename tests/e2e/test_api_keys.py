"""API keys: said in the plan, taken while clients stream, given back where a run fails; and what engines ask for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import httpx
import pytest
from orch_command import Orch, wait_until

pytestmark = pytest.mark.llamacpp

GIVEN = "the-given-key"


def status_for(orch: Orch, key: str = "", path: str = "/v1/models") -> int:
    head = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.get(f"http://{orch.listen}{path}", headers=head, timeout=10, trust_env=False).status_code


def made(orch: Orch, *command: str) -> str:
    """The key that a command shows, once."""
    (told,) = (line for line in orch.run("keys", *command, "--json").lines if "key" in line)
    key = str(told["key"])
    assert key.startswith("orch_")
    return key


def rows(orch: Orch) -> dict[str, dict[str, str]]:
    return {line["name"]: line for line in orch.run("keys", "ls", "--json").lines if "name" in line}


@pytest.fixture
def served(orch: Orch) -> Orch:
    """The tiny model behind a gateway that asks for no key."""
    orch.run("up", "llamacpp", "-p", str(orch.profile))
    return orch


def test_who_reads_the_key_and_no_more_has_it(served: Orch) -> None:
    """As in `orch keys add one --json | head -1`."""
    process = served.start("keys", "add", "one", "--json")
    assert process.stdout is not None
    assert process.stderr is not None
    key = json.loads(process.stdout.readline())["key"]
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=60) == 0
    assert [status_for(served, one) for one in ("", key)] == [401, 200]
    assert list(rows(served)) == ["one"]


def test_the_variable_is_the_first_key_of_a_new_gateway_and_nothing_else(orch: Orch) -> None:
    orch.env["ORCH_API_KEY"] = GIVEN
    command = ("up", "llamacpp", "-p", str(orch.profile))
    assert orch.actions(*command)[:2] == ["BuildArtifact", "WriteKeys"]
    orch.run(*command)
    assert [status_for(orch, key) for key in ("", GIVEN)] == [401, 200]
    assert list(rows(orch)) == ["first"]
    assert orch.actions("up") == []
    # A stale one, in some shell, locks nobody out.
    orch.env["ORCH_API_KEY"] = "another"
    told = orch.run("up", "--json")
    assert any("orch keys add NAME --stdin" in line.get("why", "") for line in told.lines)
    assert [status_for(orch, key) for key in ("another", GIVEN)] == [401, 200]
    kept = (orch.home / "keys" / "keys.json").read_text() + (orch.home / "journal.jsonl").read_text()
    assert GIVEN not in kept
    assert (orch.home / "keys" / "keys.json").stat().st_mode & 0o777 == 0o600


def test_where_nothing_serves_no_key_is_left(orch: Orch) -> None:
    orch.env["ORCH_API_KEY"] = GIVEN
    command = ("up", "llamacpp", "-p", str(orch.profile))
    step = orch.actions(*command).index("AwaitReady")
    assert orch.signal_at(step, signal.SIGINT, *command).code == 130
    assert json.loads((orch.home / "keys" / "keys.json").read_text())["keys"] == []
    del orch.env["ORCH_API_KEY"]
    orch.run(*command)
    assert status_for(orch) == 200


def test_from_no_keys_to_several_and_back_without_a_failed_request(served: Orch) -> None:
    load = served.load("tiny", clients=3)
    wait_until(lambda: load.open_now() == 3, what="open streams")
    plan = served.run("keys", "add", "web", "--grace", "1h", "--plan").out
    assert "let in until" in plan
    assert rows(served) == {}
    web = made(served, "add", "web", "--grace", "1h")
    assert any("open_until" in line for line in served.run("keys", "ls", "--json").lines)
    assert [status_for(served, key) for key in ("", web)] == [200, 200]
    ci = made(served, "add", "ci", "--expires", "90d")
    assert served.actions("up") == []
    assert status_for(served) == 200
    assert [stream.problem for stream in load.stop() if stream.problem] == []
    made(served, "add", "late", "--grace", "0")
    assert status_for(served) == 401
    served.run("keys", "rm", "late")
    served.key = web
    load = served.load("tiny", clients=3)
    wait_until(lambda: load.open_now() == 3, what="open streams")
    served.run("keys", "rm", "ci")
    assert [status_for(served, key) for key in (ci, web)] == [401, 200]
    refused = served.run("keys", "rm", "web", "--json", code=5).lines[-1]
    assert "last API key" in refused["error"]
    assert refused["hint"].endswith("orch keys rm web --open")
    served.run("keys", "rm", "web", "--open")
    assert status_for(served) == 200
    assert [stream.problem for stream in load.stop() if stream.problem] == []
    served.status()
    told = [json.loads(line) for line in (served.home / "journal.jsonl").read_text().splitlines()]
    verbs = [line["verb"] for line in told if line.get("step") == "WriteKeys" and line["event"] == "done"]
    assert verbs == ["keys add"] * 3 + ["keys rm"] * 3


def test_keys_that_cannot_be_read_are_told_and_begun_anew_as_the_hint_says(served: Orch) -> None:
    old = made(served, "add", "web", "--grace", "1h")
    kept = served.home / "keys" / "keys.json"
    kept.write_text("{")
    told = served.status(code=9).document["drift"]
    assert any(f"The API keys in {kept} cannot be read" in line and f"rm {kept}" in line for line in told)
    served.run("up", code=4)
    served.run("keys", "ls", code=4)
    # The gateway goes on with what it has read.
    assert [status_for(served, key) for key in (old, "")] == [200, 200]
    kept.unlink()
    served.status()
    new = made(served, "add", "web")
    assert [status_for(served, key) for key in (old, "", new)] == [401, 401, 200]
    served.status()


def test_a_rotated_key_has_time_to_be_replaced(served: Orch) -> None:
    first = made(served, "add", "web")
    assert [status_for(served, key) for key in ("", first)] == [401, 200]
    wait_until(lambda: rows(served)["web"]["last_used"], what="its use, written down")
    second = made(served, "rotate", "web")
    assert [status_for(served, key) for key in (first, second)] == [200, 200]
    row = rows(served)["web"]
    assert "the old one until" in row["state"]
    third = made(served, "rotate", "web", "--grace", "0")
    assert [status_for(served, key) for key in (first, second, third)] == [401, 401, 200]
    own = "a-key-of-my-own"
    piped = subprocess.run(
        [served.python, "-m", "orchestrator", "keys", "add", "mine", "--stdin"],
        input=f"{own}\n",
        env=served.environ(),
        text=True,
        capture_output=True,
        timeout=60,
    )
    assert (piped.returncode, own in piped.stdout + piped.stderr) == (0, False)
    assert status_for(served, own) == 200


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (("rm", "nobody"), 5, "There is no API key named nobody"),
        (("rotate", "nobody"), 5, "There is no API key named nobody"),
        (("add", "web"), 5, "There is already an API key named web"),
        (("add", "../x"), 2, "is not a valid name"),
        (("add", "x", "--expires", "soon"), 2, "soon is not a valid duration"),
        (("add", "x", "--expires", "0"), 2, "good for nobody"),
        (("add", "x", "--grace", "1h"), 5, "refused already"),
        (("rotate", "web", "--grace", "-1h"), 2, "is not a valid duration"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_changes(
    orch: Orch, command: tuple[str, ...], code: int, said: str
) -> None:
    """Without a gateway, too: it reads them when it starts."""
    made(orch, "add", "web")
    before = (orch.home / "keys" / "keys.json").read_text()
    assert said in orch.run("keys", *command, "--json", code=code).lines[-1]["error"]
    assert (orch.home / "keys" / "keys.json").read_text() == before


def test_keys_that_were_kept_as_plain_text_are_taken_over(orch: Orch) -> None:
    old = orch.home / "keys" / "api-keys"
    old.parent.mkdir()
    old.write_text("# of the web page\nold-key\n")
    orch.run("up", "llamacpp", "-p", str(orch.profile))
    assert [status_for(orch, key) for key in ("", "old-key")] == [401, 200]
    assert (list(rows(orch)), old.exists()) == (["key-1"], False)


def test_killed_at_every_step_of_a_rotation_no_client_is_locked_out(either: Orch) -> None:
    either.run("up", either.engine, "-p", str(either.profile))
    either.key = made(either, "add", "web")
    load = either.load("tiny", clients=2)
    command = ("keys", "rotate", "web")
    steps = range(len(either.actions(*command)))
    for number in steps:
        killed = either.signal_at(number, signal.SIGKILL, *command)
        # The last step may be over before the signal comes.
        assert killed.code == -signal.SIGKILL or number == steps[-1], killed.out
        either.run("up")
        either.status()
        # Of a replacement that was killed nobody has seen the key: the one that all have goes on.
        assert status_for(either, either.key) == 200
    assert [stream.problem for stream in load.stop() if stream.problem] == []
    again = made(either, "rotate", "web", "--grace", "0")
    assert [status_for(either, key) for key in (again, either.key)] == [200, 401]


def at_engine(orch: Orch, path: str, key: str = "") -> int:
    (row,) = orch.engines().values()
    head = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.get(f"http://127.0.0.1:{row['port']}{path}", headers=head, timeout=10, trust_env=False).status_code


@pytest.mark.parametrize("engine", ["llamacpp", pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.long])])
def test_nobody_goes_past_the_gateway(request: pytest.FixtureRequest, engine: str) -> None:
    orch: Orch = request.getfixturevalue("orch_vllm" if engine == "vllm" else "orch")
    orch.run("up", engine, "-p", str(orch.profile), timeout=600)
    (name,) = orch.engines()
    secret = (orch.home / "secrets" / name).read_text().strip()
    assert [at_engine(orch, "/v1/models", key) for key in ("", "guessed", secret)] == [401, 401, 200]
    assert orch.says() != ""
    (pid,) = [row["pid"] for row in orch.engines().values()]
    assert secret not in Path(f"/proc/{pid}/cmdline").read_text()
    assert (orch.home / "secrets" / name).stat().st_mode & 0o077 == 0
    for kept in (orch.home / "journal.jsonl", *orch.home.glob("processes/gateway*/files/routes.json")):
        assert secret not in kept.read_text()
    # It comes back with the same secret, and goes with its instance.
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: orch.chat().status_code == 200, 60, what="the engine again")
    assert at_engine(orch, "/v1/models", secret) == 200
    orch.run("down")
    assert not (orch.home / "secrets" / name).exists()
