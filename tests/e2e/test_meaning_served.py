"""What a directory of weights means reaches clients, on every engine and through the gateway: the answers, and where
they end, are those of transformers. The directories are shaped as tools leave them (tests/artifacts/meanings.py)."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from docker_orch import DockerOrch
from meaning_draws import FLAGS, Drawn, draw
from meanings import ASKED, Right, lay, right
from orch_command import ASSETS, Orch, script, stopped_afterwards
from stand_in_orch import OnStandIn
from tokenizers import Tokenizer

hub_server = script("hub_server")

pytestmark = pytest.mark.llamacpp

TINY = ASSETS / "tiny-qwen3"
# Two templates, none where null is, ends in either file, a word as an end, a head of its own, markers, leftovers.
KINDS = (
    *("template-two", "template-null", "template-list", "end-turn-list", "end-config-list", "end-word"),
    *("head-tied-own", "token-marker", "token-special", "left-mistral", "left-original", "left-backups"),
)
QUESTIONS: tuple[str, ...] = tuple(ASKED["questions"])
CHAT_PROMPT: str = ASKED["prompts"][-1]
# What a template of the user's makes of a chat: the prompt that the tiny model was trained on, so that it answers.
OWN = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)
# Of directories drawn at random, as many; differences of logarithms that other arithmetic may turn around.
DRAWS = 12
NEARLY = 0.5
HELLO, GREETED = "Hello!", "Hello! How can I help you today?"
NO_SAMPLING = "[sampling]\n"
GREEDY = "[sampling]\ntemperature = 0.0\n"


@pytest.fixture(params=["llamacpp", "stand-in"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Orch]:
    """`orch` on each engine that starts at once."""
    with stopped_afterwards((Orch if request.param == "llamacpp" else OnStandIn)(tmp_path / "home")) as command:
        yield command


def describe(orch: Orch, weights: Path | str, more: str = "", sampling: str = GREEDY) -> Path:
    """The profile over a directory, or over `repo` on a hub, in the weights' own precision."""
    named = f'path = "{weights}"' if isinstance(weights, Path) else f'repo = "{weights}"\nrevision = "main"'
    as_they_are = 'recipes = ["gguf-bf16"]\n'
    orch.profile.write_text(
        f'name = "tiny"\npublic_names = ["tiny"]\n[weights]\n{named}\n'
        f"[serving]\ncontext = 512\nparallel = 2\n{sampling}"
        f"[engines.llamacpp]\nthreads = 1\n{as_they_are}[engines.ollama]\n{as_they_are}"
        f"[engines.vllm]\nkv_cache_mib = 64\n[lora]\nmax_adapters = 2\nmax_rank = 16\n{more}"
    )
    return orch.profile


def up(orch: Orch, *more: str, code: int = 0) -> Any:
    return orch.run("up", orch.engine, "-p", str(orch.profile), "--json", *more, code=code)


def plan_of(orch: Orch, *words: str) -> tuple[list[dict[str, Any]], str]:
    """The sampling defaults that a plan shows, and all that it remarks."""
    lines = orch.run(*words, "--plan", "--json").lines
    items = [item for line in lines if "plan" in line for item in line["items"]]
    (sampling,) = (line["sampling"] for line in lines if "sampling" in line)
    return sampling, "\n".join(item["why"] for item in items if "why" in item)


def said(sampling: list[dict[str, Any]]) -> dict[str, tuple[float, str]]:
    return {row["name"]: (row["value"], row["said_by"]) for row in sampling}


def post(orch: Orch, path: str, **body: object) -> httpx.Response:
    url = f"http://{orch.listen}{path}"
    return httpx.post(url, json={"model": "tiny", **body}, timeout=60, trust_env=False)


