"""How much of a model stays the same from one recipe and engine to another.

`scripts/bench-agreement [DIR] [--vllm PYTHON]`, by default of the tiny model.

Each way of serving gets the same prompts, as tokens, and answers greedily. Of two ways it is told how many `answers`
are the same to their end, which share of the `tokens` comes before the first that differs, how often the `first token`
is the same, and the `distance` of its log probabilities, over the ten likeliest, on average.

llama.cpp serves gguf-bf16, gguf-q6_k and gguf-nvfp4. The NVFP4A16 checkpoint is computed in float32 by numpy where the
model is a tied Qwen3 in one file, and with --vllm by vLLM on a CPU, which has no kernel for it: there its weights are
widened to BF16, as vLLM's kernels for GPUs do it while they multiply.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np
from artifact_files import TINY, quantizer_library, read_safetensors, write_safetensors
from llamacpp_serving import post, serving
from numpy_qwen3 import NumpyQwen3
from rich.console import Console
from rich.table import Table

from orchestrator.artifacts.builder import Builder
from orchestrator.artifacts.families import is_linear
from orchestrator.artifacts.json_file import read_json
from orchestrator.artifacts.nvfp4 import round_bf16
from orchestrator.artifacts.nvfp4_checkpoint import read_nvfp4
from orchestrator.core.artifact import Recipe
from orchestrator.core.progress import silent

QUESTIONS = (
    *("Who are you?", "Hello!", "What colour is the sky?", "What is 2 plus 2?", "Tell me about yourself."),
    *("How are you today?", "What is the capital of France?", "Can you help me?", "Name a fruit.", "Goodbye!"),
)
TEXTS = (
    *("Return the number of", "The sky is", "Raise an error if the", "A list of all", "This function", "If the file"),
    *("Open the", "The default is", "Deprecated: use", "Convert a string to", "Compute the", "Parameters"),
)
TOKENS, LIKELIEST, WIDTH = 24, 10, 118

VLLM = """
import json, sys
from vllm import LLM, SamplingParams
job = json.load(open(sys.argv[1]))
llm = LLM(model=job["model"], dtype="bfloat16", max_model_len=256, max_num_seqs=4, enforce_eager=True)
params = SamplingParams(temperature=0, max_tokens=job["tokens"], logprobs=job["likeliest"])
made = llm.generate([{"prompt_token_ids": tokens} for tokens in job["prompts"]], params)
answers = [
    [list(one.outputs[0].token_ids), {t: p.logprob for t, p in one.outputs[0].logprobs[0].items()}] for one in made
]
json.dump(answers, open(sys.argv[2], "w"))
"""


@dataclass(frozen=True)
class Answer:
    """The tokens of an answer, and the log probabilities of its likeliest first tokens."""

    tokens: list[int]
    first: dict[int, float]


Answers = list[Answer]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="How much of a model stays the same from one way of serving to another."
    )
    parser.add_argument(
        "directory", nargs="?", type=Path, default=TINY, help="A model directory. Default: the tiny one."
    )
    parser.add_argument("--vllm", type=Path, metavar="PYTHON", help="The Python of an environment with vLLM for CPUs.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        found = measured(arguments.directory.resolve(), Path(work), arguments.vllm)
    Console(width=WIDTH).print(table(found))


def measured(source: Path, work: Path, vllm: Path | None) -> dict[str, Answers]:
    """The answers of each way that there is, by its name."""
    recipes = (Recipe.GGUF_BF16, Recipe.GGUF_Q6_K, Recipe.GGUF_NVFP4, Recipe.NVFP4A16)
    works = {recipe: work / recipe.value for recipe in recipes}
    for directory in works.values():
        directory.mkdir()
    Builder(quantizer_library()).build_together(works, source, silent)
    found: dict[str, Answers] = {}
    prompts: list[list[int]] = []
    for recipe in recipes[:3]:
        with serving(works[recipe] / "model.gguf") as address:
            prompts = prompts or prompts_of(address)
            found[f"{recipe.value}, llama.cpp"] = [of_llamacpp(address, tokens) for tokens in prompts]
    config = read_json(source / "config.json")
    ends = of_ends(source)
    if config["model_type"] == "qwen3" and config["tie_word_embeddings"] and (source / "model.safetensors").is_file():
        for name, directory in (("weights", source), ("nvfp4a16", works[Recipe.NVFP4A16])):
            model = NumpyQwen3(directory, activations=False)
            found[f"{name}, numpy"] = [of_numpy(model, tokens, ends) for tokens in prompts]
    if vllm is not None:
        widened = widen(source, works[Recipe.NVFP4A16], work / "widened")
        for name, directory in (("weights", source), ("nvfp4a16 widened", widened)):
            found[f"{name}, vLLM"] = of_vllm(vllm, directory, prompts, work)
    return {name: [cut(answer, ends) for answer in answers] for name, answers in found.items()}


def prompts_of(address: str) -> list[list[int]]:
    """All prompts as tokens: questions in the model's chat template, and texts as they are."""
    asked = [{"messages": [{"role": "user", "content": text}]} for text in QUESTIONS]
    texts = [*(post(f"{address}/apply-template", {**one})["prompt"] for one in asked), *TEXTS]
    return [post(f"{address}/tokenize", {"content": text, "add_special": True})["tokens"] for text in texts]


