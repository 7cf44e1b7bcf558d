"""orch fit: on this machine, on GPUs that are made up, and of a size; nothing is asked of a hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from gpu_machines import DRIVER_NOT_LOADED, H200, RTX_5090, compiled, machine_env
from orch_command import ASSETS, Orch, free_port
from test_terminal import on_terminal, too_wide

GB = 10**9
QWEN3 = ("fit", "-p", "qwen3-8b", "--gpu-memory", "32GB")


def rows_of(orch: Orch, *words: str) -> dict[tuple[str, str], dict[str, Any]]:
    """What is counted, by engine and artifact."""
    lines = orch.run(*words, "--json").lines
    return {(line["engine"], line["recipe"]): line for line in lines if "engine" in line}


def test_qwen3_8b_on_32_gb_without_its_weights(orch: Orch) -> None:
    lines = orch.run(*QWEN3, "--json").lines
    rows = {(line["engine"], line["recipe"]): line for line in lines if "engine" in line}
    assert list(rows) == [
        *(("ollama", "gguf-q6_k"), ("ollama", "gguf-nvfp4")),
        *(("vllm", "nvfp4a16"), ("vllm", "weights")),
    ]
    simple, many = rows["ollama", "gguf-q6_k"], rows["vllm", "nvfp4a16"]
    assert {row["total"] for row in rows.values()} == {32 * GB}
    # 36 layers x 8 KV heads x (keys and values) x 128 x 2 bytes, for 4 requests of 8192 tokens.
    assert {row["kv"] for row in rows.values()} == {36 * 8 * 2 * 128 * 2 * 4 * 8192}
    assert all(row["alone"] == row["weights"] + row["kv"] + row["rest"] for row in rows.values())
    assert (simple["most_separate"], simple["most_together"], simple["at_once"]) == (2, None, 1)
    assert many["together"] == many["alone"] + 5 * many["adapter"]
    assert many["alone"] + many["most_together"] * many["adapter"] <= 32 * GB
    assert many["alone"] + (many["most_together"] + 1) * many["adapter"] > 32 * GB
    assert [line["left_out"] for line in lines if "left_out" in line] == ["llamacpp"]
    told = {line["article"]: line for line in lines if "article" in line}
    assert told["ollama"]["weights_of_five"] / GB == pytest.approx(told["ollama"]["five_models_gb"], rel=0.005)
    assert [told[name]["contradicts_itself"] for name in ("ollama", "vllm")] == [False, True]


def test_more_adapters_and_ranks_take_more(orch: Orch) -> None:
    few, many = rows_of(orch, *QWEN3), rows_of(orch, *QWEN3, "--adapters", "10", "--rank", "64")
    row, more = few["vllm", "nvfp4a16"], many["vllm", "nvfp4a16"]
    assert more["adapter"] == 4 * row["adapter"]
    assert more["together"] - more["alone"] == 8 * (row["together"] - row["alone"])
    assert more["separate"] == 2 * row["separate"]


def test_people_are_told_why_the_article_has_other_figures(orch: Orch) -> None:
    lines = on_terminal(orch, *QWEN3)
    assert too_wide([line for line in lines if not line.startswith("- ")]) == []
    said = "\n".join(lines)
    assert "weights alone" in said
    assert "less than its own 6.4 GB" in said
    assert "147 kB (16 bit)" in said
    # Of another model the article says nothing.
    assert "article" not in orch.run("fit", "-p", str(orch.profile)).out


def test_without_a_gpu_in_what_engines_may_have_of_the_hosts_memory(orch: Orch) -> None:
    rows = rows_of(orch, "fit", "-p", str(orch.profile))
    assert {row["place"] for row in rows.values()} & {"a GPU"} == set()
    assert ("vllm", "weights") in rows
    assert {row["engine"] for row in rows.values()} == {"ollama", "llamacpp", "vllm"}
    orch.env["ORCH_ENGINE_MEMORY"] = "3GB"
    assert {row["total"] for row in rows_of(orch, "fit", "-p", str(orch.profile)).values()} == {3 * GB}


def test_a_hub_tells_the_sizes_of_what_is_not_here(orch: Orch, hub: Any, hub_profile: str) -> None:
    assert hub.url == orch.env["HF_ENDPOINT"]
    pulled, local = rows_of(orch, "fit", "-p", hub_profile), rows_of(orch, "fit", "-p", str(orch.profile))
    row, here = pulled["vllm", "weights"], local["vllm", "weights"]
    assert (row["kv_token"], row["adapter"]) == (here["kv_token"], here["adapter"])
    # By its parameters: what the file has after its header.
    content = (ASSETS / "tiny-qwen3" / "model.safetensors").read_bytes()
    assert row["weights"] == len(content) - 8 - int.from_bytes(content[:8], "little")
    orch.env["HF_ENDPOINT"] = f"http://127.0.0.1:{free_port()}"
    orch.run("fit", "-p", hub_profile, code=4)


def test_a_quantised_kv_cache_takes_less(orch: Orch) -> None:
    whole = rows_of(orch, "fit", "-p", str(orch.profile))["ollama", "gguf-q6_k"]
    orch.profile.write_text(orch.profile.read_text() + '[engines.ollama]\nkv_cache_type = "q8_0"\n')
    less = rows_of(orch, "fit", "-p", str(orch.profile))["ollama", "gguf-q6_k"]
    assert less["kv"] == whole["kv"] * 34 // 64
    assert "(8.5 bit)" in orch.run("fit", "-p", str(orch.profile)).out


def spread_over(orch: Orch, gpus: int) -> str:
    """The path of the shipped profile, with vLLM over so many GPUs."""
    text = orch.run("profile", "show", "qwen3-8b").out
    path = orch.home / "spread.toml"
    path.write_text(re.sub(r"(\[engines\.vllm\]\n)", rf"\1gpus = {gpus}\n", text))
    return str(path)


def test_over_several_gpus_it_is_what_each_holds_and_the_article_has_one(orch: Orch) -> None:
    of_one = orch.run(*QWEN3, "--json").lines
    lines = orch.run("fit", "-p", spread_over(orch, 2), "--gpu-memory", "32GB", "--json").lines
    one, two = ({line.get("engine"): line for line in told}["vllm"] for told in (of_one, lines))
    assert (one["gpus"], two["gpus"]) == (1, 2)
    assert two["weights"] == pytest.approx(one["weights"] / 2, abs=1)
    assert [line for line in lines if "article" in line] == [line for line in of_one if "article" in line]
    odd = orch.run("fit", "-p", spread_over(orch, 3), "--gpu-memory", "32GB", "--json").lines
    assert {line["left_out"] for line in odd if "left_out" in line} == {"llamacpp", "vllm"}


def test_nothing_that_could_be_served_is_refused_with_each_reason(orch: Orch) -> None:
    text = orch.profile.read_text().replace("[engines.llamacpp]\n", '[engines.llamacpp]\nrecipes = ["weights"]\n')
    text = text.replace("[engines.vllm]\n", '[engines.vllm]\nrecipes = ["nvfp4a16"]\n')
    orch.profile.write_text(text + '[engines.ollama]\nrecipes = ["weights"]\n')
    (told,) = orch.run("fit", "-p", str(orch.profile), "--json", code=5).lines
    assert [line.split(":")[0] for line in told["detail"].splitlines()] == [
        *("ollama weights", "llamacpp weights", "vllm nvfp4a16"),
    ]
    orch.run(*told["hint"].split(": orch ")[1].split())


@pytest.fixture(scope="module")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the library, compiled."""
    return compiled(tmp_path_factory.mktemp("nvml"))


