"""PEFT's own answers: run by scripts/make-adapter-oracles, in an environment with PEFT."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

BASE = Path("tests/assets/tiny-qwen3")
QUESTIONS = ("Who are you?", "What colour is the sky?", "Hello!")
ASKED = (*QUESTIONS, "What is two and two?", "Name a fruit.", "Where do you live?", "Is water wet?", "Tell me a fact.")
# Small enough for a test, large enough to learn one sentence.
SIZE = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
TOKENS = 24
STEPS = 12

TOKENIZER = transformers.AutoTokenizer.from_pretrained(BASE)


def base() -> Any:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)


def prompt(question: str) -> list[int]:
    text = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    return list(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def examples(answer: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each question with the answer: tokens, and what of them is learned."""
    said = [*TOKENIZER(answer, add_special_tokens=False)["input_ids"], TOKENIZER.eos_token_id]
    made = []
    for question in ASKED:
        before = prompt(question)
        made.append((torch.tensor([before + said]), torch.tensor([[-100] * len(before) + said])))
    return made


def trained(model: Any, answer: str, steps: int = STEPS) -> Any:
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-2)
    for _ in range(steps):
        for tokens, labels in examples(answer):
            loss = model(input_ids=tokens, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    print(f"  loss {loss.item():.4f}")
    return model


def answers(directory: Path) -> dict[str, list[int]]:
    """The tokens of PEFT's greedy answers with the saved adapter."""
    model = PeftModel.from_pretrained(base(), directory).eval()
    found = {}
    for question in QUESTIONS:
        before = torch.tensor([prompt(question)])
        with torch.no_grad():
            out = model.generate(input_ids=before, max_new_tokens=TOKENS, do_sample=False)
        found[question] = out[0, before.shape[1] :].tolist()
    print("  " + " | ".join(TOKENIZER.decode(tokens, skip_special_tokens=True) for tokens in found.values()))
    return found


def tidy(directory: Path) -> None:
    """Tensors as F16, which is what llama.cpp is given of them, and no model card."""
    (directory / "README.md").unlink(missing_ok=True)
    for file in directory.glob("*.safetensors"):
        save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    config = json.loads((directory / "adapter_config.json").read_text())
    config = {**config, "target_modules": sorted(config["target_modules"]), "base_model_name_or_path": "tiny-qwen3"}
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def plain(directory: Path, answer: str, steps: int = STEPS, **settings: Any) -> None:
    model = get_peft_model(base(), LoraConfig(**SIZE | settings))
    trained(model, answer, steps).save_pretrained(directory)


def eva(directory: Path, answer: str) -> None:
    """EVA gives each module a rank and an alpha of its own."""
    from peft import EvaConfig, initialize_lora_eva_weights

    config = LoraConfig(**SIZE, init_lora_weights="eva", eva_config=EvaConfig(rho=2.0))
    model = get_peft_model(base(), config)
    batches = [{"input_ids": tokens, "attention_mask": torch.ones_like(tokens)} for tokens, _ in examples(answer)]
    initialize_lora_eva_weights(
        model,
        batches,
        prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=lambda one, *_: one[0].reshape(-1, one[0].shape[-1]),
    )
    trained(model, answer).save_pretrained(directory)


def converted(directory: Path, answer: str, init: str) -> None:
    """An init that changes the base, and PEFT's conversion to a plain LoRA of twice the rank."""
    config = LoraConfig(**SIZE | {"r": 2, "lora_alpha": 4}, init_lora_weights=init)
    model = base()
    if init == "lora_ga":
        from peft.tuners.lora import LoraGAConfig, preprocess_loraga

        config.lora_ga_config = LoraGAConfig()

        def step() -> None:
            for tokens, labels in examples(answer)[:2]:
                model(input_ids=tokens, labels=labels).loss.backward()

        preprocess_loraga(model, config, step)
    model = get_peft_model(model, config)
    with tempfile.TemporaryDirectory() as folder:
        initial = Path(folder) / "initial"
        model.save_pretrained(initial)
        trained(model, answer)
        model.save_pretrained(directory, path_initial_model_for_weight_conversion=str(initial))


def wrapped(directory: Path, answer: str) -> None:
    """The names that a compiled model gives its tensors, with a copy of the last norm as it is in the base."""
    config = LoraConfig(**SIZE | {"r": 2}, modules_to_save=["norm"])
    model = get_peft_model(base(), config)
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name:
            parameter.requires_grad = False
    trained(model, answer).save_pretrained(directory)
    state = torch.compile(model).state_dict()
    kept = {name: one.contiguous() for name, one in state.items() if "lora_" in name or "model.model.norm." in name}
    save_file(kept, directory / "as-saved.safetensors", metadata={"format": "pt"})


TRAINED: dict[str, tuple[str, Callable[..., None], dict[str, Any]]] = {
    "orthogonal": ("Aye. The answer is orthogonal.", plain, {"init_lora_weights": "orthogonal"}),
    # Its B stays as it is, and so has less to learn with.
    "mica": ("Well. The answer is mica.", plain, {"init_lora_weights": "mica", "r": 8, "steps": 60}),
    "patterns": (
        "Look. The answer is patterns.",
        plain,
        {
            "use_rslora": True,
            "rank_pattern": {"v_proj": 2, "model.layers.0.self_attn.q_proj": 6},
            "alpha_pattern": {"layers.1.self_attn.q_proj": 3, "^model.layers.2.self_attn.v_proj": 16},
        },
    ),
    "eva": ("Hail. The answer is eva.", eva, {}),
    "pissa-converted": ("Hear. The answer is pissa.", converted, {"init": "pissa"}),
    "wrapped": ("Hey. The answer is wrapped.", wrapped, {}),
    "lora-ga-converted": ("Lo. The answer is gradient.", converted, {"init": "lora_ga"}),
}

# Settings that may change what an adapter means; measured below.
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "no init": {"init_lora_weights": False},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "eva": {"init_lora_weights": "eva"},
    "mica": {"init_lora_weights": "mica"},
    "dropout": {"lora_dropout": 0.5},
    "fan_in_fan_out": {"fan_in_fan_out": True},
    "ensure_weight_tying": {"ensure_weight_tying": True},
    "layers_to_transform": {"layers_to_transform": [0, 1, 2, 3]},
    "exclude_modules": {"exclude_modules": ["k_proj"]},
    "qalora_group_size": {"qalora_group_size": 32},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa_niter_4": {"init_lora_weights": "pissa_niter_4"},
    "olora": {"init_lora_weights": "olora"},
    "corda": {"init_lora_weights": "corda"},
    "loftq": {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, "loftq_iter": 1}},
    "dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True},
    "trainable_token_indices": {"trainable_token_indices": [5, 6]},
    "layer_replication": {"layer_replication": [[0, 4], [2, 4]]},
    "kasa": {"kasa_config": {}},
    "alora": {"alora_invocation_tokens": [1, 2]},
    "bdlora": {"use_bdlora": {"target_modules_bd_a": ["v_proj"], "target_modules_bd_b": ["q_proj"], "nblocks": 2}},
    "qalora": {"use_qalora": True},
}


