"""orch inspect: what a file of weights holds, and what quantizing has cost."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest
from orch_command import ASSETS, Orch

TINY = ASSETS / "tiny-qwen3"
SVG = "{http://www.w3.org/2000/svg}"


@dataclass(frozen=True)
class Built:
    """A data directory with the tiny weights as Q6_K in its store."""

    orch: Orch
    key: str

    @property
    def file(self) -> Path:
        return self.orch.home / "store" / self.key / "model.gguf"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    orch = Orch(tmp_path_factory.mktemp("inspect") / "home")
    orch.run("build", "-p", str(orch.profile), "--recipe", "gguf-q6_k")
    (entry,) = (orch.home / "store").glob("gguf-q6_k-*")
    return Built(orch, entry.name)


def test_a_file_is_shown_with_its_error_as_table_and_picture(built: Built) -> None:
    plot = built.orch.home / "error.svg"
    done = built.orch.run("inspect", str(built.file), "--against", str(TINY), "--plot", str(plot))
    assert re.search(r"form +GGUF, version 3, Q6_K\n", done.out)
    assert re.search(r"parameters +4,197,120\n", done.out)
    assert re.search(r"embedding +1,048,576 +860 kB +6\.56 +24\.9 %\n", done.out)
    assert re.search(r"\n +3( +1\.\d\d){8} +3[45]\.\d dB +█+", done.out)
    drawing = ElementTree.fromstring(plot.read_text("utf-8"))
    bars = [bar for bar in drawing.iter(f"{SVG}rect") if bar.get("class") in ("attention", "feed-forward")]
    assert len(bars) == 4 * 7
    assert all(0 < float(bar.get("height", "")) <= 28 for bar in bars)
    assert "Quantization error of model.gguf" in {text.text for text in drawing.iter(f"{SVG}text")}


def test_programs_get_all_of_it_in_one_line_and_a_key_of_the_store_will_do(built: Built) -> None:
    found = built.orch.run("inspect", built.key, "--against", str(TINY), "--json").lines[-1]
    assert (found["architecture"], found["file_type"], found["parameters"]) == ("qwen3", "Q6_K", 4_197_120)
    assert {part["part"] for part in found["parts"]} == {"embedding", "norms", "attention", "feed-forward"}
    first, last = found["errors"][0], found["errors"][-1]
    assert (first["name"], first["layer"]) == ("model.embed_tokens.weight", None)
    assert (last["part"], last["layer"], last["type"]) == ("down_proj", 3, "Q6_K")
    assert last["sqnr_db"] == pytest.approx(-20 * math.log10(last["relative_error"]))


def test_what_is_exact_is_called_so(built: Built) -> None:
    plain = built.orch.run("inspect", str(TINY), "--against", str(TINY))
    assert re.search(r"form +safetensors, BF16\n", plain.out)
    assert re.search(r"\nall +0\.00 +exact\n", plain.out)


def test_what_cannot_be_looked_at_says_why(built: Built, tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(built.file.read_bytes()[:-500])
    damaged = built.orch.run("inspect", str(tmp_path / "cut.gguf"), code=10)
    assert "is not a sound GGUF file" in damaged.err
    assert "TIP Download it again" in damaged.err
    for nothing in ("nothing", "no key", "x" * 300):
        assert f"There is no {nothing}" in built.orch.run("inspect", nothing, code=10).err
    assert "--against" in built.orch.run("inspect", str(TINY), "--plot", "x.svg", code=2).err
    nowhere = str(tmp_path / "nowhere" / "x.svg")
    done = built.orch.run("inspect", str(TINY), "--against", str(TINY), "--plot", nowhere, code=4)
    assert "Cannot write" in done.err
