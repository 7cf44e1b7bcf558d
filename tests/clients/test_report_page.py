"""The report of a bench in a real Chromium: phone and desk width, light and dark, with nothing from elsewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest
from browser import OPTIONS, chromium
from levels import article

from orchestrator.bench.report import report

pytestmark = pytest.mark.browser

# A page that holds the report in a frame of this width, and writes down what came of it.
PROBE = """<!doctype html><body style="margin:0"><iframe srcdoc="{page}" style="width:{width}px;height:900px;border:0">
</iframe><pre id="told"></pre><script>
document.querySelector("iframe").onload = (event) => {{
  const inner = event.target.contentWindow, page = inner.document;
  const style = (one) => inner.getComputedStyle(one);
  const seen = [...page.querySelectorAll("svg")].filter((one) => one.getBoundingClientRect().width > 0);
  const texts = seen.flatMap((one) => [...one.querySelectorAll("text")]);
  document.getElementById("told").textContent = JSON.stringify({{
    overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth,
    background: style(page.body).backgroundColor,
    svgs: seen.length,
    widest: Math.max(...seen.map((one) => one.getBoundingClientRect().right)),
    smallest: Math.min(...texts.map((one) => one.getBoundingClientRect().height)),
    lines: [...new Set(seen.flatMap((one) => [...one.querySelectorAll("path")].map((path) => style(path).stroke)))],
    fetched: inner.performance.getEntriesByType("resource").length,
    said: page.querySelector(".verdicts").textContent.trim(),
  }});
}};
</script></body>"""


def looked_at(place: Path, width: int, dark: bool) -> dict[str, Any]:
    page = place / "probe.html"
    page.write_text(PROBE.format(page=escape(report(article())), width=width))
    root = ("--no-sandbox",) if os.getuid() == 0 else ()
    # 0 is dark, 1 is light.
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    words = ("--dump-dom", "--virtual-time-budget=5000", "--window-size=1400,1000", scheme)
    done = subprocess.run(
        [chromium(), *OPTIONS, *root, f"--user-data-dir={place / 'profile'}", *words, page.as_uri()],
        env={"PATH": os.environ["PATH"], "HOME": str(place)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search(r'<pre id="told">(\{.*?\})</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr[-2000:]
    told: dict[str, Any] = json.loads(unescape(found[1]))
    return told


@pytest.mark.parametrize("width", [390, 1200])
def test_it_can_be_read(tmp_path: Path, width: int) -> None:
    light, dark = (looked_at(tmp_path / name, width, name == "dark") for name in _places(tmp_path))
    for told in (light, dark):
        assert told["overflow"] == 0
        # Throughput and first token, yours and the article's: one size of each.
        assert told["svgs"] == 4
        assert told["widest"] <= width
        assert told["smallest"] >= 8
        assert told["fetched"] == 0
        assert told["said"].startswith("vllm (nvfp4) gives more tokens a second from about 2.3 users on")
    # One picture, in the colours of each.
    assert light["background"] == "rgb(255, 255, 255)"
    assert dark["background"] == "rgb(20, 24, 29)"
    assert {"rgb(31, 111, 159)", "rgb(194, 81, 47)"} <= set(light["lines"])
    assert {"rgb(109, 184, 224)", "rgb(242, 147, 111)"} <= set(dark["lines"])


def _places(tmp_path: Path) -> tuple[str, str]:
    for name in ("light", "dark"):
        (tmp_path / name).mkdir()
    return "light", "dark"
