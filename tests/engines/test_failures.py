"""The telling line and the hint of every failed start that was recorded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orchestrator.engines import ENGINES

RECORDED = Path(__file__).parent / "recorded"

PORT = "Another process took the port; run the same command again and another one is chosen."
DAMAGED = "The artifact is damaged: orch artifacts verify"
WEIGHTS_DAMAGED = "The weights are damaged: orch artifacts verify"
WEIGHTS_LOST = "The weights are not where they were, or not complete: orch artifacts verify"
NO_NVFP4 = "Nothing here runs NVFP4: serve the weights as they are, with --recipe weights"
REFUSED = "This vLLM refuses a setting of the profile; the line says what it takes."
SMALLER = "Lower serving.context or serving.parallel in the profile."
OTHER_ADAPTER = "Does the adapter belong to this model?  orch lora ls"

# Case: how the line begins, and the hint.
VLLM = {
    "bad_config_json": ("OSError: It looks like the config file at", WEIGHTS_DAMAGED),
    "bad_dtype": ("api_server.py: error: argument --dtype: invalid choice: 'int3'", REFUSED),
    "bad_path": ("huggingface_hub.errors.HFValidationError: Repo id must be in the form", WEIGHTS_LOST),
    "hub_id_offline": ("huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an appropriate", WEIGHTS_LOST),
    "kv_bad_env": ("invalid literal for int() with base 10: 'abc'", ""),
    "kv_too_big": (
        "ValueError: Available memory on node 0 (20.13/23.54 GiB) on kv cache allocation is less than requested",
        "Lower engines.vllm.kv_cache_mib in the profile.",
    ),
    "kv_too_small": (
        "ValueError: No available memory for the cache blocks.",
        "Raise engines.vllm.kv_cache_mib or gpu_memory_utilization.",
    ),
    "lora_max_rank_bad": ("api_server.py: error: argument --max-lora-rank: invalid choice: 7 (choose from 1,", REFUSED),
    "lora_static_missing": (
        "vllm.exceptions.LoRAAdapterNotFoundError: Loading lora x failed: No adapter found for /models/nope-lora",
        "An adapter is not where it was: orch lora ls, then orch lora add it again.",
    ),
    "max_model_len": (
        "User-specified max_model_len (999999) is greater than the derived max_model_len",
        "Lower serving.context in the profile.",
    ),
    "no_config": ("Invalid repository ID or local directory specified: '/models/fail/m_nocfg'.", WEIGHTS_LOST),
    "no_tokenizer": (
        "IndexError: list index out of range",
        "Perhaps the weights have no tokenizer files: orch artifacts verify",
    ),
    "no_weights": ("RuntimeError: Cannot find any model weights with `/models/fail/m_noweights`", WEIGHTS_LOST),
    "nvfail_a16_plugin": ("ValueError: Forced NVFP4 kernel MarlinNvFp4LinearKernel is not supported", NO_NVFP4),
    "nvfail_tiny-qwen3-nvfp4": ("ValueError: Failed to find a kernel that can implement the NVFP4", NO_NVFP4),
    "port_in_use": ("OSError: [Errno 98] Address already in use", PORT),
    "port_privileged_host": ("OSError: [Errno 99] Cannot assign requested address", ""),
    "quant_awq_on_bf16": ("Cannot find the config file for awq", ""),
    "quant_bogus": ("Unknown quantization method: bogus. Must be one of ['awq',", ""),
    "quant_ct_on_bf16": ("TypeError: CompressedTensorsConfig.__init__() missing 3 required positional arguments", ""),
    "shape_mismatch": (
        "RuntimeError: The size of tensor a (512) must match the size of tensor b (256)",
        "The weights do not fit their own config.json: is it the right one?",
    ),
    "trunc_weights": ("safetensors._safetensors_rust.SafetensorError: Error while deserializing", WEIGHTS_DAMAGED),
    "tensor_parallel_heads": (
        "Total number of attention heads (4) must be divisible by tensor parallel size (3).",
        "The profile's engines.vllm.gpus does not divide the model.",
    ),
    "tensor_parallel_trunc_weights": (
        "safetensors._safetensors_rust.SafetensorError: Error while deserializing",
        WEIGHTS_DAMAGED,
    ),
    "unknown_arch": (
        "The checkpoint you are trying to load has model type `nope` but Transformers does not recognize",
        "The pinned vLLM does not know this architecture.",
    ),
    "unknown_flag": (
        "api_server.py: error: unrecognized arguments: --no-such-flag",
        "This vLLM is not the pinned one; its options differ.",
    ),
}
LLAMACPP = {
    "missing": (
        "gguf_init_from_file: failed to open GGUF file '/nonexist.gguf'",
        "The artifact is gone: run orch up again, and it is made again.",
    ),
    "random": ("gguf_init_from_reader: invalid magic characters", DAMAGED),
    "empty": ("gguf_init_from_reader: failed to read magic", DAMAGED),
    "trunc_tensors": ("llama_model_load: error loading model: tensor 'blk.2.ffn_down.weight' data is not", DAMAGED),
    "trunc_header": ("gguf_init_from_reader: failed to read key-value pairs", DAMAGED),
    "version9": ("gguf_init_from_reader: this GGUF file is version 9 but this software only supports", DAMAGED),
    "missing_key": ("llama_model_load: error loading model: error loading model hyperparameters: key not", DAMAGED),
    "arch": (
        "llama_model_load: error loading model: unknown model architecture: 'qwenX'",
        "The embedded llama.cpp does not know this architecture.",
    ),
    "port_in_use": ("srv         start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 18799", PORT),
    "lora_missing": ("llama_adapter_lora_init: failed to open '/nonexist.gguf': No such file", OTHER_ADAPTER),
    "lora_is_model": ("llama_adapter_lora_init_from_file_ptr: failed to apply lora adapter: expect", OTHER_ADAPTER),
    "context_too_large": ("ggml_aligned_malloc: insufficient memory (attempted to allocate 39063.00 MB)", SMALLER),
}
OLLAMA = {
    "bad_host": ("Error: listen tcp 203.0.113.7:11501: bind: cannot assign requested address", ""),
    "no_home": ("Error: $HOME is not defined", ""),
    "port_in_use": ("Error: listen tcp 127.0.0.1:11500: bind: address already in use", PORT),
    "models_dir_is_a_file": ("Error: mkdir afile: not a directory", ""),
    "out_of_memory": (
        "llama-server process has terminated: exit status 1: ggml_aligned_malloc: insufficient memory",
        SMALLER,
    ),
}
EXPECTED = {"vllm": VLLM, "llamacpp": LLAMACPP, "ollama": OLLAMA}
CASES = [(engine, case) for engine, cases in EXPECTED.items() for case in cases]


def recorded(engine: str) -> dict[str, str]:
    text = (RECORDED / f"{engine}_failures.txt").read_text()
    sections = re.split(r"^=== ", text, flags=re.MULTILINE)[1:]
    return {name: log for name, _, log in (section.partition("\n") for section in sections)}


@pytest.mark.parametrize("engine", EXPECTED)
def test_every_recorded_case_has_an_expectation(engine: str) -> None:
    assert recorded(engine).keys() == EXPECTED[engine].keys()


@pytest.mark.parametrize(("engine", "case"), CASES)
def test_the_telling_line(engine: str, case: str) -> None:
    failure = ENGINES[engine].failure(recorded(engine)[case])
    line, hint = EXPECTED[engine][case]
    assert failure.line.startswith(line)
    assert "\n" not in failure.line
    assert "type=value_error" not in failure.line
    assert failure.hint == hint


@pytest.mark.parametrize("engine", EXPECTED)
def test_an_empty_log_tells_nothing(engine: str) -> None:
    failure = ENGINES[engine].failure("")
    assert (failure.line, failure.hint) == ("", "")


@pytest.mark.parametrize("engine", EXPECTED)
def test_an_unknown_end_tells_its_last_line(engine: str) -> None:
    assert ENGINES[engine].failure("one\nsomething new happened\n\n").line == "something new happened"
