"""Whether a driver can run an image: by the NVIDIA_REQUIRE_CUDA of real images, and by the pin where none is here."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes.asks import CPU, gpu, image

from orchestrator.core.host import Host
from orchestrator.core.images import ImageFacts
from orchestrator.core.pins import Accelerator
from orchestrator.engines.driver_support import driver_cannot

# As images of CUDA 12.9 and 13.0 carry them, shortened: the brands of data-centre boards that older drivers serve.
CUDA_12_9 = (
    "cuda>=12.9 "
    "brand=unknown,driver>=535,driver<536 brand=grid,driver>=535,driver<536 brand=tesla,driver>=535,driver<536 "
    "brand=quadrortx,driver>=535,driver<536 brand=titanrtx,driver>=535,driver<536 "
    "brand=unknown,driver>=570,driver<571 brand=tesla,driver>=570,driver<571 brand=geforcertx,driver>=570,driver<571"
)
CUDA_13_0 = "cuda>=13.0 brand=unknown,driver>=570,driver<571 brand=tesla,driver>=570,driver<571"

GEFORCE = (gpu("GeForce RTX 5090", (12, 0), 32),)
TITAN = (gpu("TITAN RTX", (7, 5), 24),)
H200 = (gpu("H200", (9, 0), 140),)
DRIVERS = {
    "535.274.02": (12, 2),
    "550.90.07": (12, 4),
    "570.86.15": (12, 8),
    "575.57.08": (12, 9),
    "580.65.06": (13, 0),
}


def host(driver: str, *gpus: object) -> Host:
    return replace(CPU, driver=driver, cuda=DRIVERS[driver], gpus=gpus)


def told(requires: str, on: Host, cuda: str | None = None) -> str:
    return driver_cannot(image("v", "1", Accelerator.CUDA, cuda=cuda), ImageFacts("sha256:1", requires=requires), on)


@pytest.mark.parametrize(
    ("requires", "driver", "gpus", "runs"),
    [
        (CUDA_12_9, "575.57.08", GEFORCE, True),
        (CUDA_12_9, "580.65.06", GEFORCE, True),
        # A GeForce has no forward compatibility, whatever the expression says of its brand.
        (CUDA_12_9, "570.86.15", GEFORCE, False),
        (CUDA_12_9, "535.274.02", TITAN, False),
        (CUDA_12_9, "570.86.15", H200, True),
        (CUDA_12_9, "535.274.02", H200, True),
        # Between the branches that are named.
        (CUDA_12_9, "550.90.07", H200, False),
        (CUDA_13_0, "580.65.06", GEFORCE, True),
        (CUDA_13_0, "575.57.08", GEFORCE, False),
        (CUDA_13_0, "575.57.08", H200, False),
        (CUDA_13_0, "570.86.15", H200, True),
        ("", "535.274.02", GEFORCE, True),
    ],
)
def test_the_images_own_word(requires: str, driver: str, gpus: tuple[object, ...], runs: bool) -> None:
    reason = told(requires, host(driver, *gpus))
    assert (reason == "") is runs
    if not runs:
        version = "12.9" if requires == CUDA_12_9 else "13.0"
        runs_up_to = ".".join(map(str, DRIVERS[driver]))
        assert reason == f"it requires CUDA {version}; the NVIDIA driver {driver} runs CUDA up to {runs_up_to}"


@pytest.mark.parametrize(
    ("requires", "holds"),
    [
        ("cuda>=12.0,driver>=575", True),
        ("cuda>=12.0,driver>=580", False),
        ("cuda>12.9", False),
        ("cuda<13", True),
        ("cuda<=12.9", True),
        ("cuda=12.9", True),
        ("cuda!=12.9", False),
        ("driver>=575.57.08", True),
        ("driver>=575.57.09", False),
        # What orch does not understand forbids nothing.
        ("cuda>=12.0,arch>=7.5", True),
        ("cuda>=12.0,somethingelse", True),
    ],
)
def test_constraints(requires: str, holds: bool) -> None:
    assert (told(requires, host("575.57.08", *H200)) == "") is holds


def test_the_images_own_word_comes_before_the_pins() -> None:
    on = host("570.86.15", *GEFORCE)
    assert told("cuda>=12.0", on, cuda="13.0") == ""
    assert told(CUDA_12_9, on, cuda="12.9") != ""


@pytest.mark.parametrize(
    ("cuda", "driver", "reason"),
    [
        ("13.0", "580.65.06", ""),
        ("12.9", "580.65.06", ""),
        ("13.0", "570.86.15", "it is built with CUDA 13.0; the NVIDIA driver 570.86.15 runs CUDA up to 12.8"),
        # Within a major version an older driver runs it, on boards for which the image allows that.
        ("12.9", "570.86.15", ""),
        (None, "535.274.02", ""),
    ],
)
def test_by_the_pin_where_the_image_is_not_here(cuda: str | None, driver: str, reason: str) -> None:
    pinned = image("vllm/vllm-openai", "v1", Accelerator.CUDA, cuda=cuda)
    assert driver_cannot(pinned, None, host(driver, *GEFORCE)) == reason


def test_without_a_known_driver_nothing_is_forbidden() -> None:
    assert told(CUDA_13_0, CPU, cuda="13.0") == ""
    assert driver_cannot(image("v", "1", Accelerator.CUDA, cuda="13.0"), None, CPU) == ""
