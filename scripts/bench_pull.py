"""What several requests at once are worth when weights are downloaded, side by side, and what they cost.

Run by scripts/bench-pull. A hub on loopback gives each connection --rate MB a second, as a far one may do, and serves
one file of --size MB. Then the same without a limit: what is left is what this machine needs for it, with hashing and
writing; there CPU seconds are the figure to trust, the time is shared with the hub. The hub's own client is shown
beside (one connection, no hash checked). Every pull is a process of its own; its memory is its peak, Python included.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MB = 10**6
REPO = "bench/weights"
FILE = "model.safetensors"


def pull(url: str, into: Path, parallel: int) -> None:
    """Downloads the repository with so many requests at once; 0: with the hub's own client."""
    if parallel:
        from orchestrator.core.progress import silent
        from orchestrator.core.weights import HubSource
        from orchestrator.drivers.hub import Hub

        hub = Hub(url, parallel=parallel)
        hub.fetch(hub.snapshot(HubSource(REPO, "main"), timeout=30), into, silent)
    else:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
        hf_hub_download(REPO, FILE, endpoint=url, local_dir=into, token=False)


def child(url: str, into: Path, parallel: int) -> None:
    """One pull, and its figures as a line of JSON."""
    began = time.monotonic()
    pull(url, into, parallel)
    seconds, used = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"s": seconds, "cpu": used.ru_utime + used.ru_stime, "rss": used.ru_maxrss * 1024}))


def measured(url: str, parallel: int) -> dict[str, float]:
    """The figures of a pull into a directory that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="orch-bench-") as into:
        argv = [sys.executable, __file__, "--child", url, into, str(parallel)]
        done = subprocess.run(argv, stdout=subprocess.PIPE, check=True, env=os.environ | {"HF_HOME": f"{into}/home"})
        figures: dict[str, float] = json.loads(done.stdout)
        return figures


def table(title: str, root: Path, size: int, rate: int, rows: list[int]) -> None:
    """Pulls with each number of requests, and prints them against the first."""
    argv = [sys.executable, str(Path(__file__).with_name("hub_server.py")), "--repo", f"{REPO}={root}"]
    with subprocess.Popen(argv + (["--slow", str(rate)] if rate else []), stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        try:
            url = server.stdout.readline().strip()
            print(f"\n{title}\n{'requests at once':<22}{'s':>7}{'MB/s':>8}{'ratio':>8}{'CPU s':>8}{'peak MB':>9}")
            first = 0.0
            for parallel in rows:
                got = measured(url, parallel)
                first = first or got["s"]
                name = str(parallel) if parallel else "the hub's own client"
                speed = size / MB / got["s"]
                print(
                    f"{name:<22}{got['s']:>7.2f}{speed:>8.1f}{first / got['s']:>8.2f}"
                    f"{got['cpu']:>8.2f}{got['rss'] / MB:>9.0f}",
                    flush=True,
                )
        finally:
            server.terminate()


def main() -> None:
    """Two tables on stdout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, metavar="MB")
    parser.add_argument("--rate", type=int, default=20, metavar="MB", help="a second and connection")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        url, into, parallel = options.child
        child(url, Path(into), int(parallel))
        return
    size = options.size * MB
    with tempfile.TemporaryDirectory(prefix="orch-bench-") as root:
        data = random.Random(0).randbytes(MB)
        with (Path(root) / FILE).open("wb") as file:
            for number in range(options.size):
                file.write(number.to_bytes(8, "little") + data[8:])
        title = f"One file of {options.size} MB, {options.rate} MB/s for each connection"
        table(title, Path(root), size, options.rate * MB, [1, 2, 4, 8, 0])
        table("The same without a limit", Path(root), size, 0, [1, 4, 0])


if __name__ == "__main__":
    main()
