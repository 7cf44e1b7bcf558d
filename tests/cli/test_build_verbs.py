"""orch build: the bytes of the reference tools, or nothing at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from orch_command import ASSETS, Orch, wait_until

TINY = ASSETS / "tiny-qwen3"
ORACLES = json.loads((ASSETS / "oracles.json").read_bytes())
LAYERS = 40


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def safetensors(path: Path) -> dict[str, tuple[dict[str, Any], bytes]]:
    """Every tensor of a file with its header entry and its bytes, read by the format's definition."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        found[name] = (entry, data[start + begin : start + end])
    return found


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """The tiny weights with their layers repeated, so that a build takes long enough to be interrupted."""
    root = Path(shutil.copytree(TINY, tmp_path / "deep"))
    config = json.loads((root / "config.json").read_bytes())
    tensors = safetensors(root / "model.safetensors")
    layers = config["num_hidden_layers"]
    header: dict[str, Any] = {}
    body: list[bytes] = []
    end = 0
    for name, (entry, data) in tensors.items():
        names = [name]
        if name.startswith("model.layers.0."):
            names += [name.replace(".0.", f".{number}.", 1) for number in range(layers, LAYERS)]
        for each in names:
            header[each] = {**entry, "data_offsets": [end, end + len(data)]}
            body.append(data)
            end += len(data)
    head = json.dumps(header).encode()
    (root / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + b"".join(body))
    config.pop("layer_types", None)
    (root / "config.json").write_text(json.dumps(config | {"num_hidden_layers": LAYERS}))
    return root


@pytest.mark.parametrize("quant", ["q6_k", "bf16"])
def test_gguf_tensors_are_those_of_the_oracle(orch: Orch, tmp_path: Path, quant: str) -> None:
    out = tmp_path / "tiny.gguf"
    done = orch.run("build", "gguf", str(TINY), "-o", str(out), "--quant", quant, "--json")
    assert done.lines[-1] == {"built": str(out), "size": out.stat().st_size}
    expected = ORACLES[f"gguf/{quant}"]["tensors"]
    found = {tensor.name: tensor for tensor in GGUFReader(out).tensors}
    assert found.keys() == expected.keys()
    for name in ("token_embd.weight", "blk.0.attn_q.weight", "blk.3.ffn_down.weight", "output_norm.weight"):
        assert sha256(found[name].data.tobytes()) == expected[name]["sha256"]
        assert found[name].tensor_type.name == expected[name]["type"]


def test_nvfp4_in_a_gguf_is_made_of_weights_or_of_what_is_nvfp4_already(orch: Orch, tmp_path: Path) -> None:
    checkpoint, built, repacked = tmp_path / "nvfp4", tmp_path / "built.gguf", tmp_path / "repacked.gguf"
    orch.run("build", "nvfp4", str(TINY), "-o", str(checkpoint))
    assert "not lossless" in orch.run("build", "gguf", str(TINY), "-o", str(built), "--quant", "nvfp4").err
    done = orch.run("build", "gguf", str(checkpoint), "-o", str(repacked), "--quant", "NVFP4", "--json")
    assert next(line for line in done.lines if "estimate" in line)["estimate"]["writes"] < repacked.stat().st_size
    assert built.read_bytes() == repacked.read_bytes()
    expected = json.loads((ASSETS / "oracles-gguf-nvfp4.json").read_bytes())["gguf/nvfp4"]["tensors"]
    found = {tensor.name: sha256(tensor.data.tobytes()) for tensor in GGUFReader(built).tensors}
    assert found == {name: tensor["sha256"] for name, tensor in expected.items()}
    shown = orch.run("inspect", str(built)).out
    assert "NVFP4" in shown
    refused = orch.run("build", "gguf", str(checkpoint), "-o", str(tmp_path / "x"), code=5).err
    assert "is NVFP4 already; to make q6_k of it is to lose twice" in refused
    for source, more in ((built, ()), (TINY, ("--in-container",)), (TINY, ("--tools", str(tmp_path)))):
        words = ("build", "gguf", str(source), "-o", str(tmp_path / "x"), "--quant", "nvfp4", *more)
        assert "keeps only one of its two scales" in orch.run(*words, code=5).err


def test_a_gguf_file_can_be_what_is_built_from(orch: Orch, tmp_path: Path) -> None:
    first, out = tmp_path / "bf16.gguf", tmp_path / "q6_k.gguf"
    orch.run("build", "gguf", str(TINY), "-o", str(first), "--quant", "bf16")
    done = orch.run("build", "gguf", str(first), "-o", str(out), "--json")
    assert next(line for line in done.lines if "estimate" in line)["estimate"]["writes"] <= out.stat().st_size
    found = {tensor.name: sha256(tensor.data.tobytes()) for tensor in GGUFReader(out).tensors}
    assert found == {name: tensor["sha256"] for name, tensor in ORACLES["gguf/q6_k"]["tensors"].items()}
    assert "quantized already" in orch.run("build", "gguf", str(out), "-o", str(tmp_path / "x"), code=10).err
    assert "built from" in orch.run("build", "gguf", str(first), "-o", str(first), code=5).err
    assert "is not a directory" in orch.run("build", "gguf", str(first), "-o", str(out), "--in-container", code=5).err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bf16.gguf", "home", "q6_k.gguf"]


