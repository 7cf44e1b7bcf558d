"""Lists and descriptions of what is served, as Ollama gives them of what it has.

Every route is a model here, adapters too. In front of Ollama itself its own answers are taken, under the public names;
elsewhere, and where it does not answer, what the routes' cards say. The set of models is orch's to change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

import msgspec

from orchestrator.core.routes import OLLAMA, Route, RouteTable
from orchestrator.gateway.dialects.base import Endpoint, NoAnswerError, Said, Visit
from orchestrator.gateway.dialects.ollama import words
from orchestrator.gateway.dialects.ollama.asked import fields_of, text_of, truth_of
from orchestrator.gateway.dialects.ollama.described import LATEST, Described, Json, tagged
from orchestrator.gateway.dialects.ollama.words import GO_JSON, LINES, go_json

# The API that this is.
VERSION = "0.33.0"
TAGS, PS, SHOW, PULL, BLOBS = "/api/tags", "/api/ps", "/api/show", "/api/pull", "/api/blobs"
_ENDPOINTS = {
    "/": Endpoint(),
    "/api/version": Endpoint(),
    "/api/status": Endpoint(),
    TAGS: Endpoint(),
    PS: Endpoint(),
    SHOW: Endpoint(("POST",), reads=True),
    PULL: Endpoint(("POST",), reads=True),
    "/api/create": Endpoint(("POST",)),
    "/api/copy": Endpoint(("POST",)),
    "/api/push": Endpoint(("POST",)),
    "/api/delete": Endpoint(("DELETE",)),
}
_BLOB = Endpoint(("HEAD", "POST"))
# Who does here what a client of Ollama would have done.
_VERBS = {
    "/api/create": "`orch up` serves another model, `orch lora add` an adapter",
    "/api/copy": "`public_names` in a profile gives a model another name, with `orch up`",
    "/api/push": "nothing is published from here; `orch artifacts ls` shows what there is",
    "/api/delete": "`orch down` ends a model, `orch lora rm` an adapter",
    BLOBS: "`orch pull` and `orch build` bring files, `orch lora add` an adapter's",
}
# Ollama's own registry, and what a name has in it unless it says otherwise.
_REGISTRY = ("registry.ollama.ai/", "library/")
# Seconds that an Ollama has for its lists.
_PATIENCE_S = 5.0

_MODELS = msgspec.json.Decoder(dict[str, list[dict[str, object]] | None])
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def endpoint(path: str) -> Endpoint | None:
    """What the gateway answers by itself."""
    return _BLOB if path.startswith(BLOBS + "/") else _ENDPOINTS.get(path)


def find(table: RouteTable, name: str) -> Route | None:
    """The route of a name, in any case, with or without :latest and what Ollama's own registry puts before it."""
    for start in _REGISTRY:
        if name.casefold().startswith(start):
            name = name[len(start) :]
    bare = name[: -len(LATEST)] if name.casefold().endswith(LATEST) else name
    return table.find_alike(name) or table.find_alike(bare) or table.find_alike(f"{bare}{LATEST}")


async def tell(visit: Visit) -> Said:
    """What is said of it; raises Refusal."""
    match visit.path:
        case "/":
            return Said(b"Ollama is running", content_type="text/plain; charset=utf-8")
        case "/api/version":
            return _said({"version": VERSION})
        case "/api/status":
            return _said({"cloud": {"disabled": True, "source": "env"}})
        case "/api/tags":
            entries = await _entries(visit, TAGS, Described.listed, absent=True)
            # The newest first, by the second.
            entries.sort(key=lambda entry: str(entry["modified_at"])[: len("2026-01-01T00:00:00")], reverse=True)
            return _said({"models": entries})
        case "/api/ps":
            return _said({"models": await _entries(visit, PS, Described.loaded, absent=False)})
        case "/api/show":
            return await _show(visit)
        case "/api/pull":
            return _pull(visit)
        case changes:
            verb = next(told for start, told in _VERBS.items() if changes.startswith(start))
            raise words.fault(403, f"the models here are orch's, and clients cannot change them: {verb}")


def _said(value: Json) -> Said:
    return Said(go_json(value), content_type=GO_JSON)


def _listed(table: RouteTable) -> list[Route]:
    """The routes, each by one name: a model may be public with its tag and without."""
    return list({tagged(route.name): route for route in table}.values())


async def _entries(visit: Visit, path: str, describe: Callable[[Described], Json], absent: bool) -> list[Json]:
    """An entry for each model. Of an engine that tells them itself they are its own; what it does not tell of is
    described all the same if that is `absent` only by mistake, else it is not there."""
    routes = _listed(visit.table)
    asked = {route.backend: route for route in routes if OLLAMA in route.speaks}
    told = dict(zip(asked, await asyncio.gather(*(_models(visit, one, path) for one in asked.values())), strict=True))
    entries = []
    for route in routes:
        theirs = told.get(route.backend)
        if theirs is None:
            entries.append(describe(_described(visit, route)))
        elif (own := theirs.get(tagged(route.upstream or route.name))) is not None:
            entries.append(_renamed(own, route, visit.table))
        elif absent:
            entries.append(describe(_described(visit, route)))
    return entries


