"""An adapter as the store keeps it, and engines read it: nothing but the LoRA, under PEFT's own names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from orchestrator.artifacts.adapter_config import CONFIG
from orchestrator.artifacts.adapter_copies import refuse_changed_copies
from orchestrator.artifacts.adapter_tensors import Half, sort_tensors
from orchestrator.artifacts.disk import host_errors
from orchestrator.artifacts.json_file import read_json
from orchestrator.artifacts.peft import WEIGHTS, open_weights, read_adapter
from orchestrator.artifacts.safetensors import Checkpoint, ShardWriter
from orchestrator.core.progress import Progress


def import_adapter(source: Path, work: Path, base: Path | None, progress: Progress) -> None:
    """Copies a PEFT directory: as it is, where it is a LoRA under PEFT's own names, else without the copies of the
    base's tensors that it carries. SourceError where those differ from the base's."""
    adapter = read_adapter(source)
    with open_weights(source) as checkpoint:
        tensors = sort_tensors(checkpoint, adapter.config)
        refuse_changed_copies(checkpoint, tensors.copies, base)
        progress(f"importing {WEIGHTS}", 0, 0)
        with host_errors(f"copy {source / WEIGHTS}"):
            if tensors.canonical:
                shutil.copyfile(source / WEIGHTS, work / WEIGHTS)
            else:
                _write(work / WEIGHTS, checkpoint, tensors.halves)
    progress(f"importing {CONFIG}", 0, 0)
    with host_errors(f"copy {source / CONFIG}"):
        if adapter.config.saved:
            (work / CONFIG).write_text(json.dumps(read_json(source / CONFIG) | {"modules_to_save": None}, indent=2))
        else:
            shutil.copyfile(source / CONFIG, work / CONFIG)


def _write(out: Path, checkpoint: Checkpoint, halves: tuple[Half, ...]) -> None:
    layout = {half.name: (half.tensor.dtype, half.tensor.shape) for half in halves}
    with ShardWriter(out, layout) as writer:
        for half in halves:
            writer.write(half.name, checkpoint.read(half.tensor), 0)
