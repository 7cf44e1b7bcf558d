"""What breaks while it serves, and what is asked for that cannot be: a clear message, the exit code, nothing lost."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from orch_command import ANSWER, ASSETS, Orch, stopped_afterwards, wait_until

pytestmark = pytest.mark.llamacpp

ENGINE = "tiny-llamacpp-g1"


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def answers(orch: Orch) -> bool:
    try:
        return orch.says() == ANSWER
    except httpx.TransportError:
        return False


@pytest.fixture
def up(orch: Orch) -> Orch:
    """The tiny model, served by llama.cpp; the test may do with it what it likes."""
    orch.run("up", "llamacpp", "-p", str(orch.profile))
    return orch


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orch]:
    with stopped_afterwards(Orch(tmp_path_factory.mktemp("one") / "home")) as orch:
        orch.run("up", "llamacpp", "-p", str(orch.profile))
        yield orch


@pytest.fixture
def lasting(one: Orch) -> Orch:
    """The same, one for all tests that leave it as it was: in sync, its first generation, no adapters."""
    if one.status(code=None).code != 0:
        one.run("up")
    assert list(one.engines()) == [ENGINE]
    return one


def test_a_killed_engine_comes_back_by_itself_and_clients_are_told(lasting: Orch) -> None:
    load = lasting.load("tiny", clients=2, tokens=400)
    wait_until(lambda: load.open_now() == 2, what="two open streams")
    before, restarts = lasting.record(ENGINE)["engine"][0], lasting.engines()[ENGINE]["restarts"]
    kill(before)
    wait_until(lambda: any(stream.problem for stream in load.streams), what="a stream that was told")
    cut = [stream for stream in load.stop() if stream.problem]
    assert all("error" in stream.problem or "engine" in stream.problem for stream in cut), cut
    wait_until(lambda: answers(lasting), what="the engine")
    after = lasting.engines()[ENGINE]
    assert after["pid"] != before
    assert after["restarts"] == restarts + 1
    assert "signal 9" in after["last_exit"]
    lasting.status()


@pytest.mark.long
def test_an_engine_that_hangs_is_told_and_a_fresh_one_takes_its_place(up: Orch) -> None:
    os.kill(up.record(ENGINE)["engine"][0], signal.SIGSTOP)
    drift = up.status(code=9).document["drift"]
    assert f"tiny: orch up would wait for {ENGINE} to answer" in drift
    told = up.run("up", "--timeout", "1", "--json", code=4).lines[-1]
    assert "did not answer within 1 s" in told["error"]
    assert "orch up --fresh" in told["hint"]
    up.run("up", "--fresh", "--drain", "1")
    assert list(up.engines()) == ["tiny-llamacpp-g2"]
    assert up.says() == ANSWER
    up.status()


def test_a_killed_keeper_leaves_the_engine_serving_and_up_adopts_it(lasting: Orch) -> None:
    before = lasting.record(ENGINE)
    kill(before["keeper"][0])
    assert lasting.says() == ANSWER
    told = lasting.status(code=9).document
    assert lasting.engines()[ENGINE]["state"] == "unsupervised"
    assert [line for line in told["drift"] if ENGINE in line] == [
        f"{ENGINE} has no keeper: nothing restarts it after a crash; orch up gives it one, and it goes on serving"
    ]
    assert lasting.run("up", "--json").steps("started") == ["EnsureEngine", "VerifyRoute"]
    after = lasting.record(ENGINE)
    assert after["engine"] == before["engine"]
    lasting.status()


def test_engine_and_keeper_killed_together_are_started_again_by_up(lasting: Orch) -> None:
    record = lasting.record(ENGINE)
    kill(record["keeper"][0])
    kill(record["engine"][0])
    refused = wait_until(lambda: (r := lasting.chat()).status_code == 503 and r, what="a 503")
    assert refused.headers["Retry-After"]
    assert "error" in refused.json()
    lasting.status(code=9)
    lasting.run("up")
    assert lasting.says() == ANSWER
    assert lasting.engines()[ENGINE]["port"] == record["port"]
    lasting.status()


def test_a_killed_gateway_comes_back_with_its_routes(up: Orch) -> None:
    up.run("lora", "add", "alpha", str(ASSETS / "lora-a"))
    kill(up.record("gateway")["engine"][0])
    wait_until(lambda: answers(up), what="the gateway")
    assert up.says("alpha") == "Ahoy! The answer is alpha."
    up.status()


def test_gateway_and_its_keeper_killed_together_are_started_again_by_up(lasting: Orch) -> None:
    record = lasting.record("gateway")
    kill(record["keeper"][0])
    kill(record["engine"][0])
    lasting.status(code=9)
    lasting.run("up")
    assert lasting.says() == ANSWER
    lasting.status()


def test_down_with_a_dead_gateway_leaves_no_route_behind(up: Orch) -> None:
    record = up.record("gateway")
    kill(record["keeper"][0])
    kill(record["engine"][0])
    up.run("down")
    assert up.chat().status_code == 404
    assert up.engines() == {}


def test_down_all_right_after_the_gateway_was_killed_stops_everything(up: Orch) -> None:
    kill(up.record("gateway")["engine"][0])
    up.run("down", "--all")
    assert up.processes() == []


def test_everything_killed_is_healed_by_one_up(lasting: Orch) -> None:
    for name in ("gateway", ENGINE):
        record = lasting.record(name)
        kill(record["keeper"][0])
        kill(record["engine"][0])
    lasting.run("up")
    assert lasting.says() == ANSWER
    lasting.status()


def test_an_occupied_address_is_told_with_its_owner_and_nothing_is_left(orch: Orch) -> None:
    host, port = orch.listen.split(":")
    with socket.create_server((host, int(port))):
        told = orch.run("up", "llamacpp", "-p", str(orch.profile), "--json", code=4).lines[-1]
        assert str(os.getpid()) in told["error"]
        assert port in told["error"]
        assert told["hint"]
        assert orch.processes() == []
    orch.run("up", "llamacpp", "-p", str(orch.profile))
    assert orch.says() == ANSWER


def test_the_gateway_does_not_move_by_itself(lasting: Orch) -> None:
    told = lasting.run("up", "--listen", "127.0.0.1:1", "--json", code=5)
    assert lasting.listen in told.lines[-1]["error"]
    assert lasting.says() == ANSWER


def test_two_ups_at_once_are_one_and_a_message(orch: Orch) -> None:
    first = orch.start("up", "llamacpp", "-p", str(orch.profile), "--json")
    assert first.stdout is not None
    while json.loads(first.stdout.readline()).get("event") != "started":
        pass
    told = orch.run("up", "llamacpp", "-p", str(orch.profile), "--json", code=8).lines[-1]
    assert f"pid {first.pid}" in told["error"]
    assert "up llamacpp" in told["error"]
    first.communicate(timeout=60)
    assert first.returncode == 0
    assert orch.says() == ANSWER


def test_another_engine_is_refused_with_the_way_to_it(lasting: Orch) -> None:
    told = lasting.run("up", "vllm", "--json", code=5).lines[-1]
    assert told["hint"].endswith("orch migrate --to vllm")


@pytest.mark.skipif(shutil.which("ollama") is not None, reason="there is an ollama binary on PATH")
def test_ollama_without_its_binary_is_refused_before_anything_changes(orch: Orch) -> None:
    told = orch.run("up", "ollama", "-p", str(orch.profile), "--json", code=4).lines[-1]
    assert "Install Ollama" in told["hint"]
    assert orch.processes() == []


def test_a_context_beyond_the_models_is_refused(lasting: Orch) -> None:
    lasting.write_profile(context=4096)
    told = lasting.run("up", "llamacpp", "-p", str(lasting.profile), "--json", code=5).lines[-1]
    lasting.write_profile()
    assert "2048 positions" in told["error"]
    assert lasting.says() == ANSWER


def test_records_of_another_version_stop_nothing_and_everything_can_be_taken_down(up: Orch) -> None:
    spec = up.home / "processes" / ENGINE / "spec.json"
    spec.write_text(spec.read_text().replace("served_name", "name_that_was_served"))
    (up.home / "records" / "desired" / "tiny.json").write_text('{"spec": 1')
    drift = up.status(code=9).document["drift"]
    assert any(line.startswith(f"{ENGINE}: its label cannot be read") for line in drift)
    assert any("tiny.json cannot be read" in line for line in drift)
    told = up.run("up", "llamacpp", "-p", str(up.profile), "--json", code=5).lines[-1]
    assert "orch down tiny" in told["hint"]
    up.run("down", "tiny")
    up.run("up", "llamacpp", "-p", str(up.profile))
    assert up.says() == ANSWER
    up.status()


def test_an_engine_that_cannot_start_is_taken_back_with_its_telling_line(up: Orch) -> None:
    up.run("artifacts", "verify")
    up.run("down")
    artifact = next((up.home / "store").glob("gguf-q6_k-*/model.gguf"))
    artifact.write_bytes(b"GARB" + artifact.read_bytes()[4:])
    told = up.run("up", "llamacpp", "-p", str(up.profile), "--json", code=6).lines[-1]
    assert "invalid magic characters" in told["error"]
    assert "orch artifacts verify" in told["hint"]
    assert up.engines() == {}
    damage = up.run("artifacts", "verify", "--json", code=9).lines[0]
    assert (damage["path"], damage["kind"]) == ("model.gguf", "hash")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ("truncated", "model.safetensors"),
        ("lying", "model.safetensors"),
        ("architecture", "LlamaForCausalLM"),
        ("shape", "shape"),
        ("tokenizer", "tokenizer"),
    ],
)
def test_weights_that_are_not_what_they_claim_are_refused(orch: Orch, damage: str, expected: str) -> None:
    weights = orch.home / "weights"
    shutil.copytree(ASSETS / "tiny-qwen3", weights)
    spoil(weights, damage)
    orch.write_profile(weights)
    told = orch.run("up", "llamacpp", "-p", str(orch.profile), "--json", code=10).lines[-1]
    assert expected in f"{told['error']} {told.get('detail', '')}"
    assert orch.processes() == []
    assert orch.run("artifacts", "ls", "--json").out == ""


def spoil(weights: Path, damage: str) -> None:
    """Make the directory something that it does not say it is."""
    tensors = weights / "model.safetensors"
    data = tensors.read_bytes()
    config = json.loads((weights / "config.json").read_text())
    match damage:
        case "truncated":
            tensors.write_bytes(data[:-1000])
        case "lying":
            tensors.write_bytes(struct.pack("<Q", 2**40) + data[8:])
        case "architecture":
            config["architectures"] = ["LlamaForCausalLM"]
        case "shape":
            config["intermediate_size"] = 512
        case "tokenizer":
            tokenizer = json.loads((weights / "tokenizer.json").read_text())
            tokenizer["model"]["type"] = "Unigram"
            (weights / "tokenizer.json").write_text(json.dumps(tokenizer))
    (weights / "config.json").write_text(json.dumps(config))


def test_adapters_that_do_not_fit_are_refused_and_nothing_changes(lasting: Orch) -> None:
    wrong = lasting.home / "wrong"
    shutil.copytree(ASSETS / "lora-a", wrong)
    config = json.loads((wrong / "adapter_config.json").read_text())
    (wrong / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    assert "use_dora" in lasting.run("lora", "add", "x", str(wrong), "--json", code=10).lines[-1]["error"]
    assert "does not exist" in lasting.run("lora", "add", "x", str(lasting.home / "nowhere"), code=2).err
    assert (
        "both the model and an adapter"
        in lasting.run("lora", "add", "tiny", str(ASSETS / "lora-a"), "--json", code=5).lines[-1]["error"]
    )
    assert lasting.run("lora", "rm", "x", "--json", code=5).lines[-1]["hint"] == "There are: none."
    assert lasting.says() == ANSWER
    lasting.status()


def test_a_profile_with_problems_reports_all_of_them(orch: Orch) -> None:
    orch.profile.write_text(
        'name = "Tiny"\npublic_names = []\n[weights]\nrepo = "a/b"\n[serving]\ncontext = 1\nparalel = 2\n'
    )
    told = orch.run("up", "llamacpp", "-p", str(orch.profile), "--json", code=3).lines[-1]
    assert [line.split(":")[0] for line in told["detail"].splitlines()] == [
        "name",
        "public_names",
        "weights",
        "serving.context",
        "serving.paralel",
    ]


def test_logs_follow_until_interrupted(lasting: Orch) -> None:
    following = lasting.start("logs", ENGINE, "--follow")
    assert following.stdout is not None
    assert following.stdout.readline()
    before = time.monotonic()
    following.send_signal(signal.SIGINT)
    following.communicate(timeout=10)
    assert following.returncode == 0
    assert time.monotonic() - before < 5


def test_a_hung_gateway_is_told_and_replaced_with_its_routes(lasting: Orch) -> None:
    os.kill(lasting.record("gateway")["engine"][0], signal.SIGSTOP)
    lasting.status(code=9)
    lasting.run("up")
    assert lasting.says() == ANSWER
    lasting.status()


@pytest.mark.parametrize("mode", [("--json",), ()], ids=["json", "words"])
def test_up_whose_reader_leaves_is_taken_back(orch: Orch, mode: tuple[str, ...]) -> None:
    process = orch.start("up", "llamacpp", "-p", str(orch.profile), *mode)
    assert process.stdout is not None
    assert process.stderr is not None
    (process.stdout if mode else process.stderr).readline()
    process.stdout.close()
    process.stderr.close()
    assert process.wait(timeout=60) in (0, 130)
    if process.returncode == 130:
        assert orch.engines() == {}
    orch.run("up", "llamacpp", "-p", str(orch.profile))
    assert orch.says() == ANSWER


def test_down_keeps_what_was_wanted_and_up_brings_it_back(up: Orch) -> None:
    up.run("lora", "add", "alpha", str(ASSETS / "lora-a"))
    up.run("down", "--all")
    assert "tiny is stopped" in up.run("status").out
    up.run("up")
    assert up.says("alpha") == "Ahoy! The answer is alpha."
    up.run("down", "--all", "--forget")
    assert "Nothing is deployed" in up.run("status").out


def test_status_says_who_is_at_work(orch: Orch) -> None:
    process = orch.start("up", "llamacpp", "-p", str(orch.profile), "--json")
    assert process.stdout is not None
    while json.loads(process.stdout.readline()).get("event") != "started":
        pass
    process.send_signal(signal.SIGSTOP)
    told = orch.status(code=8).document
    orch.run("status", "--during-change-ok", code=0)
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=60)
    assert "up llamacpp" in told["at_work"]
    assert not told["in_sync"]
    orch.status()


def test_a_removed_artifact_is_built_again(up: Orch) -> None:
    next((up.home / "store").glob("gguf-q6_k-*/model.gguf")).unlink()
    up.run("up", "--fresh")
    assert up.says() == ANSWER
    up.run("artifacts", "verify")


NOBODY = 65534


def as_another(orch: Orch, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a command without root's right to everything."""
    without = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.getuid() == 0 else []
    command = [*without, sys.executable, "-m", "orchestrator", *args]
    return subprocess.run(command, env=orch.environ(), capture_output=True, text=True, timeout=60, check=False)


