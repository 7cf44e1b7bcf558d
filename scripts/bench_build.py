"""What a build costs beside the reference program for it: CPU time, memory, and whether the bytes are the same.

    scripts/bench-build gguf             safetensors to Q6_K: orch build gguf, beside llama.cpp's convert_hf_to_gguf.py
                                         to BF16 and llama_model_quantize to Q6_K, on all cores, both steps counted
    scripts/bench-build nvfp4            safetensors to NVFP4A16: orch build nvfp4, beside llm-compressor's
                                         model_free_ptq with one worker, on layers of the size of Qwen3-8B's
    scripts/bench-build nvfp4 --size 4 --shards 1 --alone       what a shard of 4 GB takes

Run by scripts/bench-build. The two take turns, each run is a process of its own, and the model (random weights from a
fixed seed: scripts/bench_model.py) is in the page cache, where it fits, when the first begins. Where the reference
comes from says scripts/bench_reference.py; its environment (gguf: 1.3 GB, nvfp4: 1.5 GB), the model and the results
stay in .bench/ beside this checkout. CPU seconds are the figure to trust: wall time says how busy the machine was, and
CPU seconds too grow by some 10 % on a busy one, for both alike; so the least of several runs counts, and the median is
shown beside it. Starting is counted for both (imports; orch also compiles its Q6_K), and weighs less in larger models:
--size 0.3 shows how much it is.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from bench_measure import Cost, measured  # noqa: E402  scripts/ is no package

BENCH = ROOT / ".bench"
PYTHON = sys.executable
# Gigabytes of bf16, and shards.
SIZES = {"gguf": 1.7, "nvfp4": 1.2}
SHARDS = {"gguf": 3, "nvfp4": 2}
# What is to be reached: CPU seconds as a part of theirs, and resident bytes.
GOALS = {"gguf": (0.7, 1.0e9), "nvfp4": (0.25, 1.5e9)}
THEIRS = {"gguf": "llama.cpp", "nvfp4": "llm-compressor"}

Run = Callable[[], Cost]


def main() -> int:
    """The exit code: 1 when the bytes differ, or a goal is missed."""
    asked = _arguments()
    kind, tell = asked.kind, sys.stderr if asked.json else sys.stdout
    model = _model(kind, asked.size or SIZES[kind], asked.shards or SHARDS[kind])
    runs = {"orch": _ours(kind, model)}
    if not asked.alone:
        runs[THEIRS[kind]] = _theirs(kind, model)
    costs: dict[str, list[Cost]] = {name: [] for name in runs}
    for turn in range(asked.runs):
        for name, run in runs.items():
            costs[name].append(run())
            print(f"run {turn + 1}  {name:15} {_line(costs[name][-1])}", file=tell, flush=True)
    report = _report(kind, model, costs)
    if not asked.alone:
        report["same_bytes"] = _same(kind)
    print(json.dumps(report, indent=1) if asked.json else _table(report))
    return 0 if report["reached"] and report.get("same_bytes", True) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=list(SIZES))
    parser.add_argument("--size", type=float, help="gigabytes of bf16 weights, about (gguf: 1.7, nvfp4: 1.2)")
    parser.add_argument("--shards", type=int, help="files that they are split into (gguf: 3, nvfp4: 2)")
    parser.add_argument("--runs", type=int, default=3, help="of each (3)")
    parser.add_argument("--alone", action="store_true", help="without the reference")
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    asked = parser.parse_args()
    if asked.runs < 1 or (asked.size or 1) <= 0 or (asked.shards or 1) < 1:
        parser.error("--size, --shards and --runs are more than nothing")
    return asked


def _model(kind: str, size: float, shards: int) -> Path:
    """The model to build from. It is made, and warmed, by another process, so that this one stays small."""
    model = BENCH / "models" / f"{kind}-{size:g}-{shards}"
    script = str(ROOT / "scripts/bench_model.py")
    subprocess.run([PYTHON, script, kind, str(model), str(size), str(shards)], check=True)
    return model


def _clean(*outputs: Path) -> None:
    for output in outputs:
        shutil.rmtree(output, ignore_errors=True)
        output.unlink(missing_ok=True)


def _ours(kind: str, model: Path) -> Run:
    out = BENCH / f"ours-{kind}"

    def run() -> Cost:
        _clean(out)
        words = [PYTHON, "-m", "orchestrator", "build", kind, str(model), "-o", str(out), "--json"]
        return measured(words, BENCH / "ours.log", {"ORCH_HOME": str(BENCH / "home")})

    return run


def _theirs(kind: str, model: Path) -> Run:
    """Fetches the reference, in a process of its own for the same reason."""
    out, between, log = BENCH / f"theirs-{kind}", BENCH / "theirs-bf16.gguf", BENCH / "theirs.log"
    script = str(ROOT / "scripts/bench_reference.py")
    found = subprocess.run([PYTHON, script, kind, str(BENCH)], stdout=subprocess.PIPE, text=True, check=False)
    if found.returncode:
        raise SystemExit(found.returncode)
    reference = json.loads(found.stdout)
    program = [reference["python"], str(ROOT / "scripts/bench_theirs.py")]
    offline = {"HF_HUB_OFFLINE": "1", "PYTHONNOUSERSITE": "1"}

    def run() -> Cost:
        _clean(out, between)
        if kind == "nvfp4":
            return measured([*program, "nvfp4", str(model), str(out)], log, offline)
        converted = measured([*program, "convert", str(model), str(between)], log, offline)
        quantized = measured([*program, "quantize", reference["libraries"], str(between), str(out)], log, offline)
        between.unlink()
        return converted.then(quantized)

    return run


def _same(kind: str) -> bool:
    """Whether both made the same tensors, byte for byte."""
    from bench_same import differences

    found = differences(kind, BENCH / f"ours-{kind}", BENCH / f"theirs-{kind}")
    for line in found[:10]:
        print(line, file=sys.stderr)
    return not found


def _report(kind: str, model: Path, costs: dict[str, list[Cost]]) -> dict[str, Any]:
    share, memory = GOALS[kind]
    read = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    builders = {
        name: {
            "cpu_s": {"least": min(c.cpu_s for c in some), "median": statistics.median(c.cpu_s for c in some)},
            "wall_s": {"least": min(c.wall_s for c in some), "median": statistics.median(c.wall_s for c in some)},
            "peak_bytes": max(c.peak_bytes for c in some),
            "runs": [c.as_dict() for c in some],
        }
        for name, some in costs.items()
    }
    report: dict[str, Any] = {
        "kind": kind,
        "bytes": read,
        "shards": len(list(model.glob("*.safetensors"))),
        "cores": len(os.sched_getaffinity(0)),
        "builders": builders,
        "goal": {"cpu_ratio": share, "peak_bytes": memory},
        "reached": builders["orch"]["peak_bytes"] < memory,
    }
    if len(costs) > 1:
        ours, theirs = builders["orch"], builders[THEIRS[kind]]
        report["ratio"] = {
            f"cpu_{which}": ours["cpu_s"][which] / theirs["cpu_s"][which] for which in ("least", "median")
        } | {"peak": ours["peak_bytes"] / theirs["peak_bytes"]}
        report["reached"] = report["reached"] and report["ratio"]["cpu_least"] <= share
    return report


def _line(cost: Cost) -> str:
    return f"{cost.cpu_s:7.1f} CPU s {cost.wall_s:7.1f} s {cost.peak_bytes / 1e6:7.0f} MB"


def _table(report: dict[str, Any]) -> str:
    lines = [
        "",
        f"{report['bytes'] / 1e9:.2f} GB of bf16 in {report['shards']} shards, {report['cores']} cores",
        f"{'':17} {'CPU s':>7} {'median':>7} {'wall s':>7} {'median':>7} {'peak MB':>8}",
    ]
    for name, one in report["builders"].items():
        cpu, wall = one["cpu_s"], one["wall_s"]
        lines.append(
            f"{name:17} {cpu['least']:7.1f} {cpu['median']:7.1f} {wall['least']:7.1f} {wall['median']:7.1f}"
            f" {one['peak_bytes'] / 1e6:8.0f}"
        )
    goal, ratio = report["goal"], report.get("ratio")
    if ratio is not None:
        lines.append(f"{'orch / theirs':17} {ratio['cpu_least']:7.2f} {ratio['cpu_median']:7.2f} {ratio['peak']:24.2f}")
        lines.append(f"tensors: {'the same bytes' if report['same_bytes'] else 'DIFFERENT'}")
    bound = f"at most {goal['cpu_ratio']} of their CPU time, and " if ratio is not None else ""
    verdict = "reached" if report["reached"] else "MISSED"
    lines.append(f"goal: {bound}less than {goal['peak_bytes'] / 1e6:.0f} MB: {verdict}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
