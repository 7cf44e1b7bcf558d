"""llm-compressor in an environment of its own: weights to NVFP4 whose activations are 4-bit too (W4A4).

It runs as one process with all of the weights in memory, on a GPU where there is one; what it says on the way becomes
Progress. It ends with orch, however that ends.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from orchestrator.core.calibration import Calibration, cost, parse_texts
from orchestrator.core.host import Host
from orchestrator.core.progress import Progress
from orchestrator.core.text import decoded
from orchestrator.core.weights import shape_of
from orchestrator.drivers.files import host_errors, read_json
from orchestrator.drivers.local.command import Finished, allowed_environ, run_command
from orchestrator.drivers.local.proc import MARKER
from orchestrator.errors import HostError, OrchError, SourceError

_JOB = Path(__file__).with_name("llmcompressor_job.py")
# Within the work directory: its caches, and the texts as they were checked.
_SCRATCH = ".llmcompressor"
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONNOUSERSITE": "1",
}
# Its progress bars: "(2/5): Calibrating:  88%|####  | 7/8 [...]", "Compressing model:  21%|## | 6/28 [...]".
_LAYER = re.compile(r"\((\d+)/(\d+)\): (Calibrating|Propagating):.*\| (\d+)/(\d+) \[")
_BAR = re.compile(r"(Loading weights|Compressing model|Writing model shards):.*\| (\d+)/(\d+) \[")
_KILLED = -9
_LESS = "nvfp4a16 is built from row blocks in under 1 GB; or build on a machine with more memory."


class LlmCompressor:
    """`bin_of` gives the bin directory of an environment by its name, `host` the machine as it is now."""

    def __init__(self, bin_of: Callable[[str], Path], host: Callable[[], Host]) -> None:
        self._bin_of = bin_of
        self._host = host

    def estimate(self, source: Path, calibration: Calibration) -> str:
        """What it will take, for people. HostError where the machine has too little memory, SourceError where the
        texts are none."""
        texts, host = _texts(calibration), self._host()
        weights = sum(path.stat().st_size for path in source.glob("*.safetensors"))
        needed = cost(weights, shape_of(read_json(source / "config.json")), len(texts), calibration.tokens)
        if needed.memory > host.memory_available:
            raise HostError(
                f"llm-compressor holds all of the weights: {_gb(needed.memory)} of memory are needed, "
                f"{_gb(host.memory_available)} are free{f' in {host.memory.name}' if host.memory_limit_file else ''}.",
                _LESS,
            )
        what = f"Calibrates with {len(texts)} texts of up to {calibration.tokens} tokens"
        memory = f"up to {_gb(needed.memory)} of memory"
        if host.gpus:
            return f"{what} on {host.gpus[0].name}, with {memory}; how long that takes was never measured."
        return f"{what}, with {memory}; takes up to {_long(needed.core_s / host.cpus)} on {host.cpus} idle cores."

    def quantize(self, source: Path, work: Path, calibration: Calibration, progress: Progress) -> None:
        """Writes the quantized weights and their config.json into `work`, which exists.

        SourceError where texts or weights are not what they have to be, HostError where the machine or the program
        fails; what `progress` raises ends the program first.
        """
        self.estimate(source, calibration)
        python = self._bin_of(calibration.environment.name) / "python"
        scratch = work / _SCRATCH
        with host_errors(f"write {work}"):
            scratch.mkdir()
            lines = (json.dumps(text, ensure_ascii=False) for text in _texts(calibration))
            (scratch / "texts.jsonl").write_text("".join(f"{line}\n" for line in lines), "utf-8")
        argv = [str(python), "-I", str(_JOB), str(source.resolve()), str(work.resolve())]
        argv += [str((scratch / "texts.jsonl").resolve()), str(calibration.tokens)]
        bars = _ProgressBars(progress)
        environ = allowed_environ() | _QUIET | {MARKER: str(python.parent.parent), "HF_HOME": str(scratch.resolve())}
        # By itself it takes as many as its affinity has, whatever the quota of its control group.
        environ["OMP_NUM_THREADS"] = str(self._host().cpus)
        try:
            finished = run_command(argv, environ, tick=bars.tick, on_line=bars.line, cwd=scratch)
        except OSError as error:
            raise HostError(f"llm-compressor cannot be started: {error.strerror}.", "orch engines ls") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        if finished.code != 0:
            raise _failure(finished)


class _ProgressBars:
    """Where the program is, from its own progress bars."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._at: tuple[str, int, int] = ("starting llm-compressor", 0, 0)

    def tick(self) -> None:
        self._progress(*self._at)

    def line(self, line: str) -> None:
        if found := _LAYER.search(line):
            part, parts, done, total = (int(found[number]) for number in (1, 2, 4, 5))
            # Every part runs over all texts twice: to be observed, and to go on with what it gives.
            before = (2 * (part - 1) + (found[3] == "Propagating")) * total
            self._at = (f"calibrating, part {part} of {parts}", before + done, 2 * parts * total)
        elif found := _BAR.search(line):
            self._at = (found[1].lower(), int(found[2]), int(found[3]))


def _texts(calibration: Calibration) -> list[dict[str, object]]:
    """The texts, if they are still those that the digest is of."""
    try:
        data = Path(calibration.path).read_bytes()
        text = decoded(data)
    except OSError as error:
        raise HostError(f"{calibration.path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise SourceError(f"{calibration.path} cannot be read: {error}.", "Save it as UTF-8.") from error
    if hashlib.sha256(data).hexdigest() != calibration.digest:
        raise SourceError(f"{calibration.path} has changed in the meantime.", "Run the same command again.")
    return parse_texts(text, calibration.path, calibration.samples)


def _failure(finished: Finished) -> OrchError:
    """The program's telling line, and what to do."""
    lines = [line.strip() for line in finished.lines if line.strip()]
    detail = "\n".join(lines[-20:])
    if known := next((line for line in lines if line.startswith("error: ")), ""):
        return SourceError(f"llm-compressor: {known.removeprefix('error: ')}.", "", detail)
    if finished.out_of_memory:
        return HostError(f"llm-compressor {finished.out_of_memory}.", _LESS, detail)
    if finished.code == _KILLED:
        return HostError("llm-compressor was killed; memory may have run out.", "See dmesg.", detail)
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    hint = "Fewer tokens may fit: [calibration] tokens." if "out of memory" in detail else ""
    return HostError(f"llm-compressor failed: {(named or lines or ['it said nothing'])[-1]}", hint, detail)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _long(seconds: float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{max(1, seconds):.0f} s"
