"""`orch build gguf --tools DIR`: programs as llama.cpp's lie in a checkout; see tests/llama_cpp_checkout.py."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader, LlamaFileType
from llama_cpp_checkout import QUANTIZER, checkout, program
from orch_command import ASSETS, ROOT, Orch, wait_until

from orchestrator.drivers.local import proc

pytestmark = pytest.mark.parts

TINY = ASSETS / "tiny-qwen3"
ORACLES = json.loads((ASSETS / "oracles.json").read_bytes())
Given = Callable[..., Path]
Begin = Callable[[Path, Path], "subprocess.Popen[str]"]


@pytest.fixture
def given(tmp_path: Path) -> Given:
    """A directory with the stand-in's two programs, or with a shell script in the place of the interpreter."""
    return partial(checkout, tmp_path / "llama.cpp")


@pytest.fixture
def begin(orch: Orch) -> Iterator[Begin]:
    """Start to build a file; a test that fails in the middle leaves nothing behind either."""
    begun: list[subprocess.Popen[str]] = []

    def start(tools: Path, out: Path) -> subprocess.Popen[str]:
        begun.append(orch.start("build", "gguf", str(TINY), "-o", str(out), "--tools", str(tools), "--json"))
        return begun[-1]

    yield start
    for process in begun:
        if process.poll() is None:
            process.kill()
            process.communicate(timeout=60)


def build(orch: Orch, tools: Path, out: Path, *words: str, source: Path = TINY, code: int = 0) -> list[dict[str, Any]]:
    """The JSON lines of a build with the tools in a directory."""
    done = orch.run("build", "gguf", str(source), "-o", str(out), "--tools", str(tools), *words, "--json", code=code)
    return done.lines


def left_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The file to build, in a directory of its own."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "made.gguf"


def test_given_tools_make_the_bytes_of_the_oracle(orch: Orch, given: Given, out: Path) -> None:
    tools = given()
    told = build(orch, tools, out)
    expected = ORACLES["gguf/q6_k"]["tensors"]
    found = {tensor.name: hashlib.sha256(tensor.data).hexdigest() for tensor in GGUFReader(out).tensors}
    assert found == {name: tensor["sha256"] for name, tensor in expected.items()}
    (named,) = [line["tools"] for line in told if "tools" in line]
    assert named["interpreter"] == str(tools / ".venv/bin/python")
    assert named["quantizer"] == str(tools / QUANTIZER)
    assert {"serve": {"recipe": "gguf-q6_k", "path": str(out)}} in told
    assert left_in(out.parent) == ["made.gguf"]


def test_a_type_that_needs_no_quantizer(orch: Orch, given: Given, out: Path) -> None:
    tools = given()
    (tools / QUANTIZER).unlink()
    out.write_bytes(b"an older file, which is replaced")
    build(orch, tools, out, "--quant", "bf16")
    assert GGUFReader(out).fields["general.file_type"].contents() == LlamaFileType.MOSTLY_BF16
    told = build(orch, tools, out, code=4)[-1]
    assert f"{tools} has no llama-quantize" in told["error"]
    assert str(tools / QUANTIZER) in told["detail"]


def test_what_the_converter_does_not_know_is_told_as_the_weights_fault(
    orch: Orch, given: Given, out: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(TINY, tmp_path / "model"))
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"architectures": ["FooForCausalLM"]}))
    told = build(orch, given(), out, source=source, code=10)[-1]
    assert "does not know these weights: Model FooForCausalLM is not supported" in told["error"]
    assert "--tools DIR of another checkout" in told["hint"]
    assert left_in(out.parent) == []


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("echo half > $3; kill -SEGV $$", "Converting failed (signal 11)."),
        ("echo not a GGUF at all > $3", "bf16.gguf is not a sound GGUF file"),
        ("echo 'RuntimeError: no luck' >&2", "Converting failed (no file): RuntimeError: no luck."),
    ],
)
def test_a_tool_that_fails_leaves_the_older_file_and_nothing_else(
    orch: Orch, given: Given, out: Path, script: str, error: str
) -> None:
    out.write_bytes(b"an older file")
    told = build(orch, given(script), out, code=4)[-1]
    assert error in told["error"]
    assert told["hint"]
    assert out.read_bytes() == b"an older file"
    assert left_in(out.parent) == ["made.gguf"]


def test_an_interrupt_ends_the_tools_too(given: Given, begin: Begin, out: Path) -> None:
    process = begin(given("echo half > $3; sleep 600 & sleep 600"), out)
    work = out.with_name(".made.gguf.tools")
    wait_until(lambda: (work / "bf16.gguf").exists(), 60, "the half file")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert proc.members(work, None) == []
    assert left_in(out.parent) == []


def test_what_a_killed_orch_left_is_ended_by_the_next_build(orch: Orch, given: Given, begin: Begin, out: Path) -> None:
    tools = given("echo half > $3; sleep 600")
    process = begin(tools, out)
    work = out.with_name(".made.gguf.tools")
    wait_until(lambda: (work / "bf16.gguf").exists(), 60, "the half file")
    process.kill()
    process.communicate(timeout=60)
    assert proc.members(work, None)
    assert not out.exists()
    program(tools / ".venv/bin/python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    build(orch, tools, out, "--quant", "q8_0")
    assert proc.members(work, None) == []
    assert left_in(out.parent) == ["made.gguf"]


def test_a_directory_without_the_converter_is_refused(orch: Orch, out: Path) -> None:
    told = build(orch, out.parent, out, code=4)[-1]
    assert "has no convert_hf_to_gguf.py" in told["error"]
    assert "--in-container" in told["hint"]
    both = orch.run("build", "gguf", str(TINY), "-o", str(out), "--tools", str(ROOT), "--in-container", code=2)
    assert "not both" in both.err
