"""/api/create of the stand-in, and what /api/show and /api/tags tell of a model afterwards."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

from ollama_gguf import Gguf, human, read_gguf
from ollama_store import CHATML, Layer, Model, Name, Store, config_of, inherited, merged
from ollama_words import ApiError, Json, go_json, log, quoted, timestamp

_QUANTIZERS = ("F32", "F16", "BF16", "Q8_0", "Q4_K_S", "Q4_K_M", "Q4_K")
_CHATML_STOP = {"stop": ["<|im_start|>", "<|im_end|>"]}
# Ollama compares a GGUF's template with those that it knows by edit distance; longer ones are like none of them.
_LONGEST_CHATML = 500


class Creation:
    """One request to make a model: its layers so far, and the statuses that it tells. The rewriting of an imported file
    takes `create_s`, at least.

    It goes on when its client has left, as Ollama's does. Two at once are in each other's way, as there: what the
    template that was found sets is a layer first, which the one that is ready earlier replaces and removes.
    """

    def __init__(self, store: Store, body: Json, create_s: float = 0.0) -> None:
        self.store = store
        self.body = body
        self.create_s = create_s
        self.layers: list[Layer] = []
        self.messages: dict[str, str] = {}
        self.parameters: Json = {}
        self.config: Json = {}
        self.uploads: list[Layer] = []

    def run(self) -> Iterator[Json]:
        """The lines of the answer. ApiError ends it."""
        name = Name.parse(str(self.body.get("model") or self.body.get("name") or ""))
        if name is None:
            raise ApiError(400, "invalid model name")
        if source := self.body.get("from"):
            yield from self._from(str(source))
        elif files := self.body.get("files"):
            yield from self._add_files(dict(files), adapter=False)
        else:
            raise ApiError(400, "neither 'from' or 'files' was specified")
        if adapters := self.body.get("adapters"):
            yield from self._add_files(dict(adapters), adapter=True)
        self._check_quantization()
        for layer in self.uploads:
            self._rewrite(layer)
            yield {"status": "verifying conversion"}
        self._add_texts()
        for layer in self.layers:
            yield {"status": self.messages.get(layer.digest, f"using existing layer {layer.digest}")}
        yield {"status": "writing manifest"}
        self.store.write(name, self.config, self.layers)
        yield {"status": "success"}

    def _from(self, source: str) -> Iterator[Json]:
        try:
            base = self.store.find(source)
        except ApiError as error:
            if error.status != 404:
                raise
            yield from pull(source)
            return
        self.layers = inherited(base)
        self.parameters = base.parameters
        self.config = base.config

    def _add_files(self, files: dict[str, str], adapter: bool) -> Iterator[Json]:
        kind = self._kind(files)
        if kind == "safetensors":
            yield {"status": f"converting {'adapter' if adapter else 'model'}"}
            raise ApiError(500, self._unsupported(files, adapter))
        if kind != "gguf":
            raise ApiError(400, "unknown type")
        if adapter and len(files) > 1:
            raise ApiError(400, "only one adapter is currently supported")
        for file, digest in files.items():
            yield {"status": "parsing GGUF"}
            self._add_gguf(file if adapter else "", digest, adapter)

    def _kind(self, files: dict[str, str]) -> str:
        if any(file.endswith(".safetensors") for file in files):
            return "safetensors"
        if any(file.endswith(".gguf") for file in files):
            return "gguf"
        paths = [self.store.blob(digest) for digest in files.values()]
        return "gguf" if any(path.exists() and path.open("rb").read(4) == b"GGUF" for path in paths) else ""

    def _unsupported(self, files: dict[str, str], adapter: bool) -> str:
        if adapter or "config.json" not in files:
            return "unsupported architecture"
        names = json.loads(self.store.blob(files["config.json"]).read_text()).get("architectures") or [""]
        return f"unsupported architecture {quoted(names[0])}"

    def _add_gguf(self, file: str, digest: str, adapter: bool) -> None:
        path = self.store.blob(digest)
        try:
            gguf = read_gguf(path)
        except FileNotFoundError:
            raise ApiError(500, f"open {path}: no such file or directory") from None
        kind = "adapter" if adapter and gguf.is_adapter else "model"
        layer = Layer(kind, f"sha256:{path.name.removeprefix('sha256-')}", path.stat().st_size, file)
        self.layers.append(layer)
        if not adapter:
            self.config = config_of(gguf, human(gguf.parameters))
        if not gguf.is_adapter:
            self.uploads.append(layer)
        if kind == "model":
            self._detect_template(gguf)

    def _detect_template(self, gguf: Gguf) -> None:
        if "<|im_start|>" in gguf.chat_template and len(gguf.chat_template) < _LONGEST_CHATML:
            layer, _ = self.store.add("template", CHATML)
            self.messages[layer.digest] = "using autodetected template chatml"
            self.layers.append(layer)
            self._put("params", _params(_CHATML_STOP | self.parameters))

    def _rewrite(self, upload: Layer) -> None:
        """Puts the layer of what llama-quantize makes of an upload in its place."""
        time.sleep(self.create_s)
        try:
            layer, new = self.store.rewritten(upload)
        except ApiError as error:
            told = "failed to validate GGUF with llama-quantize without compatibility patches"
            raise ApiError(500, f"{told}: {error.text}") from error
        self.layers[self.layers.index(upload)] = layer
        self.messages[layer.digest] = f"{'creating new' if new else 'using existing'} layer {layer.digest}"

    def _check_quantization(self) -> None:
        wanted = str(self.body.get("quantize") or self.body.get("quantization") or "").upper()
        if wanted and wanted not in _QUANTIZERS:
            known = "F32, F16, Q4_K_S, Q4_K_M, Q8_0"
            raise ApiError(500, f"unsupported quantization type {wanted} - supported types are {known}")
        if wanted and self.config.get("file_type") not in ("F32", "F16", "BF16"):
            raise ApiError(500, "quantization is only supported for F16, BF16 and F32 models")
        if wanted:
            raise ApiError(501, "the stand-in does not quantize: send a GGUF that is quantized already")

    def _add_texts(self) -> None:
        for kind in ("template", "system", "license"):
            if text := str(self.body.get(kind) or ""):
                if kind == "template" and text.count("{{") != text.count("}}"):
                    raise ApiError(400, "template error: template: :1: unclosed action")
                self._put(kind, text)
        found = [layer for layer in self.layers if layer.kind == "params"]
        parameters = self.parameters | dict(self.body.get("parameters") or {})
        for layer in found:
            parameters = json.loads(self.store.read(layer)) | parameters
            self.store.remove(layer)
        if parameters:
            self._put("params", _params(parameters))

    def _put(self, kind: str, text: str) -> None:
        layer, new = self.store.add(kind, text)
        self.layers = merged(self.layers, layer)
        self.messages[layer.digest] = f"{'creating new' if new else 'using existing'} layer {layer.digest}"


def _params(values: Json) -> str:
    return go_json(dict(sorted(values.items()))) + "\n"


def pull(name: str) -> Iterator[Json]:
    """What a model that is not here leads to on a machine without a way out."""
    parsed = Name.parse(name)
    if parsed is None:
        raise ApiError(400, "invalid model name")
    yield {"status": "pulling manifest"}
    url = f"https://{parsed.host}/v2/{parsed.namespace}/{parsed.model}/manifests/{parsed.tag}"
    log("INFO", "images.go:731", "pull refused", url=url, reason="the stand-in has no network")
    raise ApiError(500, f"pull model manifest: Get {quoted(url)}: dial tcp: lookup {parsed.host}: no such host")


def tag(model: Model) -> Json:
    """A model's entry in /api/tags."""
    known: Json = {"name": str(model.name), "model": str(model.name), "modified_at": timestamp(model.modified)}
    known |= {"size": model.size, "digest": model.digest}
    gguf = model.gguf
    sizes = {name: gguf.size_of(name) for name in ("context_length", "embedding_length")}
    return known | {"details": model.details(model.parent) | sizes, "capabilities": list(model.capabilities)}


