"""Machines with GPUs where there are none: a library in front of NVML's place (cli/nvml.c), and what it is told to say.

It follows pynvml's declarations; nothing in it was recorded from a driver.
"""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.core.host import Host

SOURCE = Path(__file__).parent / "cli" / "nvml.c"

RTX_5090 = "NVIDIA GeForce RTX 5090|GPU-aaaa-1|12.0|32607|32000"
RTX_5090_FREER = "NVIDIA GeForce RTX 5090|GPU-bbbb-2|12.0|32607|32500"
H200 = "NVIDIA H200|GPU-cccc-3|9.0|143771|143000"
H100 = "NVIDIA H100 80GB HBM3|GPU-eeee-5|9.0|81559|80900"
# Two MIG devices, with a place between them that has none.
H100_MIG = (
    f"{H100}|mig=NVIDIA H100 80GB HBM3 MIG 3g.40gb:MIG-1111-1:40448:40000,-,"
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb:MIG-2222-2:9984:9900"
)
LOST, LOST_WHEN_ASKED = "lost", "NVIDIA GeForce RTX 5090|lost"

# What NVML_INIT, `fails=` and `hidden=` may be.
NOT_SUPPORTED, NO_PERMISSION, DRIVER_NOT_LOADED, VERSION_MISMATCH, UNKNOWN = "3", "4", "9", "18", "999"

# Above any that Linux gives: it is nobody's, so that its name is what the library says.
NOBODY = 5_000_000


def compiled(directory: Path) -> Path:
    """The directory, with the library in it; for LD_LIBRARY_PATH."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler (cc) to make a stand-in for NVML with")
    out = directory / "libnvidia-ml.so.1"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o", str(out), str(SOURCE)], check=True
    )
    return directory


def machine_env(library: Path, *gpus: str, **env: str) -> dict[str, str]:
    """The environment of a process that sees these GPUs; `env` is for NVML_DRIVER and the like."""
    return {"LD_LIBRARY_PATH": str(library), "NVML_GPUS": ";".join(gpus), **env}


def host_of(env: dict[str, str], *before: str) -> Host:
    """What a new process reads with this environment; `before` is a command that runs it."""
    code = (
        "import pickle, sys; from orchestrator.drivers.host import read_host; "
        "sys.stdout.buffer.write(pickle.dumps(read_host()))"
    )
    own = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    done = subprocess.run([*before, sys.executable, "-c", code], env={**own, **env}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    host = pickle.loads(done.stdout)
    assert isinstance(host, Host)
    return host
