"""GPUs through NVML, the library of the NVIDIA driver."""

from __future__ import annotations

from orchestrator.core.host import Gpu


def read_gpus() -> tuple[tuple[Gpu, ...], str]:
    """All GPUs, and why there are none where a driver is there but does not work (else an empty string)."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        return (), ""
    except pynvml.NVMLError as error:
        return (), f"NVML: {error}"
    try:
        return tuple(_gpu(index) for index in range(pynvml.nvmlDeviceGetCount())), ""
    except pynvml.NVMLError as error:
        return (), f"NVML: {error}"
    finally:
        pynvml.nvmlShutdown()


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
    )