async def _models(visit: Visit, route: Route, path: str) -> Mapping[str, Json] | None:
    """The engine's own list by its own names; None where it gives none."""
    answer = await _asked(visit, route, "GET", path)
    try:
        models = _MODELS.decode(answer[1]).get("models") if answer is not None and answer[0] == 200 else None
    except (msgspec.DecodeError, ValueError):
        return None
    return {str(model.get("name")): model for model in models} if models is not None else None


async def _asked(visit: Visit, route: Route, method: str, path: str, body: bytes = b"") -> tuple[int, bytes] | None:
    """The engine's own answer; None where it is not to be had."""
    try:
        async with asyncio.timeout(_PATIENCE_S):
            return await visit.engine(route).ask(method, path, body)
    except (NoAnswerError, TimeoutError):
        return None


def _renamed(entry: Json, route: Route, table: RouteTable) -> Json:
    """An entry of Ollama's under public names."""
    name, details = tagged(route.name), entry.get("details")
    found = {**entry, "name": name, "model": name}
    if isinstance(details, dict) and details.get("parent_model"):
        found["details"] = {**details, "parent_model": _parent(route, str(details["parent_model"]), table)}
    return found


def _parent(route: Route, theirs: str, table: RouteTable) -> str:
    """The public name of what the engine calls an adapter's base."""
    if route.card is not None and route.card.base:
        return tagged(route.card.base)
    beside = (one for one in table if one.backend == route.backend)
    return next((tagged(one.name) for one in beside if tagged(one.upstream or one.name) == theirs), theirs)


def _described(visit: Visit, route: Route) -> Described:
    return Described(route, visit.table, visit.started)


def _named(fields: Mapping[str, msgspec.Raw], path: str) -> str:
    """The model that a body names, by the field's name of today or of once; raises Refusal."""
    return text_of(dict(fields), path, "model") or text_of(dict(fields), path, "name")


async def _show(visit: Visit) -> Said:
    fields = fields_of(SHOW, visit.body)
    name = _named(fields, SHOW)
    if not name:
        raise words.fault(400, "model is required")
    route = find(visit.table, name)
    if route is None:
        raise words.unknown_name(tagged(name))
    if OLLAMA in route.speaks:
        body = {"model": route.upstream or route.name, "verbose": truth_of(fields, SHOW, "verbose", default=False)}
        answer = await _asked(visit, route, "POST", SHOW, msgspec.json.encode(body))
        if answer is not None and answer[0] == 200:
            return Said(_shown_under(answer[1], route, visit.table), content_type=GO_JSON)
    return _said(_described(visit, route).shown())


def _shown_under(answer: bytes, route: Route, table: RouteTable) -> bytes:
    """Ollama's own description under public names; what has none in it stays the bytes that it is."""
    try:
        fields = _FIELDS.decode(answer)
        text = msgspec.json.decode(fields.get("modelfile", b'""'), type=str)
        details = msgspec.json.decode(fields.get("details", b"{}"), type=dict[str, object])
    except (msgspec.DecodeError, ValueError):
        return answer
    theirs, ours = tagged(route.upstream or route.name), tagged(route.name)
    # Only lines that have the name as a whole: it may be short, and stand in a template.
    lines = (f"{line.removesuffix(theirs)}{ours}" if _is_from(line, theirs) else line for line in text.split("\n"))
    changed = {"modelfile": go_json("\n".join(lines))}
    if details.get("parent_model"):
        parent = _parent(route, str(details["parent_model"]), table)
        changed["details"] = go_json({**details, "parent_model": parent})
    return b"{%b}" % b",".join(_pairs((key, changed.get(key, bytes(value))) for key, value in fields.items()))


def _is_from(line: str, name: str) -> bool:
    return line in (f"# FROM {name}", f"FROM {name}")


def _pairs(fields: Iterable[tuple[str, bytes]]) -> Iterable[bytes]:
    return (b"%b:%b" % (go_json(key), value) for key, value in fields)


def _pull(visit: Visit) -> Said:
    """What is served is here; nothing else is brought."""
    fields = fields_of(PULL, visit.body)
    name, streams = _named(fields, PULL), truth_of(fields, PULL, "stream", default=True)
    if not name:
        raise words.fault(400, "invalid model name")
    route = find(visit.table, name)
    if route is None:
        names = ", ".join(tagged(one.name) for one in _listed(visit.table))
        raise words.fault(
            403,
            f"pull model manifest: {name} is not served here, and clients cannot change that: `orch up` serves another "
            f"model. Served: {names or 'nothing'}",
        )
    if not streams:
        return _said({"status": "success"})
    one = _described(visit, route)
    layer = {"digest": f"sha256:{one.digest}", "total": one.size, "completed": one.size}
    lines: list[Json] = [{"status": "pulling manifest"}, {"status": f"pulling {one.digest[:12]}", **layer}]
    lines += [{"status": text} for text in ("verifying sha256 digest", "writing manifest", "success")]
    return Said(b"".join(go_json(line) + b"\n" for line in lines), content_type=LINES)