def show(model: Model) -> Json:
    """The answer of /api/show."""
    texts = {kind: model.text(kind) for kind in ("license", "template", "system")}
    if not texts["template"] and not model.gguf.is_adapter:
        texts["template"] = model.gguf.chat_template or "{{ .Prompt }}"
    answer: Json = {"license": texts["license"], "modelfile": _modelfile(model), "parameters": _parameters(model)}
    answer |= {"template": texts["template"], "system": texts["system"]}
    answer = {key: text for key, text in answer.items() if text}
    gguf = model.gguf
    info = dict(sorted((gguf.metadata | {"general.parameter_count": gguf.parameters}).items()))
    info.pop("tokenizer.chat_template", None)
    tensors = [{"name": item.name, "type": item.type, "shape": list(item.shape)} for item in gguf.tensors]
    answer |= {"details": model.details(model.parent), "model_info": info, "tensors": tensors}
    return answer | {"capabilities": list(model.capabilities), "modified_at": timestamp(model.modified)}


def _values(model: Model) -> Iterator[tuple[str, object]]:
    for name, value in model.parameters.items():
        for item in value if isinstance(value, list) else [value]:
            yield name, item


def _parameters(model: Model) -> str:
    shown = ((name, quoted(value) if isinstance(value, str) else value) for name, value in _values(model))
    return "\n".join(f"{name:<30} {value}" for name, value in shown)


def _modelfile(model: Model) -> str:
    head = ['# Modelfile generated by "ollama show"', "# To build a new Modelfile based on this, replace FROM with:"]
    lines = [*head, f"# FROM {model.name}", "", f"FROM {model.weights}"]
    lines += [f"ADAPTER {path}" for path in model.adapters]
    for kind in ("template", "system"):
        if text := model.text(kind):
            lines.append(f"{kind.upper()} {_quoted_if_needed(text)}")
    lines += [f"PARAMETER {name} {value}" for name, value in _values(model)]
    if text := model.text("license"):
        lines.append(f"LICENSE {_quoted_if_needed(text)}")
    return "\n".join(lines) + "\n"


def _quoted_if_needed(text: str) -> str:
    return f'"{text}"' if "\n" in text else text
