"""GPUs through NVML, the library of the NVIDIA driver."""

from __future__ import annotations

from orchestrator.core.host import Gpu


def read_gpus() -> tuple[tuple[Gpu, ...], str]:
    """The GPUs that answer, and what is wrong with the others, or with the driver (else an empty string).

    No library at all means that there is no NVIDIA GPU, and is no problem.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        return (), ""
    except pynvml.NVMLError as error:
        return (), f"NVML: {error}"
    try:
        return _read_each(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError as error:
        return (), f"NVML: {error}"
    finally:
        _shut_down()


def _read_each(count: int) -> tuple[tuple[Gpu, ...], str]:
    """One that has fallen off the bus must not hide the others."""
    import pynvml

    gpus, problems = [], []
    for index in range(count):
        try:
            gpus.append(_gpu(index))
        except pynvml.NVMLError as error:
            problems.append(f"GPU {index}: {error}")
    return tuple(gpus), f"NVML: {'; '.join(problems)}" if problems else ""


def _gpu(index: int) -> Gpu:
    import pynvml

    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    return Gpu(
        uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
        name=str(pynvml.nvmlDeviceGetName(handle)),
        memory_total=int(memory.total),
        memory_free=int(memory.free),
        compute_capability=(int(major), int(minor)),
        index=index,
    )


def _shut_down() -> None:
    import contextlib

    import pynvml

    with contextlib.suppress(pynvml.NVMLError):  # with a lost GPU this may fail as well, and all is read by now
        pynvml.nvmlShutdown()
