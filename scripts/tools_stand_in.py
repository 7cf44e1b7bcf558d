"""Stands for the entrypoint of llama.cpp's `full` image (/app/tools.sh) in the image orch-test/tools:stand-in.

It takes the official words, writes the official lines, and ends with the official exit codes, as far as tests go:

    --convert DIR --outfile FILE --outtype bf16    NOT convert_hf_to_gguf.py, which no package index has by itself, but
                                                   orch's own builder, so it knows dense Qwen3 only, and that under
                                                   a name that orch does not know
    --quantize FILE OUT Q6_K|Q8_0 [THREADS]        NOT llama-quantize, but its arithmetic: ggml's own quantizer over
                                                   all matrices of any GGUF file, by llama.cpp's rules for these two

So what is shown with it is how orch drives the tools, not what the tools themselves make of other models.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from gguf import (
    GGML_QUANT_SIZES,
    GGMLQuantizationType,
    GGUFReader,
    GGUFValueType,
    GGUFWriter,
    LlamaFileType,
    dequantize,
)

from orchestrator.artifacts.gguf_file import build_gguf
from orchestrator.artifacts.quantize import Quantizer
from orchestrator.errors import SourceError

KINDS = {
    "Q6_K": (GGMLQuantizationType.Q6_K, LlamaFileType.MOSTLY_Q6_K),
    "Q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
KNOWN = "Qwen3ForCausalLM"
OTHER = "OtherForCausalLM"
# What the writer puts there by itself.
OF_THE_WRITER = ("GGUF.version", "GGUF.tensor_count", "GGUF.kv_count", "general.architecture", "general.file_type")


def main(words: list[str]) -> int:
    """The exit code of /app/tools.sh with these words."""
    quantizer = Quantizer(next((Path(__file__).parent / "xllamacpp").glob("*.so")))
    match words:
        case ["--convert" | "-c", *rest]:
            return convert(rest, quantizer)
        case ["--quantize" | "-q", source, out, kind, *_]:
            return quantize(Path(source), Path(out), kind, quantizer)
    print(f"Unknown command: {' '.join(words)}\nAvailable commands:\n  --convert (-c)\n  --quantize (-q)")
    return 0


def convert(words: list[str], quantizer: Quantizer) -> int:
    """convert_hf_to_gguf.py for what orch's builder knows."""
    parser = argparse.ArgumentParser(prog="convert_hf_to_gguf.py")
    parser.add_argument("model", type=Path)
    parser.add_argument("--outfile", type=Path, required=True)
    parser.add_argument("--outtype", choices=["bf16"], required=True)
    asked = parser.parse_args(words)
    name = json.loads((asked.model / "config.json").read_bytes())["architectures"][0]
    print(f"INFO:hf-to-gguf:Model architecture: {name}", file=sys.stderr)
    if name not in (KNOWN, OTHER):
        print(f"ERROR:hf-to-gguf:Model {name} is not supported", file=sys.stderr)
        return 1
    source = asked.model if name == KNOWN else renamed(asked.model, asked.outfile.with_suffix(".known"))
    try:
        build_gguf(source, asked.outfile, "bf16", quantizer, lambda *_: None)
    except SourceError as error:
        print(f"ValueError: {error.message}", file=sys.stderr)
        return 1
    print(f"INFO:hf-to-gguf:Model successfully exported to {asked.outfile}", file=sys.stderr)
    return 0


def renamed(model: Path, directory: Path) -> Path:
    """The same weights by the name that orch's builder knows."""
    directory.mkdir()
    for path in model.iterdir():
        (directory / path.name).symlink_to(path)
    config = json.loads((model / "config.json").read_bytes())
    (directory / "config.json").unlink()
    (directory / "config.json").write_text(json.dumps(config | {"architectures": [KNOWN], "model_type": "qwen3"}))
    return directory


def quantize(source: Path, out: Path, kind: str, quantizer: Quantizer) -> int:
    """llama-quantize for types that are the same all over the file."""
    if kind not in KINDS:
        print(f"main: invalid ftype '{kind}'", file=sys.stderr)
        return 1
    wanted, file_type = KINDS[kind]
    reader = GGUFReader(source)
    writer = GGUFWriter(out, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if field.name not in OF_THE_WRITER:
            inner = field.types[-1] if field.types[0] is GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    writer.add_file_type(file_type)
    tensors = sorted(reader.tensors, key=lambda tensor: (layer(tensor.name), tensor.name))
    for number, tensor in enumerate(tensors, start=1):
        rows = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        print(f"[{number:4d}/{len(tensors):4d}] {tensor.name:>36s} - {list(tensor.shape)}", flush=True)
        if rows.ndim == 1:
            writer.add_tensor(tensor.name, rows)
            continue
        fits = rows.shape[1] % GGML_QUANT_SIZES[wanted][0] == 0
        chosen = wanted if fits else GGMLQuantizationType.Q8_0
        writer.add_tensor(tensor.name, quantizer(chosen, np.ascontiguousarray(rows)), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return 0


def layer(name: str) -> int:
    """llama.cpp's order: what belongs to no layer first, then the layers by number."""
    return int(name.split(".")[1]) if name.startswith("blk.") else -1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
