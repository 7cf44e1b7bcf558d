"""What the output of llama.cpp's converter and quantizer means: lines as their sources print them."""

from __future__ import annotations

import pytest

from orchestrator.core.launch import ran_out
from orchestrator.core.tools import ToolEnd
from orchestrator.engines.llamacpp_tools import Origin, failure
from orchestrator.errors import HostError, SourceError

IMAGE = Origin.image()
TRACE = 'Traceback (most recent call last):\n  File "/app/convert_hf_to_gguf.py", line 1, in <module>\n    main()\n'


@pytest.mark.parametrize(
    ("log", "kind", "said"),
    [
        ("INFO:hf-to-gguf:Loading\nERROR:hf-to-gguf:Model FooModel is not supported\n", SourceError, "Model FooModel"),
        (
            f"{TRACE}NotImplementedError: BPE pre-tokenizer was not recognized - update get_vocab_base_pre()\n",
            SourceError,
            "BPE pre-tokenizer was not recognized",
        ),
        (f"{TRACE}NotImplementedError: Architecture 'FooModel' not supported!\n", SourceError, "'FooModel'"),
        (f"{TRACE}FileNotFoundError: [Errno 2] No such file: 'config.json'\nbye\n", HostError, "FileNotFoundError:"),
        ("Writing:  3%|\rWriting: 9%|\rOSError: [Errno 28] No space left on device", HostError, "the disk is full"),
        (
            "llama_model_quantize: failed to quantize: tensor 'a' data is not within the file bounds\n"
            "main: failed to quantize model from 'x.gguf'\n",
            HostError,
            "failed to quantize: tensor 'a' data is not within the file bounds",
        ),
        ("main : invalid ftype 'Q9'\n", HostError, "invalid ftype 'Q9'"),
        ("", HostError, "Converting failed (exit code 1)."),
    ],
)
def test_the_telling_line(log: str, kind: type[Exception], said: str) -> None:
    told = failure("Converting", ToolEnd(1, "", log), IMAGE)
    assert type(told) is kind
    assert said in told.message
    assert told.hint
    assert told.detail.splitlines()[-1:] == [line.strip() for line in log.replace("\r", "\n").splitlines()][-1:]


def test_a_memory_that_was_too_small_explains_whatever_was_printed() -> None:
    told = failure("Converting", ToolEnd(137, ran_out(64 << 20), "Model Foo is not supported"), IMAGE)
    assert type(told) is HostError
    assert "its limit is 64 MiB" in told.message


def test_tools_that_were_given_are_told_by_their_place() -> None:
    given = Origin.given("/opt/llama.cpp", "/opt/llama.cpp/.venv/bin/python")
    told = failure("Converting", ToolEnd(1, "", "ModuleNotFoundError: No module named 'torch'"), given)
    assert told.message == "Converting failed (exit code 1): ModuleNotFoundError: No module named 'torch'."
    assert "/opt/llama.cpp/.venv/bin/python" in told.hint
    unknown = failure("Converting", ToolEnd(1, "", "ERROR:hf-to-gguf:Model FooModel is not supported"), given)
    assert type(unknown) is SourceError
    assert "images" not in unknown.hint
