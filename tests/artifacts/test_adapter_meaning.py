"""An adapter means what PEFT means by it, or is refused in words that help; PEFT's word is in assets/adapters."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_files import ADAPTERS, CONFIG, LORA_A, WEIGHTS, copy_of, peft_oracles, tensors_of, with_tensors
from artifact_files import TINY, edit_json, read_safetensors, write_safetensors

from orchestrator.artifacts.builder import Builder
from orchestrator.artifacts.peft import check_fits, read_adapter
from orchestrator.artifacts.rows import to_float32
from orchestrator.core.artifact import Recipe
from orchestrator.core.progress import silent
from orchestrator.errors import OrchError, PlanRefused, SourceError

LAYER = "base_model.model.model.layers.0.self_attn.q_proj"
FIRST, SECOND = f"{LAYER}.lora_A.weight", f"{LAYER}.lora_B.weight"
EMBED = "base_model.model.model.embed_tokens"
EMBEDDING, HEAD = f"{EMBED}.weight", "base_model.model.lm_head.weight"
# PEFT reads these as a plain LoRA on a base that is not quantized, and they are refused: GPTQ's is what they are for.
REFUSED_ALL_THE_SAME = {"qalora"}


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A writable copy of lora-a."""
    return copy_of(LORA_A, tmp_path / "adapter")


def refusal(directory: Path, base: Path | None = TINY) -> OrchError:
    with pytest.raises((SourceError, PlanRefused)) as caught:
        Builder(Path("none")).adapter(directory, base)
    assert caught.value.hint
    return caught.value


def imported(directory: Path, work: Path, base: Path | None = TINY) -> Path:
    work.mkdir()
    Builder(Path("none")).build(Recipe.ADAPTER, directory, work, silent, base)
    return work


# Settings


@pytest.mark.parametrize("kind", sorted(peft_oracles()["settings"]))
def test_a_setting_is_taken_where_peft_computes_a_plain_lora_with_it(kind: str, tmp_path: Path) -> None:
    settings = peft_oracles()["settings"][kind]
    rank, shapes = settings["config"]["r"], {"q_proj": 256, "v_proj": 128}
    tensors = {}
    for target in settings["config"]["target_modules"]:
        module = f"base_model.model.model.layers.0.self_attn.{target}"
        tensors[f"{module}.lora_A.weight"] = np.ones((rank, 256), np.float32)
        tensors[f"{module}.lora_B.weight"] = np.ones((shapes[target], rank), np.float32)
    with_tensors(tmp_path, tensors)
    (tmp_path / CONFIG).write_text(json.dumps(settings["config"]))
    if settings["plain"] and kind not in REFUSED_ALL_THE_SAME:
        assert Builder(Path("none")).adapter(tmp_path, TINY).alpha == 8
    else:
        assert "cannot be served" in refusal(tmp_path).message


CONVERSION = r"path_initial_model_for_weight_conversion=INITIAL"
MERGE = r"[Mm]erge"