def test_nvfp4_tensors_are_those_of_the_oracle(orch: Orch, tmp_path: Path) -> None:
    out = tmp_path / "nvfp4"
    assert "not lossless" in orch.run("build", "nvfp4", str(TINY), "-o", str(out)).err
    expected = ORACLES["nvfp4a16"]["tensors"]
    found = safetensors(out / "model.safetensors")
    assert found.keys() == expected.keys()
    layer = "model.layers.2.mlp.down_proj.weight"
    for name in (f"{layer}_packed", f"{layer}_scale", f"{layer}_global_scale", "model.norm.weight"):
        assert sha256(found[name][1]) == expected[name]["sha256"]
    config = json.loads((out / "config.json").read_bytes())
    assert config["quantization_config"] == ORACLES["nvfp4a16"]["quantization_config"]


def test_fp8_tensors_are_those_of_the_oracle(orch: Orch, tmp_path: Path) -> None:
    out = tmp_path / "fp8"
    orch.run("build", "fp8", str(TINY), "-o", str(out))
    made = {
        name: f"{entry['dtype']} {entry['shape']} {sha256(data)}"
        for name, (entry, data) in safetensors(out / "model.safetensors").items()
    }
    expected = json.loads((ASSETS / "oracles-fp8.json").read_bytes())["tiny"]
    assert {name: made[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["gguf", TINY, "-o", "{out}", "--quant", "q3_k"], 2, "Known: f16, bf16, q8_0"),
        (["nvfp4", TINY, "-o", "{out}", "--mode", "a4"], 2, "Known: a16"),
        (["gguf", "/no/such/directory", "-o", "{out}"], 2, "does not exist"),
        (["nvfp4", ASSETS / "lora-a", "-o", "{out}"], 10, "config.json"),
        (["gguf", TINY, "-o", "{out}/deeper/x.gguf"], 4, "Make it first"),
        (["nvfp4", TINY, "-o", "{out}/deeper/x"], 4, "Make it first"),
        (["gguf", TINY], 2, "--output"),
        (["gguf", "-o", "{out}"], 2, "source"),
    ],
)
def test_what_cannot_be_built_says_why_and_leaves_nothing(
    orch: Orch, tmp_path: Path, words: list[str | Path], code: int, says: str
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    done = orch.run("build", *(str(word).replace("{out}", str(folder / "x")) for word in words), code=code)
    assert says.lower() in done.err.lower()
    assert done.out == ""
    assert list(folder.iterdir()) == []


def test_a_file_is_replaced_and_a_directory_is_not(orch: Orch, tmp_path: Path) -> None:
    file, directory = tmp_path / "x.gguf", tmp_path / "x"
    file.write_text("older")
    orch.run("build", "gguf", str(TINY), "-o", str(file))
    assert file.read_bytes()[:4] == b"GGUF"
    directory.mkdir()
    (directory / "mine.txt").write_text("mine")
    assert "already exists" in orch.run("build", "nvfp4", str(TINY), "-o", str(directory), code=5).err
    orch.run("build", "gguf", str(TINY), "-o", str(directory), code=4)
    assert [path.name for path in directory.iterdir()] == ["mine.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "x", "x.gguf"]


def test_weights_are_never_built_over(orch: Orch, tmp_path: Path) -> None:
    source = Path(shutil.copytree(TINY, tmp_path / "source"))
    orch.run("build", "nvfp4", str(source), "-o", str(source), code=5)
    assert {path.name: path.read_bytes() for path in source.iterdir()} == {
        path.name: path.read_bytes() for path in TINY.iterdir()
    }


@pytest.mark.parametrize("kind", ["gguf", "nvfp4"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_an_interrupted_build_leaves_nothing_by_the_name_asked_for(
    orch: Orch, deep: Path, tmp_path: Path, kind: str, number: signal.Signals, code: int
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    out = folder / "made"
    with orch.start("build", kind, str(deep), "-o", str(out)) as process:
        try:
            wait_until(_any_bytes(folder), what="a part of the artifact")
        finally:
            process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code, "the build was over before the signal"
    assert (stdout, "Traceback" in stderr) == ("", False)
    assert not out.exists()
    if number == signal.SIGINT:
        assert list(folder.iterdir()) == []
    orch.run("build", kind, str(deep), "-o", str(out))
    assert list(folder.iterdir()) == [out]


def _any_bytes(folder: Path) -> Callable[[], bool]:
    return lambda: any(path.is_file() and path.stat().st_size > 100_000 for path in folder.rglob("*"))
