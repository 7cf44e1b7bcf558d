"""What llm-compressor has written, as the other builders leave it: the source's own files beside the weights."""

from __future__ import annotations

from pathlib import Path

from orchestrator.artifacts.description import write_description
from orchestrator.artifacts.disk import host_errors
from orchestrator.artifacts.json_file import read_json
from orchestrator.artifacts.nvfp4_checkpoint import write_index
from orchestrator.artifacts.safetensors import Checkpoint
from orchestrator.core.meaning import Meaning
from orchestrator.errors import SourceError


def tidy(source: Path, work: Path, meaning: Meaning) -> None:
    """Leaves of `work` the shards and their quantization_config, and puts beside them what `source`, of this meaning,
    says of itself.

    The program writes tokenizer and configs anew, in the words of its own version, and notes of its own.
    """
    quantization = read_json(work / "config.json").get("quantization_config")
    if not isinstance(quantization, dict):
        raise SourceError(f"{work}: llm-compressor wrote no quantization_config.")
    with Checkpoint.open(work) as checkpoint:
        weight_map = {name: tensor.file.name for name, tensor in checkpoint.tensors.items()}
    with host_errors(f"write {work}"):
        for path in work.iterdir():
            if path.name not in weight_map.values():
                path.unlink()
        write_index(work, weight_map)
        write_description(source, work, meaning, {"quantization_config": quantization})
