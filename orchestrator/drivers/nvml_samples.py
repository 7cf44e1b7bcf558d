"""What GPUs do at a moment, through NVML: asked again and again while something is measured."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pynvml

from orchestrator.core.host import GpuSample

T = TypeVar("T")


@contextmanager
def sampling(uuids: Iterable[str]) -> Iterator[Callable[[], tuple[GpuSample, ...]]]:
    """What to call for a sample of each of these GPUs that answers. The library stays loaded meanwhile; where there is
    none, nor a driver, no sample comes."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield lambda: ()
        return
    try:
        handles = {uuid: _told(pynvml.nvmlDeviceGetHandleByUUID, uuid) for uuid in uuids}
        there = [(uuid, handle) for uuid, handle in handles.items() if handle is not None]
        yield lambda: tuple(sample for one in there if (sample := _told(_sample, *one)) is not None)
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _sample(uuid: str, handle: Any) -> GpuSample:
    milliwatts = _told(pynvml.nvmlDeviceGetPowerUsage, handle)
    rates = _told(pynvml.nvmlDeviceGetUtilizationRates, handle)
    return GpuSample(
        uuid,
        int(pynvml.nvmlDeviceGetMemoryInfo(handle).used),
        float(milliwatts) / 1000 if milliwatts is not None else None,
        int(rates.gpu) if rates is not None else None,
    )


def _told(ask: Callable[..., T], *asked: Any) -> T | None:
    """None where the driver has no answer."""
    try:
        return ask(*asked)
    except pynvml.NVMLError:
        return None
