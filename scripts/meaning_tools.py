"""Directories of weights as the tools themselves save them, made in the tools' own environments.

    meaning_tools.py NAME MODEL DIR    in the environment of the tool: what NAME makes of the directory MODEL

Unsloth, Axolotl, LLaMA-Factory and torchtune are not run (they want GPUs, or packages that exclude each other): what
each does to the files is done here step by step, after the code of the version that is named.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ADAPTER = Path(__file__).parents[1] / "tests/assets/lora-a"
Step = list[Any]
TAKE: Step = ["take", "tiny-qwen3/*.safetensors"]
SAVE: Step = ["save", "model.safetensors"]
MERGE: Step = ["merge", "lora-a", 2.0]
THREE = tuple(f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3))
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class Tool:
    """What a tool saves: where it runs, what it does, and how the weights that it writes come of tiny-qwen3's."""

    about: str
    environment: str
    save: Callable[[Path, Path], None]
    weights: tuple[Step, ...]
    # The kind (meaning_kinds.py) that it is given.
    source: str = "plain"


TOOLS: dict[str, Tool] = {}


def tool(
    name: str, about: str, environment: str, *weights: Step, source: str = "plain"
) -> Callable[[Callable[[Path, Path], None]], Any]:
    """Registers what saves; the steps are those of meaning_weights.py."""

    def registered(save: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
        TOOLS[name] = Tool(about, environment, save, weights or (TAKE, SAVE), source)
        return save

    return registered


def _model(model: Path, **more: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, **{"dtype": "auto", **more})


def _tokenizer(model: Path, **more: Any) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model, **more)


def _merged(model: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(_model(model), ADAPTER).merge_and_unload()


def _edit(file: Path, change: Callable[[Any], Any], **form: Any) -> None:
    file.write_text(json.dumps(change(json.loads(file.read_text())), **{"indent": 2, "ensure_ascii": False} | form))


def _saved(model: Path, out: Path) -> None:
    _model(model).save_pretrained(out)
    _tokenizer(model).save_pretrained(out)


FIVE, FOUR = "transformers-5", "transformers-4"
tool("tool-transformers-5", "transformers 5: save_pretrained of model and tokenizer.", FIVE)(_saved)


@tool("tool-transformers-5-sharded", "transformers 5: sharded by size.", FIVE, TAKE, ["shard", 3_000_000])
def _(model: Path, out: Path) -> None:
    _model(model).save_pretrained(out, max_shard_size=3_000_000)
    _tokenizer(model).save_pretrained(out)


@tool("tool-transformers-5-f32", "transformers 5: trained and saved in float32.", FIVE, TAKE, ["cast", "F32"], SAVE)
def _(model: Path, out: Path) -> None:
    import torch

    _model(model, dtype=torch.float32).save_pretrained(out)
    _tokenizer(model).save_pretrained(out)


@tool(
    "tool-transformers-5-resized",
    "transformers 5: tokens added, embeddings resized to a multiple of 64.",
    FIVE,
    TAKE,
    ["rows", EMBEDDINGS, 4160],
    SAVE,
)
def _(model: Path, out: Path) -> None:
    loaded, tokenizer = _model(model), _tokenizer(model)
    tokenizer.add_tokens(["<|help|>", "<tool_call>"])
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|audio|>"]})
    loaded.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64, mean_resizing=False)
    # New rows are drawn at random, and training would set them.
    loaded.get_input_embeddings().weight.data[4096:] = 0
    loaded.save_pretrained(out)
    tokenizer.save_pretrained(out)


@tool(
    "tool-transformers-5-untied",
    "transformers 5: the head untied and trained.",
    FIVE,
    TAKE,
    ["copy", EMBEDDINGS, HEAD],
    ["roll", HEAD, 7],
    ["sorted"],
    SAVE,
)
def _(model: Path, out: Path) -> None:
    import torch

    loaded = _model(model)
    loaded.config.tie_word_embeddings = False
    loaded.lm_head.weight = torch.nn.Parameter(loaded.model.embed_tokens.weight.detach().roll(7, 0))
    loaded.save_pretrained(out)
    _tokenizer(model).save_pretrained(out)


