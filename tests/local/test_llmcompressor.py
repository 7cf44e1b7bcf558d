"""The driver of llm-compressor with a program in its place that says what the real one was seen to say."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from orchestrator.core.calibration import Calibration
from orchestrator.core.environment import EnvironmentSpec
from orchestrator.core.host import Host
from orchestrator.core.progress import silent
from orchestrator.drivers.local.llmcompressor import LlmCompressor
from orchestrator.errors import HostError, Interrupted, OrchError, SourceError

GB = 10**9
HOST = Host(cpus=2, memory_total=8 * GB, memory_available=4 * GB, cpu_flags=frozenset())
SPEC = EnvironmentSpec("llmcompressor-cpu", "1.0", ("it==1",))
# As 0.14.0.1 with tqdm writes them, carriage returns included.
BARS = (
    r"Loading weights:   0%|          | 0/46 [00:00<?, ?it/s]\rLoading weights: 100%|##########| 46/46 [00:00<00:00]\n"
    r"(2/5): Calibrating:   0%|          | 0/8 [00:00<?, ?it/s]\r(2/5): Calibrating:  88%|######7 | 7/8 [00:00<00:00]\n"
    r"(2/5): Propagating:  50%|#####     | 4/8 [00:00<00:00]\n"
    r"Compressing model:  21%|##1       | 6/28 [00:00<00:00, 50.98it/s]\n"
)


class Bench:
    """Weights, texts and an environment whose `python` is a shell script."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.weights, self.work, self.texts = root / "weights", root / "work", root / "texts.jsonl"
        self.weights.mkdir()
        self.work.mkdir()
        (self.weights / "config.json").write_text("{}")
        (self.weights / "model.safetensors").write_bytes(b"1" * 1000)
        self.texts.write_text('{"text": "one"}\n{"text": "zwei \\u00fc"}\n')
        self.calibration = Calibration(
            str(self.texts), hashlib.sha256(self.texts.read_bytes()).hexdigest(), 512, 64, SPEC
        )

    def program(self, script: str) -> None:
        """What runs in place of the environment's Python."""
        python = self.root / "environment/bin/python"
        python.parent.mkdir(parents=True)
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)

    def driver(self, host: Host = HOST) -> LlmCompressor:
        return LlmCompressor(lambda name: self.root / "environment/bin", lambda: host)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_it_is_given_paths_texts_and_nothing_that_calls_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    bench.program('printf "%s\\n" "$@" > "$4/said"; env >> "$4/said"; cp "$5" "$4/texts"')
    bench.driver().quantize(bench.weights, bench.work, bench.calibration, silent)
    said = (bench.work / "said").read_text().splitlines()
    assert said[0] == "-I"
    assert said[1].endswith("llmcompressor_job.py")
    assert said[2:4] == [str(bench.weights), str(bench.work)]
    assert said[5] == "64"
    assert {"HF_HUB_OFFLINE=1", "HF_HUB_DISABLE_TELEMETRY=1", "DO_NOT_TRACK=1", "OMP_NUM_THREADS=2"} <= set(said)
    assert not [line for line in said if "secret" in line]
    assert (bench.work / "texts").read_text() == '{"text": "one"}\n{"text": "zwei ü"}\n'
    assert sorted(path.name for path in bench.work.iterdir()) == ["said", "texts"], "its scratch is gone"


def test_where_it_is_becomes_progress(bench: Bench) -> None:
    bench.program(f"printf %b '{BARS}'; sleep 0.5")
    seen: list[tuple[str, int, int]] = []
    bench.driver().quantize(
        bench.weights, bench.work, bench.calibration, lambda what, done, total: seen.append((what, done, total))
    )
    assert seen[0] == ("starting llm-compressor", 0, 0)
    assert seen[-1] == ("compressing model", 6, 28)
    assert all(done <= total for _, done, total in seen)


