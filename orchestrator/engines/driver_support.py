"""Whether this machine's NVIDIA driver can run an image. Pure."""

from __future__ import annotations

import re

from orchestrator.core.host import Host
from orchestrator.core.images import ImageFacts
from orchestrator.core.pins import ImagePin

_CONSTRAINT = re.compile(r"(cuda|driver|brand|arch)(>=|<=|!=|>|<|=)(.+)")
# Boards on which an older driver cannot run a newer CUDA's libraries (error 804).
_CONSUMER = ("geforce", "titan")


def driver_cannot(pin: ImagePin, facts: ImageFacts | None, host: Host) -> str:
    """Why the NVIDIA driver here cannot run an image; empty when it can, or when nobody knows.

    The image's own word decides when it is here; else the pin's. Within one major version of CUDA an older driver
    runs a newer build.
    """
    if host.cuda is None:
        return ""
    runs = f"the NVIDIA driver {host.driver} runs CUDA up to {host.cuda[0]}.{host.cuda[1]}"
    if facts is not None:
        return f"it requires {_plainly(facts.requires)}; {runs}" if not _allowed(facts.requires, host) else ""
    if pin.cuda is None or int(pin.cuda.split(".")[0]) <= host.cuda[0]:
        return ""
    return f"it is built with CUDA {pin.cuda}; {runs}"


def _plainly(requires: str) -> str:
    return requires.split()[0].split(",")[0].replace("cuda>=", "CUDA ") if requires else "nothing"


def _allowed(requires: str, host: Host) -> bool:
    """NVIDIA_REQUIRE_CUDA: alternatives apart by blanks, each of constraints apart by commas."""
    alternatives = requires.split()
    return not alternatives or any(all(_holds(c, host) for c in one.split(",") if c) for one in alternatives)


def _holds(constraint: str, host: Host) -> bool:
    found = _CONSTRAINT.fullmatch(constraint)
    if found is None:
        return True
    key, operator, value = found.groups()
    if key == "brand":
        consumer = any(word in gpu.name.lower() for gpu in host.gpus for word in _CONSUMER)
        return not consumer and not value.startswith(_CONSUMER)
    if key == "arch":
        return True
    has = host.cuda if key == "cuda" else _numbers(host.driver)
    return has is None or not has or _compare(_padded(has), operator, _padded(_numbers(value)))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _padded(numbers: tuple[int, ...]) -> tuple[int, ...]:
    return (*numbers, 0, 0, 0)[:3]


def _compare(left: tuple[int, ...], operator: str, right: tuple[int, ...]) -> bool:
    match operator:
        case ">=":
            return left >= right
        case "<=":
            return left <= right
        case ">":
            return left > right
        case "<":
            return left < right
        case "!=":
            return left != right
        case _:
            return left == right
