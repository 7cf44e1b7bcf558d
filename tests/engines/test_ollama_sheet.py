"""Ollama's own: settings, what is sent to import a model and its adapters, and what its answers mean."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest
from fakes.asks import CPU, adapter, resolved, tiny, weights_of

from orchestrator.core.deployment import Deployment, DeploymentSpec, Desired
from orchestrator.core.meaning import NEUTRAL
from orchestrator.core.pins import Accelerator
from orchestrator.core.profile import parse_profile
from orchestrator.engines import ENGINES
from orchestrator.engines.base import EngineCall
from orchestrator.engines.ollama import OllamaSettings
from orchestrator.engines.settings import read_settings
from orchestrator.errors import ProfileError

SHEET = ENGINES["ollama"]
HOST = replace(CPU, programs={"ollama": "/usr/bin/ollama"})
PROFILE = 'name = "x"\npublic_names = ["x"]\n[weights]\npath = "/x"\n[serving]\ncontext = 512\n[engines.ollama]\n'


def digest(path: str) -> str:
    return hashlib.sha256(path.encode()).hexdigest()


def deployment(*adapters: str, **profile: Any) -> Deployment:
    made = tiny(**profile)
    spec = DeploymentSpec(profile=made, engine="ollama", target="local")
    fitted = tuple(adapter(text, made) for text in adapters)
    return resolved(Desired(spec=spec, adapters=fitted), HOST).deployment


@pytest.mark.parametrize(
    ("settings", "env"),
    [
        ({}, {}),
        ({"kv_cache_type": "f16"}, {"OLLAMA_KV_CACHE_TYPE": "f16"}),
        ({"kv_cache_type": "q8_0"}, {"OLLAMA_KV_CACHE_TYPE": "q8_0"}),
        ({"flash_attention": True}, {"OLLAMA_FLASH_ATTENTION": "1"}),
        ({"flash_attention": False}, {"OLLAMA_FLASH_ATTENTION": "0"}),
        (
            {"kv_cache_type": "q4_0", "flash_attention": True},
            {"OLLAMA_KV_CACHE_TYPE": "q4_0", "OLLAMA_FLASH_ATTENTION": "1"},
        ),
    ],
)
def test_what_the_profile_does_not_say_is_left_to_it(settings: dict[str, Any], env: dict[str, str]) -> None:
    given = dict(deployment(engines={"ollama": settings}).launch.env)
    names = {"OLLAMA_KV_CACHE_TYPE", "OLLAMA_FLASH_ATTENTION"}
    assert {name: value for name, value in given.items() if name in names} == env


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('kv_cache_type = "q8_0"\nflash_attention = false', "kv_cache_type q8_0 needs flash_attention"),
        ('kv_cache_type = "q4_0"\nflash_attention = false', "kv_cache_type q4_0 needs flash_attention"),
        ('kv_cache_type = "bogus"', "engines.ollama.kv_cache_type"),
        ('keep_alive = "soon"', "engines.ollama.keep_alive"),
        ('keep_alive = "5m "', "engines.ollama.keep_alive"),
        ("keep_alive = 5", "engines.ollama.keep_alive"),
        ('keep_alive = "1.5"', "engines.ollama.keep_alive"),
        ('keep_alive = "0"', "loads the model anew"),
        ('keep_alive = "0s"', "loads the model anew"),
        ("prompt_cache_mib = -1", "engines.ollama.prompt_cache_mib"),
        ("prompt_cache_mib = 1.5", "engines.ollama.prompt_cache_mib"),
    ],
)
def test_what_it_would_fail_with_at_each_load_is_refused_in_the_profile(lines: str, said: str) -> None:
    with pytest.raises(ProfileError) as refused:
        parse_profile(PROFILE + lines, "x.toml", read_settings)
    assert said in refused.value.detail


@pytest.mark.parametrize("keep_alive", ["5m", "-1", "10", "1.5h", "300ms", "24h"])
def test_keep_alive_as_it_writes_it(keep_alive: str) -> None:
    profile = parse_profile(f'{PROFILE}keep_alive = "{keep_alive}"', "x.toml", read_settings)
    assert OllamaSettings.of(profile, "ollama").keep_alive == keep_alive


def test_a_quantized_cache_asks_for_less_memory() -> None:
    shape = weights_of(tiny()).shape
    assert shape is not None

    def asked(kind: str | None) -> int:
        profile = tiny(engines={"ollama": {"kv_cache_type": kind}})
        return SHEET.memory_request(profile, 1, shape, Accelerator.CPU, 0).kv_token

    assert asked(None) == asked("f16") == 1024
    assert (asked("q8_0"), asked("q4_0")) == (544, 288)


def test_the_model_is_uploaded_and_made_with_its_parameters() -> None:
    made = deployment(sampling={"temperature": 0.5, "top_k": 20})
    blob = f"sha256:{digest(made.model_path)}"
    upload, create = SHEET.import_requests(made, digest)
    path, shown = f"/api/blobs/{blob}", EngineCall("POST", "/api/show", {"model": "tiny"})
    assert upload == EngineCall("POST", path, file=made.model_path, unless=path, done=shown)
    assert (create.method, create.path, create.done) == ("POST", "/api/create", shown)
    assert create.body == {
        "model": "tiny",
        "files": {"model.gguf": blob},
        "parameters": {"num_ctx": 512, **NEUTRAL, "temperature": 0.5, "top_k": 20},
    }


def test_each_adapter_is_a_model_made_from_the_base() -> None:
    made = deployment("a", "b")
    requests = SHEET.import_requests(made, digest)
    assert len(requests) == 6
    for one, (upload, create) in zip(made.adapters, (requests[2:4], requests[4:6]), strict=True):
        blob = f"sha256:{digest(one.gguf)}"
        assert (upload.file, upload.path) == (one.gguf, f"/api/blobs/{blob}")
        assert create.body == {
            "model": SHEET.upstream(made, one),
            "from": "tiny",
            "adapters": {"adapter.gguf": blob},
            "parameters": {"num_ctx": 512, **NEUTRAL},
        }
        assert SHEET.load_requests(made, one, digest) == (upload, create)


def test_what_is_unloaded_is_the_model_of_what_runs() -> None:
    made = deployment("a", "b")
    (gone,) = SHEET.unload_requests(made, "a")
    assert gone == EngineCall("DELETE", "/api/delete", {"model": SHEET.upstream(made, made.adapters[0])})
    assert SHEET.unload_requests(made, "nobody") == ()


@pytest.mark.parametrize(
    ("status", "text", "said"),
    [
        (200, '{"status":"parsing GGUF"}\n{"status":"success"}\n', ""),
        (200, "", ""),
        (201, "", ""),
        # An error after the first line of a stream.
        (200, '{"status":"parsing GGUF"}\n{"error":"unsupported architecture"}\n', "unsupported architecture"),
        (400, '{"error":"digest mismatch"}', "digest mismatch"),
        (404, '{"error":"model \'x:latest\' not found"}', "model 'x:latest' not found"),
        (404, "404 page not found", "404 page not found"),
        (500, '{"error":{"message":"no memory"}}', "no memory"),
    ],
)
def test_a_refusal(status: int, text: str, said: str) -> None:
    assert SHEET.refusal(status, text) == said


def test_an_upload_is_spent_unless_the_answer_names_it() -> None:
    made = deployment("a")
    upload, create, upload_a, create_a = SHEET.import_requests(made, digest)
    named = digest(made.model_path)
    assert SHEET.spent(create, f'{{"status":"using existing layer sha256:{named}"}}') == ""
    assert SHEET.spent(create, f'{{"modelfile":"FROM /models/blobs/sha256-{named}"}}') == ""
    assert SHEET.spent(create, '{"status":"success"}') == f"models/blobs/sha256-{named}"
    # An adapter's stays as it is.
    assert {SHEET.spent(call, "") for call in (upload, upload_a, create_a)} == {""}


def test_what_is_spare_is_of_no_adapter_of_its_own() -> None:
    made = deployment("a")
    kept = [SHEET.upstream(made, None), SHEET.upstream(made, made.adapters[0]), "adapter-0123456789ab", "adapter-mine"]
    reply = {"models": [{"name": f"{name}:latest"} for name in kept]}
    assert SHEET.spare(made, reply) == ("adapter-0123456789ab",)
    namesake = made.model_copy({"profile": "adapter-0123456789ab"})
    assert SHEET.spare(namesake, reply) == (), "the base may be called so, too"
    assert SHEET.discard_requests("adapter-0123456789ab")[0].body == {"model": "adapter-0123456789ab"}


@pytest.mark.parametrize(
    ("error", "said", "hint"),
    [
        (
            "llama-quantize failed: exit status 1",
            "llama-quantize failed: exit status 1",
            "three times the model's size",
        ),
        ("write /m/blobs/sha256-1: no space left on device", "no space left on device", "free some space"),
    ],
)
def test_a_full_disk_in_an_import_is_told_in_our_words(error: str, said: str, hint: str) -> None:
    theirs = f"failed to validate GGUF with llama-quantize without compatibility patches: {error}"
    told = SHEET.refusal(200, f'{{"status":"parsing GGUF"}}\n{{"error":"{theirs}"}}\n')
    assert told.startswith("it could not write the model into its store: ")
    assert said in told
    assert hint in SHEET.failure(told).hint


def test_what_two_creations_do_to_each_other_passes() -> None:
    assert SHEET.passes("open /m/blobs/sha256-1: no such file or directory")
    assert not SHEET.passes("unsupported architecture")


@pytest.mark.parametrize(
    ("reply", "asked"),
    [({"models": []}, None), (None, None), ({"models": [{"name": "adapter-1:latest"}]}, "adapter-1:latest")],
)
def test_only_what_is_loaded_is_asked_whether_it_lives(reply: Any, asked: str | None) -> None:
    call = SHEET.pulse(reply)
    assert (call.body or {}).get("model") == asked if call is not None else asked is None


def test_prompts_that_it_keeps_are_told_to_it_and_counted() -> None:
    shape = weights_of(tiny()).shape
    assert shape is not None

    def asked(accelerator: Accelerator, **settings: int) -> int:
        return SHEET.memory_request(tiny(engines={"ollama": settings}), 1, shape, accelerator, 0).fixed

    told = dict(deployment(engines={"ollama": {"prompt_cache_mib": 512}}).launch.env)
    assert told["LLAMA_ARG_CACHE_RAM"] == "512"
    assert dict(deployment().launch.env)["LLAMA_ARG_CACHE_RAM"] == "0"
    assert asked(Accelerator.CPU, prompt_cache_mib=512) - asked(Accelerator.CPU) == 512 * 2**20
    assert asked(Accelerator.CUDA, prompt_cache_mib=512) == asked(Accelerator.CUDA)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_refusal_without_a_word_is_one_all_the_same(engine: str) -> None:
    assert ENGINES[engine].refusal(403, "") == "HTTP 403"


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ({"models": [{"name": "tiny:latest", "size": 100, "size_vram": 100}]}, ""),
        # The driver's view of a GPU counts more than the file has.
        ({"models": [{"name": "tiny:latest", "size": 100, "size_vram": 120}]}, ""),
        (
            {"models": [{"name": "tiny:latest", "size": 100, "size_vram": 0}]},
            "tiny:latest has 0% of its memory on the GPU, the rest on the CPU",
        ),
        (
            {"models": [{"name": "tiny:latest", "size": 200, "size_vram": 150}]},
            "tiny:latest has 75% of its memory on the GPU, the rest on the CPU",
        ),
        (
            {"models": [{"name": "tiny:latest", "size": 100}]},
            "tiny:latest has 0% of its memory on the GPU, the rest on",
        ),
        (
            {"models": [{"name": "a", "size": 1, "size_vram": 1}, {"name": "b", "size": 2, "size_vram": 1}]},
            "b has 50% of its memory on the GPU, the rest on the CPU",
        ),
        ({"models": []}, "no model is loaded"),
        ({"models": None}, "no model is loaded"),
        (None, "no model is loaded"),
    ],
)
def test_it_falls_back_to_the_cpu_without_a_word(reply: Any, said: str) -> None:
    told = SHEET.not_on_gpu(reply)
    assert told.startswith(said) if said else told == ""


@pytest.mark.parametrize("engine", ["vllm", "llamacpp"])
def test_the_others_need_not_be_asked(engine: str) -> None:
    assert (ENGINES[engine].gpu_path(), ENGINES[engine].not_on_gpu(None)) == ("", "")
