"""What a directory of weights means is the same after a migration to vLLM, on both targets: see test_meaning_served."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import httpx
import pytest
from docker_orch import DockerOrch
from meaning_draws import FLAGS, Drawn, draw
from meaning_served import (
    GREEDY,
    GREETED,
    HELLO,
    KINDS,
    NO_SAMPLING,
    OWN,
    answers_rightly,
    chats_are_refused,
    completion,
    describe,
    post,
    prompt_tokens,
    up,
)
from meanings import lay, right
from orch_command import ASSETS, Orch
from tokenizers import Tokenizer

pytestmark = [pytest.mark.llamacpp, pytest.mark.vllm, pytest.mark.long]

# Of directories drawn at random, as many; differences of logarithms that other arithmetic may turn around.
DRAWS = 12
# Their end is no special token. vLLM leaves it out of the answer all the same; the plan says so.
SHOWN_ENDS = ("end-word",)
NEARLY = 0.5


def joined(place: Path) -> Path:
    """Several kinds in one directory: the turn's end is the model's own and stands in generation_config.json alone, an
    untrained template lies beside the trained one, and leftovers of the original beside the weights."""
    lay("end-turn-list", place)
    config = json.loads((place / "tokenizer_config.json").read_text())
    config["chat_template"] = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (place / "tokenizer_config.json").write_text(json.dumps(config))
    (place / "params.json").write_text('{"dim": 4096, "n_layers": 32}')
    (lay("head-tied-own", place.with_name("other")) / "model.safetensors").rename(place / "consolidated.safetensors")
    return place


def migrated(orch: Orch, place: Path, more: str = "", sampling: str = GREEDY) -> None:
    """Served by llama.cpp first, then by vLLM, each through the same names."""
    describe(orch, place, more, sampling)
    up(orch)
    orch.run("migrate", "--to", "vllm")
    assert [row["engine"] for row in orch.engines().values()] == ["vllm"]


def test_several_kinds_at_once_are_the_same_after_a_migration(orch_vllm: Orch, tmp_path: Path) -> None:
    orch, place = orch_vllm, joined(tmp_path / "model")
    describe(orch, place)
    up(orch)
    answers_rightly(orch, place, right("end-turn-list"))
    before = prompt_tokens(orch)
    orch.run("migrate", "--to", "vllm")
    assert [row["engine"] for row in orch.engines().values()] == ["vllm"]
    answers_rightly(orch, place, right("end-turn-list"))
    assert prompt_tokens(orch) == before
    # What lies beside the weights is of no weight: nothing changes with it.
    (place / "params.json").write_text("{}")
    assert orch.actions("up") == []
    assert orch.run("check", "--engine", "llamacpp", "--engine", "vllm", "--json").lines[-1]["same"]


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_the_same_after_a_migration(orch_vllm: Orch, tmp_path: Path, kind: str) -> None:
    place = lay(kind, tmp_path / kind)
    migrated(orch_vllm, place)
    answers_rightly(orch_vllm, place, right(kind), shows_end=kind not in SHOWN_ENDS)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["rope-scaling-old", "rope-dynamic"])
def test_what_a_gguf_has_no_words_for_is_served_by_vllm(orch_vllm: Orch, tmp_path: Path, kind: str) -> None:
    place = lay(kind, tmp_path / kind)
    described = ("-p", str(describe(orch_vllm, place)))
    assert "an unknown kind of scaled positions" in orch_vllm.run("up", "llamacpp", *described, code=10).err
    orch_vllm.run("up", "vllm", *described)
    answers_rightly(orch_vllm, place, right(kind))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(DRAWS))
def test_what_is_drawn_is_the_same_after_a_migration(orch_vllm: Orch, tmp_path: Path, seed: int) -> None:
    """Asked of both engines directly: the tokens of all texts are those of tokenizer.json, and greedy ones are the
    same for as long as no two are nearly as likely."""
    drawn = drawn_for_gguf(seed, tmp_path / "models")
    describe(orch_vllm, drawn.place)
    up(orch_vllm)
    own = Tokenizer.from_file(str(drawn.place / "tokenizer.json"))
    texts = [text for text in drawn.texts if text and unicodedata.normalize("NFC", text) == text]
    expected = [own.encode(text, add_special_tokens=False).ids for text in texts]
    assert tokens_of(orch_vllm, texts) == expected, drawn.choices
    prompts = [ids for ids in expected if len(ids) > 1][:5]
    url, headers = directly(orch_vllm)
    greedy = [
        httpx.post(
            f"{url}/completion",
            json={"prompt": ids, "n_predict": 16, "temperature": 0, "return_tokens": True},
            headers=headers,
            trust_env=False,
            timeout=60,
        ).json()["tokens"]
        for ids in prompts
    ]
    orch_vllm.run("migrate", "--to", "vllm")
    assert tokens_of(orch_vllm, texts) == expected, drawn.choices
    for ids, found in zip(prompts, greedy, strict=True):
        firm = firm_on_vllm(orch_vllm, ids)
        assert found[: len(firm)] == firm, drawn.choices


def drawn_for_gguf(seed: int, places: Path) -> Drawn:
    """The first draw from this seed on that GGUF has words for."""
    found = (draw(number, places / str(number)) for number in range(1000 * seed, 1000 * (seed + 1)))
    return next(one for one in found if not any(token[flag] for token in one.choices["tokens"] for flag in FLAGS))


def directly(orch: Orch) -> tuple[str, dict[str, str]]:
    """The address of the engine itself, and what it wants to be told."""
    (instance,) = orch.engines()
    secret = (orch.home / "secrets" / instance).read_text().strip()
    return f"http://127.0.0.1:{orch.record(instance)['port']}", {"Authorization": f"Bearer {secret}"}


def tokens_of(orch: Orch, texts: list[str]) -> list[list[int]]:
    url, headers = directly(orch)
    name = {"llamacpp": "content", "vllm": "prompt"}[next(iter(orch.engines().values()))["engine"]]
    bodies = ({"model": "tiny", name: text, "add_special": False, "add_special_tokens": False} for text in texts)
    return [
        httpx.post(f"{url}/tokenize", json=body, headers=headers, trust_env=False, timeout=60).json()["tokens"]
        for body in bodies
    ]


def firm_on_vllm(orch: Orch, ids: list[int]) -> list[int]:
    """The greedy tokens up to where a second one is nearly as likely, or an answer ends."""
    url, headers = directly(orch)
    body = {"model": "tiny", "prompt": ids, "max_tokens": 16, "temperature": 0, "logprobs": 2}
    answer = httpx.post(
        f"{url}/v1/completions",
        json=body | {"return_tokens_as_token_ids": True},
        headers=headers,
        trust_env=False,
        timeout=60,
    )
    told = answer.json()["choices"][0]["logprobs"]
    firm = []
    for token, likely in zip(told["tokens"], told["top_logprobs"], strict=True):
        first, second = sorted(likely.values(), reverse=True)[:2]
        if first - second < NEARLY:
            break
        firm.append(int(token.removeprefix("token_id:")))
    return firm


@pytest.mark.long
def test_a_base_model_on_vllm_and_with_a_template_of_the_profile(orch_vllm: Orch, tmp_path: Path) -> None:
    orch, place, template = orch_vllm, lay("template-none", tmp_path / "model"), tmp_path / "own.jinja"
    migrated(orch, place)
    orch.run("lora", "add", "alpha", str(ASSETS / "lora-a"))
    assert completion(orch) == GREETED
    for model in ("tiny", "alpha"):
        chats_are_refused(orch, model)
    template.write_text(OWN)
    describe(orch, place, f'[chat]\ntemplate = "{template}"\n')
    orch.run("up", "-p", str(orch.profile))
    assert orch.says(question=HELLO) == GREETED
    assert prompt_tokens(orch) == len(right("plain").chats["plain"].ids)


@pytest.mark.long
def test_thinking_and_tools_on_vllm(orch_vllm: Orch, tmp_path: Path) -> None:
    orch = orch_vllm
    migrated(orch, lay("template-thinking", tmp_path / "model"))
    chats = right("template-thinking").chats
    assert prompt_tokens(orch) == len(chats["plain"].ids)
    for name, value in (("thinking", True), ("not thinking", False)):
        answer = orch.chat(question=HELLO, chat_template_kwargs={"enable_thinking": value}).json()
        assert answer["usage"]["prompt_tokens"] == len(chats[name].ids), name


@pytest.mark.long
def test_the_models_sampling_on_vllm(orch_vllm: Orch, tmp_path: Path) -> None:
    orch, place = orch_vllm, lay("sampling-greedy", tmp_path / "model")
    said_of = json.loads((place / "generation_config.json").read_text())
    (place / "generation_config.json").write_text(json.dumps({**said_of, "max_new_tokens": 5}))
    migrated(orch, place, sampling=NO_SAMPLING)
    assert len({completion(orch, "Copyright (c) ") for _ in range(4)}) == 1
    assert len({completion(orch, "Copyright (c) ", temperature=2.0, seed=seed) for seed in range(4)}) > 1
    messages = [{"role": "user", "content": "Who are you?"}]
    assert post(orch, "/v1/chat/completions", messages=messages).json()["usage"]["completion_tokens"] == 5
    # The profile's is before the model's.
    describe(orch, place, sampling="[sampling]\ntemperature = 2.0\n")
    orch.run("up", "-p", str(orch.profile))
    assert len({completion(orch, "Copyright (c) ", seed=seed) for seed in range(4)}) > 1


def as_in_a_hubs_cache(place: Path, cache: Path) -> Path:
    """The same directory as a hub's client keeps it: links to blobs that lie elsewhere."""
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(path for path in place.iterdir() if path.is_file())):
        file.rename(cache / "blobs" / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs", str(number)))
    return snapshot


@pytest.mark.docker
@pytest.mark.long
def test_in_containers_a_view_leads_to_the_weights_wherever_they_lie(orch_docker: DockerOrch, tmp_path: Path) -> None:
    orch, wanted = orch_docker, right("end-turn-list")
    cached = as_in_a_hubs_cache(joined(tmp_path / "model"), tmp_path / "cache")
    describe(orch, cached)
    up(orch)
    answers_rightly(orch, cached, wanted)
    orch.run("migrate", "--to", "vllm")
    answers_rightly(orch, cached, wanted)
    orch.run("down")
    plain = lay("end-turn-list", tmp_path / "plain")
    describe(orch, plain)
    orch.run("up", "vllm", "-p", str(orch.profile))
    answers_rightly(orch, plain, wanted)
