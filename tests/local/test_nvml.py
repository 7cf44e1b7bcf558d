"""What orch reads of a machine's GPUs: NVML is a small library that answers as the real one does."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from gpu_machines import (
    DRIVER_NOT_LOADED,
    H100,
    H100_MIG,
    H200,
    LOST,
    LOST_WHEN_ASKED,
    NO_PERMISSION,
    NOBODY,
    NOT_SUPPORTED,
    RTX_5090,
    UNKNOWN,
    VERSION_MISMATCH,
    compiled,
    host_of,
    machine_env,
)

from orchestrator.core.host import Gpu, GpuSample, GpuUser, Host
from orchestrator.drivers.host import amd_in, visible
from orchestrator.drivers.nvml import FIRST_PID_NAMESPACE

MIB = 2**20
GIB = 2**30
OTHER = NOBODY + 1
THIRD = NOBODY + 2
IN_A_CONTAINER = str(Path("/proc/self/ns/pid").readlink()) != FIRST_PID_NAMESPACE
CUDA_13 = {"NVML_DRIVER": "580.65.06", "NVML_CUDA": "13.0"}

Read = Callable[..., Host]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def read(library: Path) -> Read:
    """The Host of a machine with these GPUs."""

    def host(*gpus: str, **env: str) -> Host:
        return host_of(machine_env(library, *gpus, **env))

    return host


def told(line: str, index: int = 0) -> Gpu:
    """The GPU of a line as orch should read it, without processes."""
    name, uuid, capability, total, free = line.split("|")[:5]
    major, minor = capability.split(".")
    return Gpu(uuid, name, int(total) * MIB, int(free) * MIB, (int(major), int(minor)), index, minor=index)


def without_users(host: Host) -> tuple[Gpu, ...]:
    return tuple(replace(gpu, users=(), users_complete=False) for gpu in host.gpus)


@pytest.mark.parametrize(
    "gpus", [(RTX_5090,), (H200,), (RTX_5090, H200)], ids=["RTX 5090", "H200", "RTX 5090 and H200"]
)
def test_whole_gpus(read: Read, gpus: tuple[str, ...]) -> None:
    host = read(*gpus, **CUDA_13)
    assert without_users(host) == tuple(told(line, index) for index, line in enumerate(gpus))
    assert (host.gpu_problem, host.driver, host.cuda) == ("", "580.65.06", (13, 0))
    assert all(gpu.users == () for gpu in host.gpus)


@pytest.mark.parametrize(("cuda", "version"), [("12.9", (12, 9)), ("13.10", (13, 10)), ("", None)])
def test_the_newest_cuda_of_the_driver(read: Read, cuda: str, version: tuple[int, int] | None) -> None:
    host = read(RTX_5090, NVML_DRIVER="570.86.10", NVML_CUDA=cuda)
    assert (host.driver, host.cuda) == ("570.86.10", version)


def test_a_driver_that_does_not_tell_its_version_has_gpus_all_the_same(read: Read) -> None:
    host = read(RTX_5090)
    assert (host.driver, host.cuda, len(host.gpus), host.gpu_problem) == ("", None, 1, "")


def test_the_number_of_the_device_file(read: Read) -> None:
    assert [gpu.minor for gpu in read(f"{RTX_5090}|minor=3", H200).gpus] == [3, 1]


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (LOST, "GPU is lost"),
        (LOST_WHEN_ASKED, "GPU is lost"),
        (f"fails={NO_PERMISSION}", "Insufficient Permissions"),
        (f"NVIDIA H200|fails={UNKNOWN}", "Unknown Error"),
    ],
)
def test_a_gpu_that_does_not_answer_is_told_and_hides_no_other(read: Read, bad: str, problem: str) -> None:
    host = read(bad, RTX_5090, **CUDA_13)
    assert without_users(host) == (told(RTX_5090, 1),)
    assert host.gpu_problem == f"NVML: GPU 0: {problem}"
    assert host.driver == "580.65.06"


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        (DRIVER_NOT_LOADED, "Driver Not Loaded"),
        (VERSION_MISMATCH, "RM has detected an NVML/RM version mismatch."),
        (NO_PERMISSION, "Insufficient Permissions"),
    ],
)
def test_a_driver_that_does_not_work_is_told(read: Read, code: str, problem: str) -> None:
    host = read(RTX_5090, NVML_INIT=code, **CUDA_13)
    assert (host.gpus, host.driver, host.cuda) == ((), "", None)
    assert host.gpu_problem == f"NVML: {problem}"


def test_no_library_is_no_problem(tmp_path: Path) -> None:
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        host = host_of({"LD_LIBRARY_PATH": str(tmp_path)})
        assert (host.gpus, host.gpu_problem, host.driver, host.cuda) == ((), "", "", None)
    else:
        pytest.skip("this machine has the library")


def test_mig_devices_stand_for_their_gpu(read: Read) -> None:
    host = read(RTX_5090, f"{H100_MIG}|minor=4|processes={NOBODY}:python3:7000:2,{OTHER}:ollama:300:0")
    whole, large, small = host.gpus
    assert (whole.parent, large.parent, small.parent) == ("", "GPU-eeee-5", "GPU-eeee-5")
    assert (large.uuid, small.uuid) == ("MIG-1111-1", "MIG-2222-2")
    assert small.name == "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
    assert (small.memory_total, small.memory_free) == (9984 * MIB, 9900 * MIB)
    assert {(gpu.index, gpu.minor, gpu.compute_capability) for gpu in (large, small)} == {(1, 4, (9, 0))}
    assert large.users == (GpuUser(OTHER, "ollama", 300 * MIB),)
    assert small.users == (GpuUser(NOBODY, "python3", 7000 * MIB),)
    assert host.gpu_problem == ""


def test_mig_without_instances_is_told_and_left_out(read: Read) -> None:
    for none in ("", "-,-"):
        host = read(f"{H100}|mig={none}", RTX_5090)
        assert [gpu.uuid for gpu in host.gpus] == ["GPU-aaaa-1"]
        assert host.gpu_problem.startswith("NVML: GPU 0: MIG is on, but it has no instances (")


@pytest.mark.parametrize(
    ("asked", "uuids"),
    [
        ("0", ["GPU-aaaa-1"]),
        ("1", ["MIG-1111-1"]),
        ("1,0", ["MIG-1111-1", "GPU-aaaa-1"]),
        ("2", []),
        ("MIG-2222-2", ["MIG-2222-2"]),
        ("MIG-22", ["MIG-2222-2"]),
        ("MIG-2222-2,MIG-1111-1", ["MIG-2222-2", "MIG-1111-1"]),
        ("MIG-3,MIG-1111-1", []),
        ("GPU-eeee-5", ["MIG-1111-1"]),
        ("mig-2222-2", []),
    ],
)
def test_visible_mig_devices(read: Read, asked: str, uuids: list[str]) -> None:
    host = read(RTX_5090, H100_MIG, CUDA_VISIBLE_DEVICES=asked)
    assert [gpu.uuid for gpu in host.gpus] == uuids
    assert bool(host.gpu_problem) is (not uuids)


def test_an_entry_of_no_letters_names_nothing() -> None:
    assert visible((told(RTX_5090),), " ,0") == ()


def test_who_holds_the_memory(read: Read) -> None:
    line = RTX_5090.replace("|32000", "|9000")
    host = read(
        f"{line}|processes={NOBODY}:ollama:20000,{OTHER}:python3:1500"
        f"|graphics={THIRD}:Xorg:200,{OTHER}:python3:1500|mps={NOBODY + 3}:vllm:100",
        H200,
    )
    busy, idle = host.gpus
    assert {user.pid: (user.name, user.memory // MIB) for user in busy.users} == {
        NOBODY: ("ollama", 20000),
        OTHER: ("python3", 1500),
        THIRD: ("Xorg", 200),
        NOBODY + 3: ("vllm", 100),
    }
    assert len(busy.users) == 4
    assert idle.users == ()


def test_a_process_that_lives_has_the_name_that_the_kernel_knows(read: Read) -> None:
    sleeper = shutil.which("sleep")
    assert sleeper is not None
    with subprocess.Popen([sleeper, "60"]) as process:
        try:
            (gpu,) = read(f"{RTX_5090}|processes={process.pid}:wrong:500").gpus
        finally:
            process.kill()
    assert gpu.users == (GpuUser(process.pid, "sleep", 500 * MIB),)


def test_what_the_driver_does_not_tell_of_a_process_is_zero_and_never_lingers(read: Read) -> None:
    busy = RTX_5090.replace("|32000", "|9000")
    (gpu,) = read(f"{busy}|processes=0:-:300,0:-:300,{NOBODY}:python3:?|graphics={OTHER}:Xorg:200").gpus
    assert sorted(gpu.users, key=lambda user: (user.pid, user.memory)) == [
        *(GpuUser(0, "", 300 * MIB), GpuUser(0, "", 300 * MIB)),
        *(GpuUser(NOBODY, "python3", 0), GpuUser(OTHER, "Xorg", 200 * MIB)),
    ]
    assert gpu.lingering == 0
    # In one list with its memory and in the other without: not told.
    (gpu,) = read(f"{busy}|processes={NOBODY}:python3:?|graphics={NOBODY}:python3:200").gpus
    assert gpu.users == (GpuUser(NOBODY, "python3", 0),)


@pytest.mark.parametrize("code", [NOT_SUPPORTED, NO_PERMISSION, UNKNOWN])
def test_processes_that_are_not_listed_are_no_problem_and_nothing_lingers(read: Read, code: str) -> None:
    host = read(RTX_5090.replace("|32000", "|9000") + f"|hidden={code}")
    (gpu,) = host.gpus
    assert (gpu.users, gpu.users_complete, gpu.lingering, host.gpu_problem) == ((), False, 0, "")


@pytest.mark.skipif(IN_A_CONTAINER, reason="in a container it is not known who holds a GPU's memory")
@pytest.mark.parametrize(
    ("processes", "lingering"),
    [("", 22955), (f"|processes={NOBODY}:ollama:22000", 955), (f"|processes={NOBODY}:ollama:23500", 0)],
)
def test_memory_that_nobody_holds_lingers(read: Read, processes: str, lingering: int) -> None:
    (gpu,) = read(RTX_5090.replace("|32000", "|9000") + processes).gpus
    assert gpu.users_complete
    # 32607 - 9000, and 652 are the driver's: 2 %.
    assert gpu.lingering // MIB == pytest.approx(lingering, abs=1)


@pytest.mark.skipif(IN_A_CONTAINER, reason="in a container it is not known who holds a GPU's memory")
def test_memory_lingers_on_a_mig_device_too(read: Read) -> None:
    large, small = read(H100_MIG.replace(":9900", ":1000")).gpus
    assert large.lingering == 0
    assert small.lingering == (9984 - 1000) * MIB - 6 * GIB // 10


def test_in_a_container_nothing_lingers(library: Path) -> None:
    unshare = shutil.which("unshare")
    before = [unshare or "unshare", "--user", "--map-root-user", "--pid", "--fork"]
    if unshare is None or subprocess.run([*before, "true"], capture_output=True).returncode:
        pytest.skip("a PID namespace cannot be made here")
    busy = RTX_5090.replace("|32000", "|9000")
    (gpu,) = host_of(machine_env(library, f"{busy}|processes={NOBODY}:ollama:2000"), *before).gpus
    assert gpu.users == (GpuUser(NOBODY, "ollama", 2000 * MIB),)
    assert (gpu.users_complete, gpu.lingering) == (False, 0)


def test_the_memory_that_is_free_may_change(read: Read, tmp_path: Path) -> None:
    free = tmp_path / "free"

    def now(text: str) -> list[int]:
        free.write_text(text)
        return [gpu.memory_free // MIB for gpu in read(RTX_5090, H100_MIG, H200, NVML_FREE_FILE=str(free)).gpus]

    assert now("100\n200 0 300\n400\n") == [100, 200, 300, 400]
    assert now("31000\n\n400\n") == [31000, 40000, 9900, 400]
    assert now("") == [32000, 40000, 9900, 143000]
    free.unlink()
    assert [gpu.memory_free for gpu in read(H200, NVML_FREE_FILE=str(free)).gpus] == [143000 * MIB]


def test_an_amd_gpu_is_there_when_its_devices_are(tmp_path: Path) -> None:
    assert not amd_in(tmp_path)
    (tmp_path / "dri").mkdir()
    assert not amd_in(tmp_path)  # any GPU has that
    (tmp_path / "kfd").touch()
    assert amd_in(tmp_path)


GPU = Gpu("GPU-1", "NVIDIA H200", 140 * GIB, 100 * GIB, (9, 0), users_complete=True)


@pytest.mark.parametrize(
    ("gpu", "gib"),
    [
        (GPU, 37.2),  # 2 % of 140 GiB are the driver's
        (replace(GPU, users=(GpuUser(1, "a", 30 * GIB), GpuUser(2, "b", 5 * GIB))), 2.2),
        (replace(GPU, users=(GpuUser(1, "a", 40 * GIB),)), 0),
        (replace(GPU, users=(GpuUser(1, "a", 60 * GIB),)), 0),
        (replace(GPU, users=(GpuUser(1, "a", 5 * GIB), GpuUser(0, "", 0))), 0),
        (replace(GPU, users_complete=False), 0),
        (replace(GPU, memory_total=8 * GIB, memory_free=7 * GIB), 0.4),  # 0.6 GiB are the driver's
        (replace(GPU, memory_total=8 * GIB, memory_free=8 * GIB), 0),
    ],
)
def test_what_lingers(gpu: Gpu, gib: float) -> None:
    assert gpu.lingering == pytest.approx(gib * GIB, abs=16)


def test_what_gpus_do_is_sampled(library: Path) -> None:
    """The whole GPU tells all; another one has no power and no utilization to tell; one that is lost is left out."""
    gpus = (f"{RTX_5090}|watts=412|busy=97", H200, LOST_WHEN_ASKED)
    code = (
        "from orchestrator.drivers.nvml_samples import sampling\n"
        "with sampling(['GPU-aaaa-1', 'GPU-cccc-3', 'GPU-none']) as look: print(look())"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **machine_env(library, *gpus)}, capture_output=True, text=True
    )
    samples = eval(told.stdout, {"GpuSample": GpuSample})
    assert samples == (
        GpuSample("GPU-aaaa-1", 607 * MIB, 412.0, 97),
        GpuSample("GPU-cccc-3", 771 * MIB, None, None),
    )


def test_without_a_driver_there_is_nothing_to_sample(library: Path) -> None:
    code = (
        "from orchestrator.drivers.nvml_samples import sampling\nwith sampling(['GPU-aaaa-1']) as look: print(look())"
    )
    env = {**os.environ, **machine_env(library, RTX_5090, NVML_INIT=DRIVER_NOT_LOADED)}
    told = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert told.stdout == "()\n"
