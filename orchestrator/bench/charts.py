"""Curves against users as SVG, drawn by Matplotlib, in colours that the page which holds them decides.

Matplotlib knows no CSS: it draws in placeholder colours, which become `var(--name)` afterwards. So one picture follows
the page's light and dark, and its text is text, in the page's font.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

# What stands for the page's colours: none of them is drawn.
_INK, _QUIET, _GRID, _BACK = "#010101", "#020202", "#030303", "#040404"
_ENGINE = ("#050505", "#060606", "#070707", "#080808")
_VARIABLES = {
    _INK: "ink", _QUIET: "quiet", _GRID: "grid", _BACK: "back",
    **{colour: f"engine-{number}" for number, colour in enumerate(_ENGINE)},
}  # fmt: skip
_MARKERS = ("o", "s", "D", "^")
# Points that a letter of a line's name takes, about.
_LETTER = 6.6
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    # Two pages made of the same results are the same.
    "svg.hashsalt": "orch",
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.linewidth": 0.8,
}


@dataclass(frozen=True)
class Curve:
    """A line: values at numbers of users, with what they may be (least, most); `place` is that of its engine's colour.
    What is `known` from elsewhere is drawn hollow and broken."""

    label: str
    place: int
    users: tuple[int, ...]
    values: tuple[float, ...]
    least: tuple[float, ...] = ()
    most: tuple[float, ...] = ()
    known: bool = False


@dataclass(frozen=True)
class Span:
    """A number of users that is marked, and between what it may be."""

    users: float
    least: float
    most: float
    label: str


def draw(
    name: str,
    curves: Sequence[Curve],
    axis: str,
    alt: str,
    *,
    narrow: bool,
    log: bool = False,
    marked: Span | None = None,
) -> str:
    """The SVG element: curves of one quantity (`axis` names it with its unit) against users, for a `narrow` page or a
    wide one. `name` is another one for each on a page, and `alt` is told to who does not see it."""
    with matplotlib.rc_context(_STYLE):
        width, height = (290, 250) if narrow else (460, 260)
        figure = Figure(figsize=(width / 72, height / 72))
        names = _LETTER * max(len(curve.label) for curve in curves) + 14
        axes = figure.add_axes((46 / width, 40 / height, (width - 46 - names) / width, (height - 40 - 28) / height))
        figure.patch.set_alpha(0)
        axes.patch.set_alpha(0)
        _frame(axes, axis)
        if marked is not None:
            _mark(axes, marked)
        for curve in curves:
            _line(axes, curve)
        _scale(axes, curves, log)
        _name(axes, curves)
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    return _for_a_page(written.getvalue(), f"{name}-{'narrow' if narrow else 'wide'}", alt)


def _frame(axes: Axes, axis: str) -> None:
    axes.set_xlabel("users at a time", color=_QUIET)
    # Above the axis, where it is read at once.
    axes.set_title(axis, loc="left", fontsize=11, color=_QUIET)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_QUIET)
    axes.tick_params(axis="both", which="both", colors=_QUIET, length=0, pad=6)


def _scale(axes: Axes, curves: Sequence[Curve], log: bool) -> None:
    users = sorted({number for curve in curves for number in curve.users})
    values = [value for curve in curves for value in (*curve.values, *curve.least, *curve.most) if value > 0]
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(users))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(users[0] / 1.12, users[-1] * 1.12)
    if log:
        axes.set_yscale("log")
        wide = max(values) > 30 * min(values)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylim(min(values) / 1.5, max(values) * 1.5)
    else:
        axes.set_ylim(0, max(values) * 1.15)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def _mark(axes: Axes, marked: Span) -> None:
    axes.axvspan(marked.least, marked.most, color=_GRID, alpha=0.55, linewidth=0)
    axes.axvline(marked.users, color=_QUIET, linewidth=1, linestyle=(0, (2, 3)))
    axes.annotate(
        marked.label, (marked.users, 1), xycoords=("data", "axes fraction"), xytext=(5, -11),
        textcoords="offset points", color=_QUIET, fontsize=10,
    )  # fmt: skip


def _line(axes: Axes, curve: Curve) -> None:
    colour = _ENGINE[curve.place % len(_ENGINE)]
    if curve.least:
        axes.fill_between(curve.users, curve.least, curve.most, color=colour, alpha=0.16, linewidth=0)
    axes.plot(
        curve.users, curve.values, color=colour, linewidth=1.4 if curve.known else 2.2,
        linestyle=(0, (4, 3)) if curve.known else "-", marker=_MARKERS[curve.place % len(_MARKERS)], markersize=6.5,
        markerfacecolor=_BACK if curve.known else colour, markeredgecolor=_BACK if not curve.known else colour,
        markeredgewidth=1.4, clip_on=False, zorder=3,
    )  # fmt: skip


def _name(axes: Axes, curves: Sequence[Curve]) -> None:
    """Each line's name at its end; beside one another where their ends are close."""
    low, high = axes.get_ylim()
    ends = sorted(((axes.transData.transform((1, curve.values[-1]))[1], curve) for curve in curves), key=lambda e: e[0])
    height = axes.transData.transform((1, high))[1] - axes.transData.transform((1, low))[1]
    before = -height
    for at, curve in ends:
        shifted = max(at, before + 15)
        before = shifted
        axes.annotate(
            curve.label, (curve.users[-1], curve.values[-1]), xytext=(9, (shifted - at) * 0.72),
            textcoords="offset points", va="center", color=_ENGINE[curve.place % len(_ENGINE)], fontsize=11,
            fontweight="normal" if curve.known else "bold", annotation_clip=False,
        )  # fmt: skip


def _for_a_page(written: str, name: str, alt: str) -> str:
    """As an element of a page: as wide as there is room, in the page's colours and font, with ids of its own."""
    svg = written[written.index("<svg") :]
    size = re.search(r'width="[\d.]+pt" height="[\d.]+pt"', svg)
    assert size is not None, "Matplotlib tells the size of what it draws"
    svg = svg.replace(size[0], f'role="img" aria-label="{escape(alt)}"', 1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return re.sub(r"font-family: [^;\"]+", "font-family: var(--font)", svg)