def completion(orch: Orch, prompt: str = CHAT_PROMPT, model: str = "tiny", **body: object) -> str:
    answer = post(orch, "/v1/completions", model=model, prompt=prompt, max_tokens=24, **body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def answers_rightly(orch: Orch, place: Path, wanted: Right) -> None:
    """Every question is answered as by transformers, up to where other arithmetic might choose otherwise."""
    tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
    for question in QUESTIONS:
        answer = wanted.answers[question]
        (choice,) = orch.chat(question=question, max_tokens=24).json()["choices"]
        given = choice["message"]["content"]
        if answer.firm() == answer.ids:
            assert (given, choice["finish_reason"]) == (answer.text, answer.finish), question
        else:
            assert given.startswith(tokenizer.decode(answer.firm())), question


def test_every_kind_is_answered_as_by_transformers(served: Orch, tmp_path: Path) -> None:
    for kind in KINDS:
        place = lay(kind, tmp_path / kind)
        describe(served, place)
        up(served)
        try:
            answers_rightly(served, place, right(kind))
        except AssertionError as error:
            raise AssertionError(f"{kind}: {error}") from error


def test_what_a_model_writes_is_streamed_as_it_is(served: Orch, tmp_path: Path) -> None:
    describe(served, lay("token-marker", tmp_path / "model"))
    up(served)
    events = served.chat(question=HELLO, stream=True).text.splitlines()
    chunks = [json.loads(line.removeprefix("data: ")) for line in events if line.startswith("data: {")]
    deltas = [choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]]
    assert "".join(deltas) == right("token-marker").answers[HELLO].text


def test_a_base_model_completes_and_refuses_chats(served: Orch, tmp_path: Path) -> None:
    describe(served, lay("template-none", tmp_path / "model"))
    _, told = plan_of(served, "up", served.engine, "-p", str(served.profile))
    assert "chats are refused" in told
    up(served)
    served.run("lora", "add", "alpha", str(ASSETS / "lora-a"))
    assert completion(served) == GREETED
    assert completion(served, model="alpha") != GREETED
    for model in ("tiny", "alpha"):
        chats_are_refused(served, model)
    assert served.actions("up") == []
    served.status()


def chats_are_refused(orch: Orch, model: str) -> None:
    """By the gateway, in each API's own words, and before a stream has begun."""
    messages = [{"role": "user", "content": HELLO}]
    for path, body in (
        ("/v1/chat/completions", {"messages": messages}),
        ("/v1/responses", {"input": HELLO}),
        ("/v1/messages", {"messages": messages, "max_tokens": 8}),
    ):
        for stream in (False, True):
            answer = post(orch, path, model=model, stream=stream, **body)
            assert answer.status_code == 400, (path, stream, answer.text)
            told = answer.json()["error"]
            assert "no chat template" in told["message"]
            assert '[chat] template = "FILE"' in told["message"]
            assert path == "/v1/messages" or told["code"] == "no_chat_template"


def test_a_template_of_the_profile_is_what_chats_are_asked_with(served: Orch, tmp_path: Path) -> None:
    place, template = lay("template-none", tmp_path / "model"), tmp_path / "own.jinja"
    template.write_text(OWN)
    describe(served, place, f'[chat]\ntemplate = "{template}"\n')
    up(served)
    assert served.says(question=HELLO) == GREETED
    before = prompt_tokens(served)
    assert before == len(right("plain").chats["plain"].ids)
    assert served.actions("up") == []
    key = artifact_of(served)
    # Another text is another artifact, which only the profile's file brings in.
    template.write_text(OWN.replace("{% for", "Be brief.\n{% for", 1))
    up(served)
    assert prompt_tokens(served) > before
    assert artifact_of(served) != key


def artifact_of(orch: Orch) -> str:
    """The key of what serves."""
    record = json.loads((orch.home / "records/desired/tiny.json").read_text())
    return str(record["resolution"]["deployment"]["artifact_key"])


def prompt_tokens(orch: Orch) -> int:
    """How many tokens a chat becomes."""
    return int(orch.chat(question=HELLO).json()["usage"]["prompt_tokens"])