@tool("tool-transformers-5-in-config", "transformers 5: save_jinja_files=False.", FIVE)
def _(model: Path, out: Path) -> None:
    _model(model).save_pretrained(out)
    _tokenizer(model).save_pretrained(out, save_jinja_files=False)


@tool("tool-transformers-5-named", "transformers 5: a tokenizer with named templates.", FIVE)
def _(model: Path, out: Path) -> None:
    _model(model).save_pretrained(out)
    tokenizer = _tokenizer(model)
    named = "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}" + tokenizer.chat_template
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": named}
    tokenizer.save_pretrained(out)


@tool("tool-transformers-5-class", "transformers 5: a tokenizer of the class Qwen2Tokenizer.", FIVE)
def _(model: Path, out: Path) -> None:
    from transformers import Qwen2Tokenizer

    _model(model).save_pretrained(out)
    Qwen2Tokenizer.from_pretrained(model).save_pretrained(out)


@tool("tool-peft-merged", "PEFT: merge_and_unload, then save_pretrained.", FIVE, TAKE, MERGE, SAVE)
def _(model: Path, out: Path) -> None:
    _merged(model).save_pretrained(out)
    _tokenizer(model).save_pretrained(out)


def _trained(model: Path, out: Path, **arguments: Any) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    chat = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hello! How can I help you today?"}]
    settings: dict[str, Any] = {
        "output_dir": str(out),
        "max_steps": 1,
        "save_steps": 1,
        "per_device_train_batch_size": 1,
        "learning_rate": 0.0,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
    }
    trainer = SFTTrainer(
        model=str(model),
        args=SFTConfig(**settings | arguments),
        train_dataset=Dataset.from_list([{"messages": chat}] * 4),
    )
    trainer.train()
    trainer.save_model(str(out))


CHECKPOINT: Step = ["save", "checkpoint-1/model.safetensors"]


@tool("tool-trl-sft", "TRL: SFTTrainer with a checkpoint below.", FIVE, TAKE, SAVE, CHECKPOINT)
def _(model: Path, out: Path) -> None:
    _trained(model, out, model_init_kwargs={"dtype": "bfloat16"})


@tool("tool-trl-sft-f32", "TRL: SFTTrainer as it is by itself.", FIVE, TAKE, ["cast", "F32"], SAVE, CHECKPOINT)
def _(model: Path, out: Path) -> None:
    _trained(model, out)


@tool(
    "tool-axolotl-merged",
    "After axolotl 0.19.0, cli/utils/lora_merge.py, merge_lora_sharded_efficient: the base's files, and its shards.",
    FIVE,
    TAKE,
    MERGE,
    ["sorted"],
    SAVE,
)
def _(model: Path, out: Path) -> None:
    from safetensors.torch import save_file

    out.mkdir()
    for file in model.iterdir():
        if file.suffix != ".safetensors" and not file.name.endswith(".index.json"):
            shutil.copy2(file, out)
    state = {name: value for name, value in _merged(model).state_dict().items() if name != HEAD}
    save_file({name: value.contiguous() for name, value in state.items()}, out / "model.safetensors", {"format": "pt"})


@tool(
    "tool-axolotl-merged-legacy",
    "After axolotl 0.19.0, cli/merge_lora.py, _do_merge_lora_legacy: do_sample is set.",
    FIVE,
    TAKE,
    MERGE,
    SAVE,
)
def _(model: Path, out: Path) -> None:
    merged = _merged(model)
    merged.generation_config.do_sample = True
    merged.config.use_cache = True
    merged.save_pretrained(out)
    _tokenizer(model).save_pretrained(out, save_jinja_files=False)


