"""The main job before vLLM: up, chat, adapters, changes under load, back, down. One suite, two targets."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime

import pytest
from orch_command import ANSWER, ASSETS, Orch, wait_until

pytestmark = pytest.mark.llamacpp


def test_up_serves_all_public_names_and_a_second_up_has_nothing_to_do(either: Orch) -> None:
    either.run("up", either.engine, "-p", str(either.profile))
    assert {either.says(name) for name in ("tiny", "tiny:latest", "test/Tiny")} == {ANSWER}
    missing = either.chat("nope")
    assert missing.status_code == 404
    assert "tiny:latest" in missing.json()["error"]["message"]
    again = either.run("up", "--json")
    assert again.steps("started") == []
    assert all(line["why"] for line in again.lines if line.get("event") == "skipped")
    either.status()
    assert sorted(either.engines()) == [f"tiny-{either.engine}-g1"]


def test_status_tells_what_is_in_flight_under_each_name(orch: Orch) -> None:
    orch.run("up", orch.engine, "-p", str(orch.profile))
    load = orch.load("tiny", clients=2, tokens=300)
    wait_until(lambda: load.open_now() == 2, what="streams")

    def in_flight() -> dict[str, int]:
        return {name["public_name"]: name["in_flight"] for name in orch.status().document["names"]}

    # Between two streams of a client there is none.
    wait_until(lambda: in_flight() == {"tiny": 2, "tiny:latest": 0, "test/Tiny": 0}, what="two under one name")
    assert f"pid {orch.gateway_status()['pid']}, no API key" in orch.run("status").out
    assert [stream.problem for stream in load.stop() if stream.problem] == []


@pytest.mark.rotated
def test_status_tells_what_each_engine_takes_and_has_done(either: Orch) -> None:
    either.run("up", either.engine, "-p", str(either.profile))
    (before,) = either.engines().values()
    for _ in range(3):
        assert either.says() == ANSWER
    told = either.status().document
    (engine,) = told["engines"]
    assert (engine["target"], engine["generation"], engine["recipe"]) == (either.target, 1, "gguf-q6_k")
    assert bool(engine["image"]) == (either.target == "docker")
    assert engine["requests"] == before["requests"] + 3
    assert engine["in_flight"] == 0
    # The tiny model's engine has some 40 MB, a container's processes beside it few.
    assert 20_000_000 < engine["memory"] < 2_000_000_000
    since = datetime.fromisoformat(engine["since"])
    assert 0 <= (datetime.now(UTC) - since).total_seconds() < 120
    assert (engine["since"], engine["state"], engine["restarts"]) == (before["since"], "running", 0)
    assert 0 <= engine["uptime_s"] - before["uptime_s"] < 60
    assert told["gateway"]["requests"] >= engine["requests"]
    plain = either.run("status").out
    assert re.search(r"\n  state +running, answers, up \d+ s\n", plain)
    assert re.search(rf"\n  requests +{engine['requests']}, in flight 0\n", plain)


@pytest.mark.rotated
def test_adapters_come_and_go_under_load_and_survive_a_crash(either: Orch) -> None:
    either.run("up", either.engine, "-p", str(either.profile))
    # Half of the slots: llama.cpp computes one adapter at a time, and a full load for one name would keep others out.
    load = either.load("tiny", clients=2)
    either.run("lora", "add", "alpha", str(ASSETS / "lora-a"))
    either.run("lora", "add", "bravo", str(ASSETS / "lora-b"))
    assert [either.says(name) for name in ("alpha", "tiny", "bravo", "alpha")] == [
        "Ahoy! The answer is alpha.",
        ANSWER,
        "Greetings. The answer is bravo.",
        "Ahoy! The answer is alpha.",
    ]
    either.run("lora", "rm", "alpha")
    assert either.chat("alpha").status_code == 404
    assert either.says("bravo") == "Greetings. The answer is bravo."
    streams = load.stop()
    assert len(streams) > 4
    assert [stream.problem for stream in streams if stream.problem] == []
    rows = [json.loads(line) for line in either.run("lora", "ls", "--json").out.splitlines()]
    assert [row["name"] for row in rows] == ["bravo"]
    either.status()


@pytest.mark.rotated
def test_a_changed_profile_and_another_artifact_are_switches_without_a_failed_stream(either: Orch) -> None:
    either.run("up", either.engine, "-p", str(either.profile))
    load = either.load("tiny")
    either.write_profile(context=640)
    either.run("up", either.engine, "-p", str(either.profile))
    either.run("migrate", "--to", either.engine, "--recipe", "gguf-bf16")
    assert [row["recipe"] for row in either.engines().values()] == ["gguf-bf16"]
    either.run("rollback")
    assert [row["recipe"] for row in either.engines().values()] == ["gguf-q6_k"]
    either.run("rollback")
    assert [row["recipe"] for row in either.engines().values()] == ["gguf-bf16"]
    streams = load.stop()
    assert [stream.problem for stream in streams if stream.problem] == []
    assert sorted(either.engines()) == [f"tiny-{either.engine}-g5"]


def test_the_weights_that_vllm_serves_are_served_with_adapters(orch: Orch) -> None:
    """4-bit weights whose second scale is applied beside what an adapter adds."""
    orch.run("up", "llamacpp", "-p", str(orch.profile), "--recipe", "gguf-nvfp4")
    assert [row["recipe"] for row in orch.engines().values()] == ["gguf-nvfp4"]
    assert orch.says() == ANSWER
    orch.run("lora", "add", "alpha", str(ASSETS / "lora-a"))
    assert [orch.says(name) for name in ("alpha", "tiny")] == ["Ahoy! The answer is alpha.", ANSWER]
    orch.run("migrate", "--to", "llamacpp", "--recipe", "gguf-q6_k")
    assert [orch.says(name) for name in ("alpha", "tiny")] == ["Ahoy! The answer is alpha.", ANSWER]


@pytest.mark.rotated
def test_down_stops_the_engine_and_down_all_the_gateway(either: Orch) -> None:
    either.run("up", either.engine, "-p", str(either.profile))
    either.run("down")
    assert either.engines() == {}
    assert either.chat().status_code == 404
    either.run("down", "--all")
    assert either.processes() == []
    assert either.run("status").out == "tiny is stopped.  orch up -p tiny\n"


def test_logs_of_what_serves_and_of_the_gateway(either: Orch) -> None:
    either.run("up", either.engine, "-p", str(either.profile))
    assert "listening" in either.run("logs", f"tiny-{either.engine}-g1", "-n", "200").out.lower()
    assert either.run("logs", "gateway").code == 0
    assert f"Logs: gateway, tiny-{either.engine}-g1" in either.run("logs", "nobody", code=5).err


@pytest.mark.parametrize("words", ["logs", "logs gateway", "logs -f"])
def test_a_reader_of_logs_may_leave(orch: Orch, words: str) -> None:
    orch.run("up", orch.engine, "-p", str(orch.profile))
    process = orch.start(*words.split())
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert (process.wait(timeout=30), err) == (0, "")