def test_what_is_no_template_is_told_before_anything_is_done(orch: Orch, tmp_path: Path) -> None:
    place, template = lay("template-none", tmp_path / "model"), tmp_path / "own.jinja"
    describe(orch, place, f'[chat]\ntemplate = "{template}"\n')
    for text in (None, "", "  \n", "{% for m in messages %}", "{{ 'x' | nope }}", "\xff"):
        if text is not None:
            template.write_bytes(text.encode("latin-1"))
        for words in (("up", "llamacpp", "-p", str(orch.profile)), ("render", "llamacpp", "-p", str(orch.profile))):
            told = orch.run(*words, code=3).err
            assert str(template) in told
            assert "chat.template in the profile names it" in told
    assert not (orch.home / "store").exists() or list((orch.home / "store").glob("gguf-*")) == []


def test_sampling_is_the_requests_before_the_profiles_before_the_models(served: Orch, tmp_path: Path) -> None:
    place = lay("sampling-usual", tmp_path / "model")
    described = ("up", served.engine, "-p", str(describe(served, place, sampling="[sampling]\ntop_p = 0.5\n")))
    theirs = "generation_config.json"
    expected = {
        "temperature": (0.6, theirs),
        "top_p": (0.5, "the profile"),
        "top_k": (20, theirs),
        "min_p": (0.0, "nobody"),
        "repeat_penalty": (1.0, "nobody"),
    }
    assert said(plan_of(served, *described)[0]) == expected
    up(served)
    (instance,) = served.engines()
    wanted = {"temperature": 0.6, "top_p": 0.5, "top_k": 20, "min_p": 0.0}
    assert taken_by(served, instance) == wanted


def taken_by(orch: Orch, instance: str) -> dict[str, float]:
    """What the engine itself says that it takes where a request does not say."""
    url = f"http://127.0.0.1:{orch.record(instance)['port']}"
    if isinstance(orch, OnStandIn):
        shown = httpx.post(f"{url}/api/show", json={"model": "tiny"}, trust_env=False).json()["parameters"]
        told = dict(line.split(maxsplit=1) for line in shown.splitlines())
    else:
        secret = (orch.home / "secrets" / instance).read_text().strip()
        answer = httpx.get(f"{url}/props", headers={"Authorization": f"Bearer {secret}"}, trust_env=False)
        told = answer.json()["default_generation_settings"]["params"]
    return {name: round(float(told[name]), 4) for name in ("temperature", "top_p", "top_k", "min_p")}


def test_a_model_that_takes_the_likeliest_token_does_so_where_nobody_says_otherwise(
    served: Orch, tmp_path: Path
) -> None:
    describe(served, lay("sampling-greedy", tmp_path / "model"), sampling=NO_SAMPLING)
    assert said(plan_of(served, "up", served.engine, "-p", str(served.profile))[0])["temperature"] == (
        0.0,
        "generation_config.json",
    )
    up(served)
    assert {completion(served, "Copyright (c) ") for _ in range(4)} == {completion(served, "Copyright (c) ", top_k=1)}
    # The request's comes first.
    hot = {completion(served, "Copyright (c) ", temperature=2.0, seed=seed) for seed in range(4)}
    assert len(hot) > 1
    # And the profile's before the model's.
    describe(served, tmp_path / "model", sampling="[sampling]\ntemperature = 2.0\n")
    up(served)
    assert len({completion(served, "Copyright (c) ", seed=seed) for seed in range(4)}) > 1


def test_a_model_of_which_nothing_is_said_is_sampled_as_it_is(served: Orch, tmp_path: Path) -> None:
    describe(served, lay("sampling-none", tmp_path / "model"), sampling=NO_SAMPLING)
    sampling, _ = plan_of(served, "up", served.engine, "-p", str(served.profile))
    assert {(row["value"], row["said_by"]) for row in sampling} == {(1, "nobody"), (0, "nobody")}
    up(served)
    assert len({completion(served, "Copyright (c) ", seed=seed) for seed in range(6)}) > 1


def test_the_length_of_answers_is_the_models_where_nobody_says_it(served: Orch, tmp_path: Path) -> None:
    describe(served, lay("sampling-tokens", tmp_path / "model"))
    up(served)
    messages = [{"role": "user", "content": "Who are you?"}]
    answer = post(served, "/v1/chat/completions", messages=messages).json()
    assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (5, "length")
    assert post(served, "/v1/chat/completions", messages=messages, max_tokens=9).json()["usage"][
        "completion_tokens"
    ] == (9)