def of_ends(source: Path) -> set[int]:
    """The tokens that end an answer."""
    file = source / "generation_config.json"
    ends = read_json(file if file.is_file() else source / "config.json").get("eos_token_id")
    return set(ends) if isinstance(ends, list) else {ends}


def cut(answer: Answer, ends: set[int]) -> Answer:
    """Up to its end, which not every engine tells as a token."""
    return Answer(list(takewhile(lambda token: token not in ends, answer.tokens)), answer.first)


def of_llamacpp(address: str, prompt: list[int]) -> Answer:
    body = {"prompt": prompt, "n_predict": TOKENS, "temperature": 0, "n_probs": LIKELIEST, "return_tokens": True}
    told = post(f"{address}/completion", {**body, "cache_prompt": False})
    first = told["completion_probabilities"][0]["top_logprobs"] if told.get("completion_probabilities") else []
    return Answer(told["tokens"], {one["id"]: one["logprob"] for one in first})


def of_numpy(model: NumpyQwen3, prompt: list[int], ends: set[int]) -> Answer:
    tokens, first = list(prompt), dict[int, float]()
    while len(tokens) < len(prompt) + TOKENS and (not first or tokens[-1] not in ends):
        likely = model.logits(tokens)[-1]
        first = first or {int(token): float(likely[token]) for token in np.argsort(likely)[-LIKELIEST:]}
        tokens.append(int(likely.argmax()))
    return Answer(tokens[len(prompt) :], first)


def of_vllm(python: Path, model: Path, prompts: list[list[int]], work: Path) -> Answers:
    job, made = work / "job.json", work / "made.json"
    job.write_text(
        json.dumps({"model": str(model), "prompts": prompts, "tokens": TOKENS, "likeliest": LIKELIEST}), "utf-8"
    )
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "PATH": "/usr/bin:/bin",
        "HOME": str(work),
    }
    subprocess.run([python, "-c", VLLM, job, made], env=environment, check=True, stdout=subprocess.DEVNULL)
    answers = json.loads(made.read_text("utf-8"))
    return [Answer(tokens, {int(token): likely for token, likely in first.items()}) for tokens, first in answers]


def widen(source: Path, checkpoint: Path, directory: Path) -> Path:
    """The weights of the checkpoint in BF16, as a directory of their own."""
    directory.mkdir()
    for file in source.iterdir():
        if "safetensors" not in file.name:
            shutil.copyfile(file, directory / file.name)
    tensors = read_safetensors(source)
    for name in filter(is_linear, tensors):
        bits = round_bf16(read_nvfp4(checkpoint, name)).view(np.uint32) >> np.uint32(16)
        tensors[name] = bits.astype(np.uint16)
    write_safetensors(directory / "model.safetensors", tensors)
    return directory


def table(found: dict[str, Answers]) -> Table:
    """Every pair of engines that a person may go between; those that hold the same weights first."""
    shown = Table(title=f"Greedy answers to {len(QUESTIONS)} questions and {len(TEXTS)} texts, up to {TOKENS} tokens")
    for name in ("from", "to", "weights"):
        shown.add_column(name, no_wrap=True)
    for name in ("answers", "tokens", "first token", "distance"):
        shown.add_column(name, justify="right")
    names = list(found)
    pairs = [(one, other) for place, one in enumerate(names) for other in names[place + 1 :]]
    pairs = [(one, other) for one, other in pairs if one.split(", ")[1] != other.split(", ")[1]]
    for one, other in sorted(pairs, key=lambda pair: not same_weights(*pair)):
        columns = agreement(found[one], found[other])
        shown.add_row(one, other, "same" if same_weights(one, other) else "", *columns)
    return shown


def same_weights(one: str, other: str) -> bool:
    recipes = [
        Recipe(Recipe.GGUF_BF16 if name.startswith("weights") else name.replace(",", "").split()[0])
        for name in (one, other)
    ]
    return recipes[0].same_weights(recipes[1])


def agreement(ones: Answers, others: Answers) -> tuple[str, str, str, str]:
    """The four figures of the table."""
    pairs = list(zip(ones, others, strict=True))
    equal = sum(one.tokens == other.tokens for one, other in pairs)
    before = sum(_before(one.tokens, other.tokens) for one, other in pairs)
    longest = sum(max(len(one.tokens), len(other.tokens)) for one, other in pairs)
    firsts = sum(one.tokens[:1] == other.tokens[:1] for one, other in pairs)
    distances = [
        abs(one.first[token] - other.first[token])
        for one, other in pairs
        for token in one.first.keys() & other.first.keys()
    ]
    return f"{equal}/{len(pairs)}", f"{before / longest:.0%}", f"{firsts}/{len(pairs)}", f"{np.mean(distances):.3f}"


def _before(one: list[int], other: list[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


if __name__ == "__main__":
    main()