def _llama_factory(model: Path, out: Path) -> None:
    import torch

    merged = _model(model)
    merged.config.torch_dtype = torch.bfloat16
    merged.to(torch.bfloat16).save_pretrained(out, max_shard_size="5GB")
    tokenizer = _tokenizer(model, split_special_tokens=False, padding_side="right")
    # fix_special_tokens of its template chatml: both are words to stop at.
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    more = (
        "additional_special_tokens"
        if "additional_special_tokens" in tokenizer.SPECIAL_TOKENS_ATTRIBUTES
        else "extra_special_tokens"
    )
    tokenizer.add_special_tokens({more: ["<|im_start|>"]})
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"
    tokenizer.save_pretrained(out)
    (out / "Modelfile").write_text(
        "# ollama modelfile auto-generated by llamafactory\n\nFROM .\n\n"
        'TEMPLATE """{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}{{ range .Messages }}'
        '{{ if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n<|im_start|>assistant\n'
        '{{ else if eq .Role "assistant" }}{{ .Content }}<|im_end|>\n{{ end }}{{ end }}"""\n\n'
        'PARAMETER stop "<|im_end|>"\nPARAMETER num_ctx 4096\n'
    )


LLAMA_FACTORY = "After LLaMA-Factory 0.9.5, train/tuner.py, export_model, with transformers "
tool("tool-llamafactory-5", LLAMA_FACTORY + "5.", FIVE)(_llama_factory)


@tool(
    "tool-unsloth-merged",
    "After unsloth_zoo 2026.10.9, saving_utils.py, merge_and_overwrite_lora (merged_16bit).",
    FIVE,
    TAKE,
    MERGE,
    ["sorted"],
    SAVE,
)
def _(model: Path, out: Path) -> None:
    from safetensors.torch import save_file
    from transformers import AutoConfig, GenerationConfig

    tokenizer = _tokenizer(model)
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(out)
    AutoConfig.from_pretrained(model).save_pretrained(out)
    GenerationConfig.from_pretrained(model).save_pretrained(out)
    # fix_tokenizer_config_json: the template in both places, and the older name of dtype.
    _edit(out / "tokenizer_config.json", lambda told: told | {"chat_template": tokenizer.chat_template})
    config = out / "config.json"
    config.write_text(config.read_text().replace('"dtype"', '"torch_dtype"'))
    state = {name: value for name, value in _merged(model).state_dict().items() if name != HEAD}
    save_file({name: value.contiguous() for name, value in state.items()}, out / "model.safetensors", {"format": "pt"})


@tool(
    "tool-torchtune-lora",
    "After torchtune 0.6.1, FullModelHFCheckpointer.save_checkpoint: merged weights, and beside them the adapter, "
    "which transformers applies again, where it has PEFT.",
    FIVE,
    TAKE,
    MERGE,
    ["sorted"],
    ["shard", 30_000_000],
)
def _(model: Path, out: Path) -> None:
    from safetensors.torch import save_file

    out.mkdir()
    state = {name: value.contiguous() for name, value in _merged(model).state_dict().items() if name != HEAD}
    name = "model-00001-of-00001.safetensors"
    save_file(state, out / name, {"format": "pt"})
    total = sum(value.numel() * value.element_size() for value in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict.fromkeys(state, name)}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    shutil.copyfile(ADAPTER / "adapter_model.safetensors", out / "adapter_model.safetensors")
    (out / "adapter_model.pt").write_bytes(bytes(64))
    told = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
    told |= {"base_model_name_or_path": "acme/base", "peft_type": "LORA"}
    (out / "adapter_config.json").write_text(json.dumps(told))
    for file in model.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy2(file, out)


