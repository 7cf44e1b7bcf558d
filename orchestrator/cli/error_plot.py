"""Quantization errors as a picture: a strip of bars for each part of a layer, all on one scale, as SVG text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

_LEFT, _RIGHT, _TOP = 96, 64, 64
_WIDTH = 560
_STRIP, _GAP = 28, 12
_BAR = 10
_WIDEST_BAR = 28.0
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#3d4450}"
    ".title{font-size:15px;font-weight:600;fill:#1d2129}.quiet{fill:#7b8494;font-size:11px}"
    ".value{font-size:11px}.base{stroke:#c9ced6;stroke-width:1}"
    ".attention{fill:#3f74b5}.feed-forward{fill:#d1823f}.end{fill:#6a9a6b}"
)


@dataclass(frozen=True)
class Strip:
    """A part of all layers: its label, `attention` or `feed-forward`, and its relative error by layer."""

    label: str
    kind: str
    errors: Sequence[float]


@dataclass(frozen=True)
class End:
    """What is no part of a layer: its label and its relative error."""

    label: str
    error: float


def draw(title: str, subtitle: str, strips: Sequence[Strip], ends: Sequence[End]) -> str:
    """The SVG document."""
    highest = max([error for strip in strips for error in strip.errors] + [end.error for end in ends] + [1e-9])
    ends_at = _TOP + len(strips) * (_STRIP + _GAP) + 22
    height = ends_at + len(ends) * (_BAR + _GAP) + 16
    width = _LEFT + _WIDTH + _RIGHT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        f"<style>{_STYLE}</style>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text class="title" x="16" y="28">{escape(title)}</text>',
        f'<text class="quiet" x="16" y="46">{escape(subtitle)}</text>',
    ]
    for index, strip in enumerate(strips):
        lines += _strip(strip, _TOP + index * (_STRIP + _GAP), highest)
    if strips:
        lines += _axis(len(strips[0].errors), ends_at - 20)
    for index, end in enumerate(ends):
        lines += _end(end, ends_at + index * (_BAR + _GAP), highest)
    return "\n".join([*lines, "</svg>", ""])


def _percent(error: float) -> str:
    return f"{100 * error:.2f} %"


def _pitch(layers: int) -> float:
    return min(_WIDEST_BAR, _WIDTH / max(1, layers))


def _strip(strip: Strip, top: int, highest: float) -> Iterator[str]:
    pitch, base = _pitch(len(strip.errors)), top + _STRIP
    yield f'<text x="{_LEFT - 10}" y="{base - 8}" text-anchor="end">{escape(strip.label)}</text>'
    for layer, error in enumerate(strip.errors):
        tall = _STRIP * error / highest
        yield (
            f'<rect class="{strip.kind}" x="{_LEFT + layer * pitch:.1f}" y="{base - tall:.1f}" '
            f'width="{max(1.0, pitch - 2):.1f}" height="{tall:.1f}" rx="1">'
            f"<title>layer {layer}: {_percent(error)}</title></rect>"
        )
    end = _LEFT + len(strip.errors) * pitch
    yield f'<line class="base" x1="{_LEFT}" y1="{base + 0.5}" x2="{end - 2:.1f}" y2="{base + 0.5}"/>'
    mean = sum(strip.errors) / max(1, len(strip.errors))
    yield f'<text class="value" x="{end + 8:.1f}" y="{base - 8}">{_percent(mean)}</text>'


def _axis(layers: int, top: int) -> Iterator[str]:
    pitch = _pitch(layers)
    step = next(step for step in (1, 2, 4, 8, 16, 32, 64, layers) if layers / step <= 12)
    for layer in range(0, layers, step):
        yield (
            f'<text class="quiet" x="{_LEFT + (layer + 0.5) * pitch - 1:.1f}" y="{top}" '
            f'text-anchor="middle">{layer}</text>'
        )
    yield f'<text class="quiet" x="{_LEFT - 10}" y="{top}" text-anchor="end">layer</text>'


def _end(end: End, top: int, highest: float) -> Iterator[str]:
    long = 0.5 * _WIDTH * end.error / highest
    yield f'<text x="{_LEFT - 10}" y="{top + _BAR}" text-anchor="end">{escape(end.label)}</text>'
    yield f'<rect class="end" x="{_LEFT}" y="{top}" width="{long:.1f}" height="{_BAR}" rx="1"/>'
    yield f'<text class="value" x="{_LEFT + long + 8:.1f}" y="{top + _BAR - 1}">{_percent(end.error)}</text>'