def test_the_largest_gpu_that_is_here(orch: Orch, nvml: Path) -> None:
    orch.env |= machine_env(nvml, RTX_5090, H200)
    rows = rows_of(orch, "fit", "-p", "qwen3-8b")
    assert {(row["place"], row["total"]) for row in rows.values()} == {("NVIDIA H200", 143771 * 2**20)}
    assert "in use now" in orch.run("fit", "-p", "qwen3-8b").out
    assert {row["place"] for row in rows_of(orch, *QWEN3).values()} == {"a GPU"}


def test_a_gpu_that_does_not_work_is_not_the_cpu_in_silence(orch: Orch, nvml: Path) -> None:
    orch.env |= machine_env(nvml, RTX_5090, NVML_INIT=DRIVER_NOT_LOADED)
    (told,) = orch.run("fit", "-p", "qwen3-8b", "--json", code=4).lines
    assert "Driver Not Loaded" in told["error"]
    assert told["hint"].startswith("orch fit --gpu-memory 32GB -p qwen3-8b ")
    orch.run(*told["hint"].split()[1:6])


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--gpu-memory", "32"), 2, "not a valid size"),
        (("--gpu-memory", "much"), 2, "not a valid size"),
        (("--adapters", "0"), 2, "--adapters"),
        (("--rank", "513"), 2, "--rank"),
        (("-p", "nobody"), 3, "no profile named nobody"),
    ],
)
def test_what_is_wrong_is_said(orch: Orch, words: tuple[str, ...], code: int, told: str) -> None:
    assert told in orch.run("fit", *words, code=code).err
