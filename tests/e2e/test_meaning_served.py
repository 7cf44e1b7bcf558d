"""What a directory of weights means reaches clients, on every engine and through the gateway: the answers, and where
they end, are those of transformers. The directories are shaped as tools leave them (tests/artifacts/meanings.py)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from meaning_served import (
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
from meanings import ASKED, lay, right
from orch_command import ASSETS, Orch, script, stopped_afterwards
from stand_in_orch import OnStandIn

hub_server = script("hub_server")

pytestmark = pytest.mark.llamacpp


@pytest.fixture(params=["llamacpp", "stand-in"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Orch]:
    """`orch` on each engine that starts at once."""
    with stopped_afterwards((Orch if request.param == "llamacpp" else OnStandIn)(tmp_path / "home")) as command:
        yield command


def plan_of(orch: Orch, *words: str) -> tuple[list[dict[str, Any]], str]:
    """The sampling defaults that a plan shows, and all that it remarks."""
    lines = orch.run(*words, "--plan", "--json").lines
    items = [item for line in lines if "plan" in line for item in line["items"]]
    (sampling,) = (line["sampling"] for line in lines if "sampling" in line)
    return sampling, "\n".join(item["why"] for item in items if "why" in item)


def said(sampling: list[dict[str, Any]]) -> dict[str, tuple[float, str]]:
    return {row["name"]: (row["value"], row["said_by"]) for row in sampling}


@pytest.mark.rotated
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
