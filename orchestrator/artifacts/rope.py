"""How positions are scaled: what config.json says of it, and the factors that llama.cpp wants for Llama 3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PLAIN = "default"

# What each kind has beside its name and rope_theta.
_FIELDS: dict[str, tuple[str, ...]] = {
    PLAIN: (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


@dataclass(frozen=True)
class Rope:
    """Rotary positions: their base, and the kind of scaling with the numbers of that kind."""

    theta: float
    kind: str = PLAIN
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_max_position_embeddings: float = 1.0


def rope_contradiction(raw: Mapping[str, Any]) -> str:
    """What the newer and the older settings of positions say otherwise than each other, whatever the model; empty:
    nothing."""
    new, old = raw.get("rope_parameters"), raw.get("rope_scaling")
    if not isinstance(new, dict) or any(isinstance(value, dict) for value in new.values()):
        return ""
    if isinstance(old, dict) and _scaling(old) != _scaling(new):
        return "rope_scaling and rope_parameters contradict each other"
    theta, inner = raw.get("rope_theta"), new.get("rope_theta")
    if theta is not None and inner is not None and theta != inner:
        return f"rope_theta is {theta}, in rope_parameters {inner}"
    return ""


def _scaling(settings: Mapping[str, Any]) -> dict[str, Any]:
    """By its newer names, without what stands beside it in older files."""
    found = {
        name: value for name, value in settings.items() if name not in ("type", "rope_theta") and value is not None
    }
    return {"rope_type": settings.get("type", PLAIN), **found}


def read_rope(raw: Mapping[str, Any], known: tuple[str, ...], usual_theta: object, problems: list[str]) -> Rope:
    """From `rope_parameters` of newer configurations, or `rope_scaling` beside `rope_theta` of older ones.

    What is wrong is appended to `problems`; kinds that are not among `known` are.
    """
    found: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):
        value = raw.get(name)
        if value is None:
            continue
        if not isinstance(value, dict):
            problems.append(f"{name} is not an object")
        else:
            found = value
    theta = number({"rope_theta": usual_theta, **found, **raw}, "rope_theta", problems)
    if problem := rope_contradiction(raw):
        problems.append(problem)
    kind = found.get("rope_type", found.get("type", PLAIN))
    if kind not in known or found.keys() - {"rope_type", "type", "rope_theta", *_FIELDS[kind]}:
        problems.append(f"an unknown kind of scaled positions: {found!r}")
        return Rope(theta)
    rope = Rope(theta, kind, **{name: number(found, name, problems) for name in _FIELDS[kind]})
    if kind == "llama3" and not rope.low_freq_factor < rope.high_freq_factor:
        problems.append("high_freq_factor is not greater than low_freq_factor")
    return rope


def number(raw: Mapping[str, Any], name: str, problems: list[str]) -> float:
    """A positive number; what is wrong is appended to `problems`."""
    value = raw.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
        problems.append(f"{name} is {value!r}, not a positive number")
        return 0.0
    return float(value)
