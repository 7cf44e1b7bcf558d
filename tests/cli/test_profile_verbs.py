"""orch profile ls, show, check."""

from __future__ import annotations

from pathlib import Path

import pytest
from orch_command import Orch

BAD = """
name = "Has Spaces"
public_names = []
colour = "blue"
[weights]
repo = "test/tiny"
[serving]
context = 12
parallel = "many"
[sampling]
temperature = 3.5
[engines.vllm]
recipes = ["nvfp4a16", "int3"]
[[adapters]]
name = "a"
"""


def test_ls_names_everything_that_is_shipped(orch: Orch) -> None:
    rows = {(row["kind"], row["name"]) for row in orch.run("profile", "ls", "--json").lines}
    assert rows >= {
        ("model", "qwen3-8b"),
        ("gpu", "rtx-5090"),
        *(("engine", e) for e in ("ollama", "llamacpp", "vllm")),
    }


def test_a_shown_profile_is_a_good_one(orch: Orch) -> None:
    copy = orch.home / "copy.toml"
    copy.write_text(orch.run("profile", "show", "qwen3-8b").out)
    assert orch.run("profile", "check", str(copy), "--json").lines == [{"ok": "qwen3-8b"}]


def test_check_of_a_good_profile(orch: Orch) -> None:
    done = orch.run("profile", "check", str(orch.profile))
    assert "valid profile named tiny" in done.out
    assert done.err == ""


def test_a_profile_is_utf_8_whatever_the_locale_says(orch: Orch) -> None:
    orch.env |= {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    orch.profile.write_text('description = "für alle"\n' + orch.profile.read_text(), encoding="utf-8")
    orch.run("profile", "check", str(orch.profile))
    orch.run("profile", "ls")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_profile_as_other_editors_save_it(orch: Orch, encoding: str) -> None:
    text = 'description = "für alle"\n' + orch.profile.read_text()
    orch.profile.write_text(text.replace("\n", "\r\n"), encoding=encoding)
    orch.run("profile", "check", str(orch.profile))
    rendered = orch.run("render", "llamacpp", "-p", str(orch.profile), "--json").lines[-1]
    orch.profile.write_text(text, encoding="utf-8")
    assert orch.run("render", "llamacpp", "-p", str(orch.profile), "--json").lines[-1] == rendered


def test_check_tells_all_problems_at_once_with_their_paths(orch: Orch) -> None:
    path = orch.home / "bad.toml"
    path.write_text(BAD)
    done = orch.run("profile", "check", str(path), code=3)
    assert done.out == ""
    told = {line.split(":")[0].strip() for line in done.err.splitlines()}
    assert told >= {
        *("name", "public_names", "colour", "weights", "serving.context", "serving.parallel"),
        *("sampling.temperature", "engines.vllm.recipes[1]", "adapters[0].path"),
    }
    assert "has 9 problems" in done.err
    assert "TIP" in done.err
    (error,) = orch.run("profile", "check", str(path), "--json", code=3).lines
    assert error["exit"] == 3
    assert len(error["detail"].splitlines()) == 9


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("public_names = []", "public_names: List should have at least 1 item, not 0"),
        ("public_names = 3", "public_names: Input should be a list (given: 3)"),
        ("serving = 3", "serving: Input should be a table (given: 3)"),
        ("engines.ollama = 3", "engines.ollama: Input should be a table (given: 3)"),
        ('artifacts.x.path = "y"', "artifacts.x: Input should be 'gguf-bf16'"),
    ],
)
def test_a_problem_is_told_in_words_of_the_file(orch: Orch, text: str, says: str) -> None:
    path = orch.home / "bad.toml"
    path.write_text(text)
    assert f"  {says}" in orch.run("profile", "check", str(path), code=3).err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"name = ", "not valid TOML"),
        (b"\xff\xfe\x00", "it is not UTF-16 text"),
        ("name = ".encode("utf-16-le"), "not valid TOML"),
        ("# für".encode("latin-1"), "it is not UTF-8 text"),
        (b"", "problems"),
        (b'name = "a"\nname = "b"\n', "not valid TOML"),
    ],
)
def test_check_of_what_is_no_profile(orch: Orch, content: bytes, says: str) -> None:
    path = orch.home / "odd.toml"
    path.write_bytes(content)
    assert says in orch.run("profile", "check", str(path), code=3).err


def test_check_of_what_is_not_there(orch: Orch) -> None:
    for path in (orch.home / "nothing.toml", orch.home):
        assert "cannot be read" in orch.run("profile", "check", str(path), code=3).err


def test_check_of_weights_that_are_not_there(orch: Orch) -> None:
    orch.write_profile(weights=Path("no/such/directory"))
    done = orch.run("profile", "check", str(orch.profile), code=3)
    assert f"weights.path: no directory: {orch.home}/no/such/directory" in done.err


def test_an_unknown_name_is_answered_with_the_known_ones(orch: Orch) -> None:
    for verb in (("profile", "show", "nope"), ("render", "vllm", "-p", "nope")):
        assert "qwen3-8b" in orch.run(*verb, code=3).err
