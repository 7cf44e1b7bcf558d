"""Several artifacts from one read: the same bytes as one by one, and the weights read once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from artifact_files import TINY, UNTIED, quantizer, read_safetensors, write_safetensors

from orchestrator.artifacts.estimate import estimate
from orchestrator.artifacts.gguf_file import GgufOutputSpec
from orchestrator.artifacts.nvfp4_checkpoint import Nvfp4OutputSpec
from orchestrator.artifacts.one_pass import OutputSpec, build, fused_with
from orchestrator.core.progress import silent
from orchestrator.errors import HostError, Interrupted, SourceError

pytestmark = pytest.mark.slow


def output_specs(place: Path, there: bool = False) -> list[OutputSpec]:
    place.mkdir(exist_ok=there)
    ggufs = [GgufOutputSpec(place / f"{quant}.gguf", quant, quantizer()) for quant in ("q6_k", "bf16")]
    return [*ggufs, Nvfp4OutputSpec(place / "nvfp4")]


def contents(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def bytes_read(work: Callable[[], None]) -> int:
    """What this process asks the kernel for meanwhile, by read and pread."""

    def count() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = count()
    work()
    return count() - before


@pytest.mark.parametrize("source", [TINY, UNTIED])
def test_together_they_are_as_one_by_one(source: Path, tmp_path: Path) -> None:
    build(source, output_specs(tmp_path / "together"), silent)
    for one in output_specs(tmp_path / "alone"):
        build(source, [one], silent)
    assert contents(tmp_path / "together") == contents(tmp_path / "alone")


@pytest.mark.parametrize("source", [TINY, UNTIED])
def test_the_weights_are_read_once(source: Path, tmp_path: Path) -> None:
    size = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    build(source, [Nvfp4OutputSpec(tmp_path / "warm")], silent)
    assert size < bytes_read(lambda: build(source, output_specs(tmp_path / "made"), silent)) < 1.25 * size


def test_what_is_too_large_to_be_held_is_read_twice_and_comes_out_the_same(tmp_path: Path) -> None:
    build(UNTIED, output_specs(tmp_path / "held"), silent)
    read = bytes_read(lambda: build(UNTIED, output_specs(tmp_path / "read"), silent, held_bytes=100_000))
    assert read > 1.5 * sum(path.stat().st_size for path in UNTIED.glob("*.safetensors"))
    assert contents(tmp_path / "held") == contents(tmp_path / "read")


def test_the_estimate_is_what_is_read_and_written(tmp_path: Path) -> None:
    found = estimate(UNTIED, output_specs(tmp_path / "made"))
    build(UNTIED, output_specs(tmp_path / "built"), silent)
    assert found.reads == sum(tensor.nbytes for tensor in read_safetensors(UNTIED).values())
    weights = [path for path in (tmp_path / "built").rglob("*") if path.suffix in (".gguf", ".safetensors")]
    written = sum(path.stat().st_size for path in weights)
    # The heads of the files, a tokenizer in each GGUF, come on top.
    assert written - 400_000 < found.writes < written
    assert 0 < found.seconds < 60
    assert list((tmp_path / "made").iterdir()) == []


def test_an_error_in_mid_unit_ends_the_build_and_leaves_nothing(tmp_path: Path) -> None:
    """Blocks that wait for the rest of their unit must not wait for ever when it cannot be read."""
    source = tmp_path / "source"
    source.mkdir()
    for file in TINY.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    tensors = read_safetensors(source)
    tensors["model.layers.1.mlp.up_proj.weight"][7, 7] = 0x7F80
    write_safetensors(source / "model.safetensors", tensors)
    before = threading.active_count()
    with pytest.raises(SourceError, match=r"up_proj\.weight contains NaN or Inf"):
        build(source, output_specs(tmp_path / "made"), silent)
    assert contents(tmp_path / "made") == {}
    assert threading.active_count() == before


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_interrupted_none_of_them_looks_finished(share: float, tmp_path: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if done >= share * total:
            raise Interrupted

    with pytest.raises(Interrupted):
        build(UNTIED, output_specs(tmp_path / "made"), stop)
    assert contents(tmp_path / "made") == {}


def test_matrices_that_engines_fuse_belong_together() -> None:
    layer = "model.layers.3"
    names = [f"{layer}.self_attn.{part}_proj.weight" for part in "qkv"]
    assert {fused_with(name) for name in names} == {"model.layers.3.qkv"}
    assert fused_with(f"{layer}.mlp.gate_proj.weight") == fused_with(f"{layer}.mlp.up_proj.weight")
    assert len({fused_with(f"{layer}.mlp.{part}_proj.weight") for part in ("gate", "down")}) == 2
    assert fused_with("lm_head.weight") == "lm_head.weight"


def test_two_builds_never_write_one_file(tmp_path: Path) -> None:
    """The second would go on filling what the first has given its final name."""
    refused: list[str] = []

    def meanwhile(what: str, done: int, total: int) -> None:
        if not refused:
            with pytest.raises(HostError) as caught:
                build(TINY, output_specs(tmp_path / "made", there=True), silent)
            refused.append(caught.value.message)

    build(TINY, output_specs(tmp_path / "made"), meanwhile)
    build(TINY, output_specs(tmp_path / "alone"), silent)
    assert "Another process is writing" in refused[0]
    assert contents(tmp_path / "made") == contents(tmp_path / "alone")