@pytest.mark.parametrize(
    ("line", "where"),
    [
        ("(2/5): Calibrating:  88%|####  | 7/8 [00:00<00:00]", ("calibrating, part 2 of 5", 23, 80)),
        ("(2/5): Propagating:  50%|####  | 4/8 [00:00<00:00]", ("calibrating, part 2 of 5", 28, 80)),
        ("(5/5): Propagating: 100%|####  | 8/8 [00:00<00:00]", ("calibrating, part 5 of 5", 80, 80)),
        ("Loading weights: 100%|####| 46/46 [00:00<00:00]", ("loading weights", 46, 46)),
        ("anything else 5/6 [", ("starting llm-compressor", 0, 0)),
    ],
)
def test_its_bars_are_understood(bench: Bench, line: str, where: tuple[str, int, int]) -> None:
    bench.program(f"printf '%s\\n' '{line}'; sleep 0.4")
    seen: list[tuple[str, int, int]] = []
    bench.driver().quantize(
        bench.weights, bench.work, bench.calibration, lambda what, done, total: seen.append((what, done, total))
    )
    assert seen[-1] == where


@pytest.mark.parametrize(
    ("script", "kind", "told", "hint"),
    [
        ("echo 'error: no chat template'; exit 3", SourceError, "llm-compressor: no chat template.", ""),
        ("echo 'ValueError: odd'; echo end; exit 1", HostError, "llm-compressor failed: ValueError: odd", ""),
        ("echo 'torch.OutOfMemoryError: CUDA out of memory.'; exit 1", HostError, "OutOfMemoryError", "tokens"),
        ("exit 7", HostError, "llm-compressor failed: it said nothing", ""),
        ("kill -9 $$", HostError, "was killed", "dmesg"),
    ],
)
def test_how_it_fails_is_told(bench: Bench, script: str, kind: type[OrchError], told: str, hint: str) -> None:
    bench.program(script)
    with pytest.raises(kind) as failed:
        bench.driver().quantize(bench.weights, bench.work, bench.calibration, silent)
    assert told in failed.value.message
    assert hint in failed.value.hint
    assert list(bench.work.iterdir()) == []


def test_an_interrupt_ends_it_and_its_children(bench: Bench) -> None:
    bench.program(f"sleep 300 & echo $! > {bench.root}/pid; wait")

    def progress(what: str, done: int, total: int) -> None:
        if (bench.root / "pid").exists() and (bench.root / "pid").read_text().strip():
            raise Interrupted()

    began = time.monotonic()
    with pytest.raises(Interrupted):
        bench.driver().quantize(bench.weights, bench.work, bench.calibration, progress)
    assert time.monotonic() - began < 10
    pid = int((bench.root / "pid").read_text())
    assert not _lives(pid)
    assert list(bench.work.iterdir()) == []


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:1]


def test_too_little_memory_is_told_before_it_starts(bench: Bench) -> None:
    bench.program(f"touch {bench.root}/started")
    with (bench.weights / "model.safetensors").open("wb") as file:
        file.truncate(16 * GB)
    with pytest.raises(HostError) as refused:
        bench.driver().quantize(bench.weights, bench.work, bench.calibration, silent)
    assert "20.2 GB of memory are needed, 4.0 GB are free" in refused.value.message
    assert "nvfp4a16" in refused.value.hint
    assert not (bench.root / "started").exists()


def test_texts_that_have_changed_or_are_gone_are_refused(bench: Bench) -> None:
    bench.program(f"touch {bench.root}/started")
    bench.texts.write_text('{"text": "other"}\n')
    with pytest.raises(SourceError, match="has changed in the meantime"):
        bench.driver().quantize(bench.weights, bench.work, bench.calibration, silent)
    bench.texts.write_bytes(b"\xff\x00\xc3")
    with pytest.raises(SourceError, match="not UTF-8 text"):
        bench.driver().quantize(bench.weights, bench.work, bench.calibration, silent)
    bench.texts.unlink()
    with pytest.raises(HostError, match="cannot be read"):
        bench.driver().quantize(bench.weights, bench.work, bench.calibration, silent)
    assert not (bench.root / "started").exists()


def test_what_it_will_take_is_told_in_words(bench: Bench) -> None:
    told = bench.driver().estimate(bench.weights, bench.calibration)
    assert "with 2 texts of up to 64 tokens, with up to 1.0 GB of memory; takes up to 1 s on 2 idle cores" in told
