"""10^5 mutated files for the readers, and JSON that they find beside them: 10^4 others with each commit, and in
`scripts/test long` the same 10^5. ORCH_FUZZ=N makes it N times as many.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

TIMES = int(os.environ.get("ORCH_FUZZ", "1"))
PROGRAM = Path(__file__).with_name("fuzz_readers.py")
GROWN_KIB = 16 << 10


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.parametrize(
    ("kind", "count", "seed", "least_read"),
    [
        ("gguf", 30_000, 1, 1_500),
        ("gguf", 25_000, 2, 1_500),
        ("safetensors", 45_000, 3, 1_000),
        ("json", 1_000, 4, 200),
    ],
)
def test_a_mutated_file_is_refused_or_read(
    kind: str, count: int, seed: int, least_read: int, thorough: bool, chance: random.Random
) -> None:
    if TIMES > 1:
        # More of them are others.
        count, least_read, seed = count * TIMES, least_read * TIMES, 1000 * TIMES + seed
    elif not thorough:
        count, least_read, seed = count // 10, least_read // 10, chance.randrange(10_000, 10**9)
    done = subprocess.run(
        [sys.executable, str(PROGRAM), kind, str(count), str(seed)],
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300 * TIMES,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen.pop("grown_kib") < GROWN_KIB
    assert sum(seen.values()) == count
    assert seen["refused"] > least_read
    assert seen["read"] > least_read