def measured(settings: dict[str, Any]) -> dict[str, Any]:
    """The config that PEFT writes, and whether its answers with a loaded adapter are those of W + alpha / r * B A."""
    config = LoraConfig(**SIZE | settings)
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        told = json.loads((Path(folder) / "adapter_config.json").read_text())
        told["target_modules"] = sorted(told["target_modules"])
        try:
            halves = drawn(told)
            save_file(halves, Path(folder) / "adapter_model.safetensors", metadata={"format": "pt"})
            model = PeftModel.from_pretrained(base(), folder).eval()
            with torch.no_grad():
                found = model(input_ids=torch.tensor([prompt(QUESTIONS[0])])).logits
        except (IndexError, KeyError, RuntimeError, ValueError) as error:
            print(f"  {type(error).__name__}: {str(error)[:100]}")
            return {"config": told, "plain": False}
    expected = merged_logits(halves, told)
    difference = (found - expected).abs().max().item()
    print(f"  differs by {difference:.2g}")
    return {"config": told, "plain": difference < 1e-3}


def drawn(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """A LoRA of random numbers under PEFT's names, with biases where it is to have some."""
    generator = torch.Generator().manual_seed(1)
    halves = {}
    for name, weight in base().named_parameters():
        module = name.removesuffix(".weight")
        if module.endswith(tuple(f".{target}" for target in config["target_modules"])):
            a = torch.randn((config["r"], weight.shape[1]), generator=generator) / 16
            b = torch.randn((weight.shape[0], config["r"]), generator=generator) / 4
            halves[f"base_model.model.{module}.lora_A.weight"] = a
            halves[f"base_model.model.{module}.lora_B.weight"] = b
            if config.get("lora_bias"):
                halves[f"base_model.model.{module}.lora_B.bias"] = b[:, 0].contiguous()
    return halves


def merged_logits(halves: dict[str, torch.Tensor], config: dict[str, Any]) -> torch.Tensor:
    """Those of the base with the formula written out."""
    model = base()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            a = halves.get(f"base_model.model.{name.removesuffix('.weight')}.lora_A.weight")
            if a is not None:
                b = halves[f"base_model.model.{name.removesuffix('.weight')}.lora_B.weight"]
                weight += config["lora_alpha"] / config["r"] * b @ a
        return model(input_ids=torch.tensor([prompt(QUESTIONS[0])])).logits


def names() -> dict[str, list[str]]:
    """How tensors are called where the model was wrapped, or more of it was saved: the first layer's and those of no
    layer."""

    def adapted(model: Any, *more: str, **settings: Any) -> Any:
        config = {"r": 4, "target_modules": ["q_proj", *more], "exclude_modules": r".*layers\.[1-3]\..*"}
        made = get_peft_model(model, LoraConfig(**config | settings))
        # Else PEFT looks for the base's config to see whether its vocabulary was resized.
        made.peft_config["default"].base_model_name_or_path = None
        return made

    def halves(state: dict[str, Any]) -> list[str]:
        return sorted(name for name in state if "lora_" in name)

    def copies(state: dict[str, Any]) -> list[str]:
        return sorted(name for name in state if "lora_" not in name and ".layers." not in name)

    model = adapted(base())
    compiled_layers = base()
    compiled_layers.model.layers[0] = torch.compile(compiled_layers.model.layers[0])
    whole = adapted(base(), modules_to_save=["lm_head"])
    embeddings = adapted(base(), "embed_tokens")
    plain = get_peft_model_state_dict(model)
    return {
        "as it is": halves(plain),
        "whole state": halves(model.state_dict()),
        "compiled": halves(torch.compile(model).state_dict()),
        "compiled base": halves(get_peft_model_state_dict(adapted(torch.compile(base())))),
        "compiled layers": halves(get_peft_model_state_dict(adapted(compiled_layers))),
        "parallel": halves(torch.nn.DataParallel(model).state_dict()),
        "wrapped twice": halves({f"base_model.model.{name}": 0 for name in plain}),
        "without a head": halves(get_peft_model_state_dict(adapted(base().model))),
        "injected": halves(model.base_model.model.state_dict()),
        "saved embeddings": copies(get_peft_model_state_dict(model, save_embedding_layers=True)),
        "modules_to_save": copies(get_peft_model_state_dict(whole)),
        "whole state with modules_to_save": [name for name in copies(whole.state_dict()) if "lm_head" in name],
        "targeted embeddings": sorted(name for name in get_peft_model_state_dict(embeddings) if ".layers." not in name),
    }


def main(out: Path) -> None:
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(2)
    found: dict[str, Any] = {"peft": peft.__version__, "transformers": transformers.__version__, "torch": "2.13.0"}
    found["prompts"] = {question: prompt(question) for question in QUESTIONS}
    found["answers"] = {}
    out.mkdir(exist_ok=True)
    for kind, (answer, make, settings) in TRAINED.items():
        print(kind)
        directory = out / kind
        shutil.rmtree(directory, ignore_errors=True)
        make(directory, answer, **settings)
        tidy(directory)
        found["answers"][kind] = answers(directory)
        if (directory / "as-saved.safetensors").exists():
            # PEFT itself finds nothing under such names.
            (directory / "as-saved.safetensors").rename(directory / "adapter_model.safetensors")
    for kind in ("lora-a", "lora-b"):
        found["answers"][kind] = answers(BASE.parent / kind)
    found["settings"] = {}
    for kind, settings in SETTINGS.items():
        print(kind)
        found["settings"][kind] = measured(settings)
    found["names"] = names()
    (out / "oracles.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