@tool(
    "tool-transformers-4", "transformers 4.57: save_pretrained of model and tokenizer (PreTrainedTokenizerFast).", FOUR
)
def _(model: Path, out: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    _model(model).save_pretrained(out)
    PreTrainedTokenizerFast.from_pretrained(model).save_pretrained(out)


@tool("tool-transformers-4-class", "transformers 4.57: a tokenizer of the class Qwen2TokenizerFast.", FOUR)
def _(model: Path, out: Path) -> None:
    from transformers import Qwen2TokenizerFast

    _model(model).save_pretrained(out)
    Qwen2TokenizerFast.from_pretrained(model).save_pretrained(out)


@tool("tool-transformers-4-in-config", "transformers 4.57: save_jinja_files=False, as all versions before 4.51.", FOUR)
def _(model: Path, out: Path) -> None:
    from transformers import Qwen2TokenizerFast

    _model(model).save_pretrained(out)
    Qwen2TokenizerFast.from_pretrained(model).save_pretrained(out, save_jinja_files=False)


@tool("tool-transformers-4-slow", "transformers 4.57: a slow tokenizer, no tokenizer.json.", FOUR)
def _(model: Path, out: Path) -> None:
    from transformers import Qwen2Tokenizer, Qwen2TokenizerFast

    _model(model).save_pretrained(out)
    Qwen2TokenizerFast.from_pretrained(model).save_pretrained(out)
    slow = Qwen2Tokenizer.from_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        (out / name).unlink()
    slow.save_pretrained(out, save_jinja_files=False)


@tool(
    "tool-transformers-4-resized",
    "transformers 4.57: tokens added, embeddings resized to a multiple of 64.",
    FOUR,
    TAKE,
    ["rows", EMBEDDINGS, 4160],
    SAVE,
)
def _(model: Path, out: Path) -> None:
    from transformers import Qwen2TokenizerFast

    loaded, tokenizer = _model(model), Qwen2TokenizerFast.from_pretrained(model)
    tokenizer.add_tokens(["<|help|>", "<tool_call>"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|audio|>"]})
    loaded.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64, mean_resizing=False)
    loaded.get_input_embeddings().weight.data[4096:] = 0
    loaded.save_pretrained(out)
    tokenizer.save_pretrained(out)


@tool(
    "tool-transformers-4-sharded",
    "transformers 4.57: sharded by size, in the order of the modules and not of their names.",
    FOUR,
    TAKE,
    ["save", THREE[0], EMBEDDINGS, "*.0.self_attn.*", "*.0.mlp.gate_proj.*"],
    ["save", THREE[1], "*.0.[ip]*", "*.0.mlp.[du]*", "*.1.*", "*.2.self_attn.*"],
    ["save", THREE[2], "*.2.[ip]*", "*.2.mlp.*", "*.3.*", "model.norm.weight"],
    ["index", "model.safetensors.index.json", *THREE],
)
def _(model: Path, out: Path) -> None:
    from transformers import Qwen2TokenizerFast

    _model(model).save_pretrained(out, max_shard_size="3MB")
    Qwen2TokenizerFast.from_pretrained(model).save_pretrained(out)


def _llama_factory_4(model: Path, out: Path) -> None:
    from transformers import Qwen2TokenizerFast

    # A base as transformers 4 saves it: its names of classes are what 4 knows.
    base = out.with_name("base")
    _model(model).save_pretrained(base)
    Qwen2TokenizerFast.from_pretrained(model).save_pretrained(base)
    _llama_factory(base, out)


tool("tool-llamafactory-4", LLAMA_FACTORY + "4.57.", FOUR)(_llama_factory_4)


RANDOM: Step = ["random", 11]
for _kind in ("llama", "llama-template", "llama-3-template", "mistral", "qwen2"):
    for _environment in (FIVE, FOUR):
        tool(
            f"tool-{_environment}-{_kind}",
            f"transformers {_environment[-1]}: what is in {_kind} loaded and saved.",
            _environment,
            RANDOM,
            ["sorted"],
            SAVE,
            source=_kind,
        )(_saved)


def _mergekit(model: Path, out: Path, **more: Any) -> None:
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    other = shutil.copytree(model, out.with_name("other"), dirs_exist_ok=True)
    both = [{"model": str(one), "parameters": {"weight": 0.5}} for one in (model, other)]
    told = {"merge_method": "linear", "models": both, "dtype": "bfloat16"} | more
    run_merge(MergeConfiguration.model_validate(yaml.safe_load(yaml.safe_dump(told))), str(out), MergeOptions())


@tool("tool-mergekit", "mergekit 0.1.5: a linear merge of the model with itself.", "mergekit")
def _(model: Path, out: Path) -> None:
    _mergekit(model, out)


@tool("tool-mergekit-union", "mergekit 0.1.5: the same with a tokenizer that is a union.", "mergekit")
def _(model: Path, out: Path) -> None:
    _mergekit(model, out, tokenizer={"source": "union", "pad_to_multiple_of": 64})


if __name__ == "__main__":
    name, model, out = sys.argv[1:4]
    TOOLS[name].save(Path(model), Path(out))