def give_away(orch: Orch) -> str:
    """Make the data directory another user's, as one that another user brought up would be; whose it is then."""
    if os.getuid() == 0:
        for path in [orch.home, *orch.home.rglob("*")]:
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        return pwd.getpwuid(NOBODY).pw_name
    for path in [*(orch.home / "processes").glob("*/*.json"), *(orch.home / "logs").iterdir(), orch.home / "lock"]:
        path.chmod(0)
    return pwd.getpwuid(os.getuid()).pw_name


def take_back(orch: Orch) -> None:
    for path in [orch.home, *orch.home.rglob("*")]:
        os.chown(path, os.getuid(), os.getgid(), follow_symlinks=False)
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | 0o600)


def test_what_belongs_to_another_user_is_told_by_every_verb_that_looks(up: Orch) -> None:
    owner = give_away(up)
    try:
        told = as_another(up, "status")
        assert told.returncode == 9
        assert "Engines on local: unknown." in told.stdout
        assert f"belongs to {owner}" in told.stdout
        assert "none" not in told.stdout
        lora = ("lora", "add", "alpha", str(ASSETS / "lora-a"))
        looking = (("logs",), ("logs", ENGINE), ("up", "--plan"), ("up",), ("down", "--all"), lora, ("artifacts", "gc"))
        for words in looking:
            refused = as_another(up, *words)
            assert (refused.returncode, "Traceback" in refused.stderr) == (4, False), refused
            assert f"belongs to {owner}" in refused.stderr
            assert "TIP" in refused.stderr
        up.home.chmod(0)
        for words in (("status",), ("artifacts", "ls"), ("lora", "ls"), *looking):
            refused = as_another(up, *words)
            assert refused.returncode == 4, refused
            assert f"{up.home} belongs to {owner}" in refused.stderr
    finally:
        up.home.chmod(0o755)
        take_back(up)
    assert up.says() == ANSWER
    up.status()
