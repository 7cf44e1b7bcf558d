"""What all verbs have in common: exit codes, where output goes, and who may leave early."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from orch_command import Orch

READING = [
    *("status", "artifacts ls", "artifacts verify", "engines ls", "lora ls", "profile ls", "profile show qwen3-8b"),
    *("render vllm", "pull --plan", "down --all --plan"),
]


@pytest.mark.parametrize(
    "words",
    ["frob", "up --frob", "build gguf", "profile show", "migrate", "up llamacpp --timeout 0", "logs -n 0"],
)
def test_wrong_usage_is_2(orch: Orch, words: str) -> None:
    done = orch.run(*words.split(), code=2)
    assert "Traceback" not in done.err


def test_no_arguments_show_the_help(orch: Orch) -> None:
    done = orch.run(code=2)
    assert "Usage: " in done.out + done.err
    assert "migrate" in done.out + done.err


@pytest.mark.parametrize("words", READING)
def test_looking_leaves_no_trace_and_json_is_objects_line_by_line(orch: Orch, words: str) -> None:
    done = orch.run(*words.split(), "--json")
    values = [json.loads(line) for line in done.out.splitlines()]
    assert all(isinstance(value, dict) for value in values)
    assert done.err == ""
    assert [path.name for path in orch.home.iterdir()] == ["tiny.toml"]


@pytest.mark.parametrize(
    "words", ["up sglang", "rollback", "down nobody", "render vllm -p nope", "artifacts rm nope", "pull --repo x"]
)
def test_an_error_is_one_json_line_with_its_exit_code_or_words_on_stderr(orch: Orch, words: str) -> None:
    done = orch.run(*words.split(), "--json", code=None)
    (error,) = done.lines
    assert error["exit"] == done.code > 1
    told = orch.run(*words.split(), code=done.code)
    assert told.out == ""
    assert told.err.startswith(f"ERROR {error['error']}")
    assert error["hint"] in told.err


def test_nothing_deployed_is_no_error(orch: Orch) -> None:
    assert "Nothing is deployed" in orch.run("status").out
    told = orch.status().document
    assert (told["deployed"], told["engines"], told["gateway"], told["in_sync"]) == ([], [], None, True)
    assert "none" in orch.run("lora", "ls").out
    orch.run("down")
    for words in (("rollback",), ("migrate", "--to", "vllm"), ("lora", "add", "a", "."), ("up",), ("logs",)):
        orch.run(*words, code=5)
    orch.run("lora", "add", "a", "nowhere", code=2)


@pytest.mark.parametrize(
    "words",
    [
        "artifacts rm x",
        "pull --repo test/tiny",
        "up llamacpp -p {profile}",
        "down --all",
    ],
)
def test_a_data_directory_that_cannot_be_one_is_4(orch: Orch, tmp_path: Path, words: str, hub: object) -> None:
    file = tmp_path / "file"
    file.write_text("")
    orch.env["ORCH_HOME"] = str(file)
    done = orch.run(*words.replace("{profile}", str(orch.profile)).split(), code=None)
    assert "Traceback" not in done.err
    assert done.code == 4
    assert str(file) in done.err


def test_without_a_home_it_says_what_to_set(orch: Orch) -> None:
    environ = {key: value for key, value in orch.environ().items() if key not in ("ORCH_HOME", "HOME", "XDG_DATA_HOME")}
    words = [sys.executable, "-m", "orchestrator", "status"]
    done = subprocess.run(words, env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (4, "")
    assert "ORCH_HOME" in done.stderr


def test_origins_that_are_none_are_told_by_every_command(orch: Orch) -> None:
    for wrong in ("chat.example.org", "http://localhost:3000,null", "https://a.example/x"):
        orch.env["ORCH_ORIGINS"] = wrong
        (said,) = orch.run("status", "--json", code=2).lines
        assert said["error"].startswith("ORCH_ORIGINS: ")
        assert wrong.rpartition(",")[2] in said["error"]
    orch.env["ORCH_ORIGINS"] = " , https://chat.example.org ,chrome-extension://*"
    orch.run("status")


@pytest.mark.parametrize("wrong", ["", "chat.example.org", "https://a.example/", "https://a.example,https://b.example"])
def test_an_origin_that_is_none_is_refused_before_anything_else(orch: Orch, wrong: str) -> None:
    words = ("up", "llamacpp", "--origin", "https://c.example", "--origin", wrong, "--json")
    for more in ((), ("--plan",)):
        (said,) = orch.run(*words, *more, code=2).lines
        assert said["error"].startswith(f"--origin: {wrong!r} is not a valid origin")
        assert "--origin of its own" in said["hint"]
    assert not (orch.home / "processes").exists()


@pytest.mark.parametrize("words", ["profile show vllm", "profile ls --json", "--help"])
def test_a_reader_that_leaves_early_sees_no_traceback(orch: Orch, words: str) -> None:
    process = orch.start(*words.split())
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    process.wait(timeout=60)
    assert "Traceback" not in err
    assert "BrokenPipe" not in err