@pytest.mark.parametrize(
    ("changes", "reason", "hint"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'", CONVERSION),
        ({"init_lora_weights": "PiSSA_niter_16"}, "trained on a base that this init had changed", CONVERSION),
        ({"init_lora_weights": "olora"}, "init_lora_weights", f"{CONVERSION}.*{MERGE}"),
        # Loaded, its base is as before, and so merging would give something else than what was trained.
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights", f"{CONVERSION}(?!.*{MERGE})"),
        ({"init_lora_weights": "corda"}, "init_lora_weights", f"{CONVERSION}(?!.*{MERGE})"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights", f"^(?!.*{CONVERSION}).*{MERGE}"),
        ({"init_lora_weights": "next"}, "what that does is not known", MERGE),
        ({"kasa_config": {"beta": 0.1}}, "kasa_config is", MERGE),
        ({"use_dora": True}, "use_dora is True", MERGE),
        ({"use_what_comes_next": True}, "use_what_comes_next is True", MERGE),
        ({"bias": "all"}, "bias is 'all'", MERGE),
        # PEFT cannot merge these, or not into every layer.
        ({"lora_bias": True}, "lora_bias is True", "without lora_bias"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens is [1]", "cannot merge"),
        ({"arrow_config": {"top_k": 3}}, "arrow_config is", "cannot merge"),
        ({"use_qalora": True}, "use_qalora is True", "cannot merge"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices", MERGE),
        ({"megatron_config": {"a": 1}}, "megatron_config", MERGE),
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'", MERGE),
        ({"peft_type": ...}, "peft_type is None", MERGE),
        ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'", "CAUSAL_LM"),
        ({"rank_pattern": {"(q|k)_proj": 8}}, "a regular expression", "names"),
        ({"use_rslora": "yes"}, "use_rslora is 'yes'", "save_pretrained"),
        ({"r": 0}, "r is 0", "save_pretrained"),
        ({"r": True}, "r is True", "save_pretrained"),
        ({"lora_alpha": None}, "lora_alpha is None", "save_pretrained"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan", "save_pretrained"),
        ({"target_modules": {"q_proj": 1}}, "target_modules is", "save_pretrained"),
        ({"alpha_pattern": {"q_proj": "4"}}, "alpha_pattern is", "save_pretrained"),
        ({"r": 16}, "its rank is 16 by adapter_config.json", "one and the same save_pretrained"),
        ({"rank_pattern": {"q_proj": 4}}, "its rank is 4 by adapter_config.json", "one and the same save_pretrained"),
        ({"target_modules": ["q_proj"]}, "target_modules does not name", "one and the same save_pretrained"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save names lm_head", "one and the same save_pretrained"),
    ],
)
def test_a_setting_is_refused_with_a_way_out(changes: dict[str, object], reason: str, hint: str, copied: Path) -> None:
    edit_json(copied / CONFIG, **changes)
    error = refusal(copied)
    assert reason in error.message
    assert re.search(hint, error.hint)


def test_unset_settings_that_are_not_known_are_no_reason_to_refuse(copied: Path) -> None:
    edit_json(copied / CONFIG, next_config=None, next_flag=False, next_list=[], peft_version="1.0", revision="main")
    assert read_adapter(copied).rank == 8


def test_what_llama_factory_has_converted_is_named(copied: Path) -> None:
    edit_json(copied / CONFIG, init_lora_weights="pissa")
    converted = copy_of(LORA_A, copied / "pissa_converted")
    assert refusal(copied).hint == f"It has been saved converted too: name {converted}."
    assert read_adapter(converted).rank == 8


# Names


@pytest.mark.parametrize(
    "wrapper",
    [kind for kind, names in peft_oracles()["names"].items() if all("lora_" in name for name in names)],
)
def test_names_of_wrappers_become_pefts_own(wrapper: str, tmp_path: Path) -> None:
    """Those of the first layer are as PEFT and torch wrote them; the rest is lora-a."""
    ours = tensors_of(LORA_A)
    names = peft_oracles()["names"]
    told = dict(zip(names["as it is"], names[wrapper], strict=True))
    source = with_tensors(
        copy_of(LORA_A, tmp_path / "adapter"), {told.get(name, name): one for name, one in ours.items()}
    )
    work = imported(source, tmp_path / "work")
    assert {name: one.tobytes() for name, one in tensors_of(work).items()} == {
        name: one.tobytes() for name, one in ours.items()
    }
    assert (work / CONFIG).read_bytes() == (source / CONFIG).read_bytes()


def test_a_plain_adapter_is_imported_byte_for_byte(tmp_path: Path) -> None:
    work = imported(LORA_A, tmp_path / "work", base=None)
    for name in (CONFIG, WEIGHTS):
        assert (work / name).read_bytes() == (LORA_A / name).read_bytes()
    assert len(list(work.iterdir())) == 2


@pytest.mark.parametrize(
    ("names", "reason", "hint"),
    [
        ({FIRST: f"{LAYER}.lora_A.one.weight", SECOND: f"{LAYER}.lora_B.two.weight"}, "one, two", "selected_adapters"),
        ({FIRST: f"{LAYER}.lora_magnitude_vector"}, "DoRA", MERGE),
        ({FIRST: f"{LAYER}.lora_diag"}, "not of a plain LoRA", MERGE),
        ({FIRST: f"{LAYER}.lora_B.bias"}, "a bias of a LoRA", "without lora_bias"),
        ({FIRST: f"{EMBED}.lora_embedding_A"}, "a LoRA of the embeddings", MERGE),
        ({FIRST: f"{EMBED}.token_adapter.trainable_tokens_delta"}, "trained rows of the embeddings", MERGE),
    ],
)  # fmt: skip
def test_tensors_of_something_else_are_refused(names: dict[str, str], reason: str, hint: str, copied: Path) -> None:
    with_tensors(copied, {names.get(name, name): tensor for name, tensor in tensors_of(copied).items()})
    error = refusal(copied, base=None)
    assert reason in error.message
    assert re.search(hint, error.hint)


def test_two_tensors_of_one_meaning_are_refused(copied: Path) -> None:
    tensors = tensors_of(copied)
    with_tensors(copied, {**tensors, f"_orig_mod.{FIRST}": tensors[FIRST]})
    error = refusal(copied, base=None)
    assert f"2 tensors that mean {FIRST}" in error.message
    assert "unwrapped" in error.hint


PARTS = (
    *("base_model", "model", "module", "_orig_mod", "layers", "0", "9", "self_attn", "q_proj", "lm_head", "norm", ""),
    *("embed_tokens", "lora_A", "lora_B", "lora_embedding_A", "default", "weight", "bias", "base_layer", "lora_"),
    *("modules_to_save", "original_module", "token_adapter", "experts"),
)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_tensors_are_called_they_are_taken_or_refused(seed: int, copied: Path) -> None:
    draw = random.Random(seed)
    halves = tensors_of(LORA_A)
    for _ in range(10):
        name = ".".join(draw.choices(PARTS, k=draw.randint(1, 9)))
        shape = draw.choice([(), (8,), (8, 256), (256, 8), (0, 8), (1, 8, 256)])
        with_tensors(copied, halves | {name: np.zeros(shape, np.float32)})
        with pytest.raises((SourceError, PlanRefused)):
            Builder(Path("none")).adapter(copied, TINY)


# Fit


@pytest.mark.parametrize(
    ("base", "module", "reason", "hint"),
    [
        ({"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}, "", "no such linear layer", "has 3 layers"),
        ({"hidden_size": 512}, "", "the base needs", "other sizes"),
        ({}, "model.layers.0.mlp.experts.3.up_proj", "no such linear layer", "mixture of experts"),
        ({}, "model.layers.0.mlp.gate", "no such linear layer", "mixture of experts"),
        ({}, "model.language_model.layers.0.self_attn.q_proj", "no such linear layer", "another kind"),
        ({}, "model.layers.0.self_attn.qkv_proj", "no such linear layer", "another kind"),
        ({}, "lm_head", "no such linear layer", "tie_word_embeddings"),
        ({}, "model.embed_tokens", "no such linear layer", "without embed_tokens"),
    ],
)
def test_what_does_not_fit_the_base_is_told_by_its_kind(
    base: dict[str, object], module: str, reason: str, hint: str, tmp_path: Path, copied: Path
) -> None:
    other = Path(shutil.copytree(TINY, tmp_path / "base"))
    edit_json(other / "config.json", **base)
    if module:
        halves = {
            f"base_model.model.{module}.lora_A.weight": np.zeros((8, 256), np.float32),
            f"base_model.model.{module}.lora_B.weight": np.zeros((4096, 8), np.float32),
        }
        with_tensors(copied, tensors_of(copied) | halves)
        edit_json(copied / CONFIG, target_modules="all-linear")
    error = refusal(copied, other)
    assert isinstance(error, PlanRefused)
    assert reason in error.message
    assert hint in error.hint
    assert len(error.detail.splitlines()) == {"has 3 layers": 8, "other sizes": 16}.get(hint, 2)


def test_the_base_that_an_adapter_names_is_named(tmp_path: Path) -> None:
    other = Path(shutil.copytree(TINY, tmp_path / "base"))
    edit_json(other / "config.json", hidden_size=512)
    with pytest.raises(PlanRefused) as caught:
        check_fits(LORA_A, read_adapter(LORA_A), other)
    assert "tiny-qwen3" in caught.value.hint


@pytest.mark.parametrize(
    ("tensors", "reason", "hint"),
    [
        ({FIRST: None}, "without its other half", "pairs are incomplete"),
        ({FIRST: np.zeros((0,), np.float32)}, "no matrix", "ZeRO-3"),
        ({FIRST: np.zeros((2048,), np.float32)}, "no matrix", "ZeRO-3"),
        ({FIRST: np.zeros((8, 256), np.uint8)}, "is U8 [8, 256]", "BF16, F16, F32"),
        (None, "no tensors", "save_pretrained"),
    ],
)
def test_what_is_incomplete_is_refused(tensors: dict[str, Any] | None, reason: str, hint: str, copied: Path) -> None:
    changed = tensors_of(copied) | tensors if tensors is not None else {}
    with_tensors(copied, {name: tensor for name, tensor in changed.items() if tensor is not None})
    error = refusal(copied)
    assert reason in error.message
    assert hint in error.hint


def test_a_pickled_adapter_is_named_and_not_read(copied: Path) -> None:
    (copied / WEIGHTS).rename(copied / "adapter_model.bin")
    assert "Pickled" in refusal(copied).hint


# Copies of the base's tensors


def embedding() -> np.ndarray[Any, Any]:
    return read_safetensors(TINY)["model.embed_tokens.weight"]


def in_type(dtype: str) -> np.ndarray[Any, Any]:
    values = to_float32(embedding())
    return embedding() if dtype == "BF16" else values.astype({"F32": np.float32, "F16": np.float16}[dtype])


@pytest.mark.parametrize("dtype", ["BF16", "F32", "F16"])
@pytest.mark.parametrize("kind", ["saved embeddings", "modules_to_save", "whole state with modules_to_save"])
def test_unchanged_copies_are_dropped(kind: str, dtype: str, tmp_path: Path) -> None:
    """The head of the tiny model is its embedding."""
    source = copy_of(LORA_A, tmp_path / "adapter")
    with_tensors(source, tensors_of(LORA_A) | dict.fromkeys(peft_oracles()["names"][kind], in_type(dtype)))
    edit_json(source / CONFIG, modules_to_save=["lm_head"])
    Builder(Path("none")).adapter(source, TINY)
    work = imported(source, tmp_path / "work")
    assert tensors_of(work).keys() == tensors_of(LORA_A).keys()
    config = json.loads((work / CONFIG).read_text())
    assert config == json.loads((LORA_A / CONFIG).read_text()) | {"modules_to_save": None}


def test_a_copy_that_was_rounded_is_the_base(tmp_path: Path) -> None:
    base = Path(shutil.copytree(TINY, tmp_path / "base"))
    values = to_float32(embedding()) * np.float32(1 + 2**-12)
    weights = read_safetensors(TINY) | {"model.embed_tokens.weight": values}
    (base / "model.safetensors").unlink()
    write_safetensors(base / "model.safetensors", weights)
    source = with_tensors(copy_of(LORA_A, tmp_path / "adapter"), tensors_of(LORA_A) | {EMBEDDING: embedding()})
    assert Builder(Path("none")).adapter(source, base).rank == 8


@pytest.mark.parametrize("name", [EMBEDDING, HEAD, "base_model.model.model.norm.weight"])
def test_changed_copies_are_refused_with_both_ways_out(name: str, copied: Path, tmp_path: Path) -> None:
    changed = read_safetensors(TINY)["model.norm.weight"] if "norm" in name else embedding()
    changed.reshape(-1)[-1] ^= 1
    with_tensors(copied, tensors_of(copied) | {name: changed})
    error = refusal(copied)
    assert isinstance(error, PlanRefused)
    assert f"{name}, which differs from the base's" in error.message
    assert "merge_and_unload" in error.hint
    assert "save_embedding_layers=False" in error.hint
    with pytest.raises(SourceError, match="differs from the base's"):
        imported(copied, tmp_path / "work")
    with pytest.raises(SourceError, match="differs from the base's"):
        Builder(Path("none")).build(Recipe.LORA_GGUF, copied, tmp_path, silent, TINY)
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize(
    ("rows", "reason"),
    [(4100, "with 4100 rows, where the base has 4096: the vocabulary was resized"), (4000, "the vocabulary was cut")],
)
def test_another_vocabulary_is_told(rows: int, reason: str, copied: Path) -> None:
    with_tensors(copied, tensors_of(copied) | {EMBEDDING: np.resize(embedding(), (rows, 256))})
    error = refusal(copied)
    assert reason in error.message
    assert "resize_token_embeddings" in error.hint


def test_a_head_that_classifies_is_none_of_the_base(copied: Path) -> None:
    with_tensors(copied, tensors_of(copied) | {"base_model.model.score.weight": np.zeros((2, 256), np.float32)})
    assert "score.weight, which the base has not" in refusal(copied).message


def test_copies_are_imported_only_where_the_weights_are_here(copied: Path, tmp_path: Path) -> None:
    with_tensors(copied, tensors_of(copied) | {EMBEDDING: embedding()})
    assert Builder(Path("none")).adapter(copied, None).rank == 8
    with pytest.raises(SourceError, match="weights are not here") as caught:
        imported(copied, tmp_path / "work", base=None)
    assert "save_embedding_layers=False" in caught.value.hint


# Places


def test_what_lies_below_is_named(tmp_path: Path) -> None:
    for step in (50, 500, 1000):
        copy_of(LORA_A, tmp_path / "run" / f"checkpoint-{step}")
    (tmp_path / "run" / "checkpoint-2000").mkdir()
    error = refusal(tmp_path / "run")
    assert error.hint == f"Name it: {tmp_path}/run/checkpoint-1000. Others: checkpoint-500, checkpoint-50."


def test_of_a_hubs_cache_the_snapshot_of_main_is_named(tmp_path: Path) -> None:
    root = tmp_path / "models--owner--name"
    for commit in ("a" * 40, "b" * 40):
        copy_of(LORA_A, root / "snapshots" / commit)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("a" * 40)
    assert f"Name it: {root}/snapshots/{'a' * 40}." in refusal(root).hint


def test_an_adapter_that_peft_saved_under_its_name_is_named(tmp_path: Path) -> None:
    mine = copy_of(LORA_A, tmp_path / "saved" / "mine")
    assert refusal(tmp_path / "saved").hint == f"Name it: {mine}."


def test_the_directory_of_a_file_is_named(copied: Path) -> None:
    assert refusal(copied / WEIGHTS).hint.endswith(f"name {copied}.")


@pytest.mark.parametrize("name", ["none", "."])
def test_a_directory_without_an_adapter_is_refused(name: str, tmp_path: Path) -> None:
    assert "adapter_config.json" in refusal(tmp_path / name).hint


def test_the_kinds_that_are_run_are_all_taken() -> None:
    kinds = [kind for kind in peft_oracles()["answers"] if (ADAPTERS / kind).is_dir()]
    assert len(kinds) == 7
    for kind in kinds:
        check_fits(ADAPTERS / kind, read_adapter(ADAPTERS / kind), TINY)