def test_thinking_is_as_transformers_has_it(served: Orch, tmp_path: Path) -> None:
    describe(served, lay("template-thinking", tmp_path / "model"))
    up(served)
    chats = right("template-thinking").chats
    assert prompt_tokens(served) == len(chats["plain"].ids)
    if served.engine == "llamacpp":
        for name, value in (("thinking", True), ("not thinking", False)):
            answer = served.chat(question=HELLO, chat_template_kwargs={"enable_thinking": value}).json()
            assert answer["usage"]["prompt_tokens"] == len(chats[name].ids), name


def test_with_tools_the_template_for_tools_is_taken(orch: Orch, tmp_path: Path) -> None:
    describe(orch, lay("template-more", tmp_path / "model"))
    up(orch)
    chats = right("template-more").chats
    tools = ASKED["chats"]["tools"]["tools"]
    assert prompt_tokens(orch) == len(chats["plain"].ids)
    assert orch.chat(question=HELLO, tools=tools).json()["usage"]["prompt_tokens"] == len(chats["tools"].ids)


def test_a_hubs_small_files_tell_a_plan_what_the_model_means(orch: Orch, tmp_path: Path) -> None:
    place = lay("template-none", tmp_path / "model")
    (place / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2], "temperature": 0.3}))
    with hub_server.HubServer({"test/base": place}) as hub:
        orch.env["HF_ENDPOINT"] = hub.url
        described = ("up", "llamacpp", "-p", str(describe(orch, "test/base", sampling=NO_SAMPLING)))
        sampling, told = plan_of(orch, *described)
        assert said(sampling)["temperature"] == (0.3, "generation_config.json")
        assert "chats are refused" in told
        assert [one.path for one in hub.requests if "safetensors" in one.path and one.method == "GET"] == []
        orch.run(*described)
        assert completion(orch, temperature=0) == GREETED
        chats_are_refused(orch, "tiny")
        hub.requests.clear()
        assert orch.actions("up") == []
        assert hub.requests == []


def test_a_hub_that_does_not_answer_is_told_and_files_are_rendered(orch: Orch, tmp_path: Path) -> None:
    place = lay("sampling-usual", tmp_path / "model")
    with hub_server.HubServer({"test/usual": place}) as hub:
        commit = hub.repos["test/usual"].commit
    orch.env["HF_ENDPOINT"] = hub.url
    describe(orch, "test/usual", sampling=NO_SAMPLING)
    orch.profile.write_text(orch.profile.read_text().replace('"main"', f'"{commit}"'))
    told = orch.run("up", "llamacpp", "-p", str(orch.profile), code=4).err
    assert hub.url in told
    orch.run("render", "llamacpp", "-p", str(orch.profile))


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


@pytest.mark.vllm
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


@pytest.mark.vllm
@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_the_same_after_a_migration(orch_vllm: Orch, tmp_path: Path, kind: str) -> None:
    place = lay(kind, tmp_path / kind)
    migrated(orch_vllm, place)
    answers_rightly(orch_vllm, place, right(kind))


@pytest.mark.vllm
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


@pytest.mark.vllm
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


@pytest.mark.vllm
@pytest.mark.long
def test_thinking_and_tools_on_vllm(orch_vllm: Orch, tmp_path: Path) -> None:
    orch = orch_vllm
    migrated(orch, lay("template-thinking", tmp_path / "model"))
    chats = right("template-thinking").chats
    assert prompt_tokens(orch) == len(chats["plain"].ids)
    for name, value in (("thinking", True), ("not thinking", False)):
        answer = orch.chat(question=HELLO, chat_template_kwargs={"enable_thinking": value}).json()
        assert answer["usage"]["prompt_tokens"] == len(chats[name].ids), name


@pytest.mark.vllm
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
@pytest.mark.vllm
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
