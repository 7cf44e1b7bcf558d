"""The stand-in's store, laid out as Ollama's: blobs by content, and a manifest per name that lists its layers."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ollama_gguf import Gguf, read_gguf
from ollama_words import ApiError, Json, go_json, log, quoted

MEDIA = "application/vnd.ollama.image."
_CONFIG_MEDIA = "application/vnd.docker.container.image.v1+json"
_MANIFEST_MEDIA = "application/vnd.docker.distribution.manifest.v2+json"
DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_PRUNED_AFTER_S = 3600
# What llama-quantize changes in a file that is not its own, so that it is another one: here only its end.
_REWRITTEN = b"\0" * 20 + b"rewritten..."
# The Go templates of which the stand-in knows what they mean.
CHATML = "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
RAW = "{{ .Prompt }}"
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,79}")


@dataclass(frozen=True)
class Name:
    """host/namespace/model:tag, with Ollama's defaults for what is left out."""

    host: str
    namespace: str
    model: str
    tag: str

    @staticmethod
    def parse(text: str) -> Name | None:
        """None if it is no name."""
        rest, _, tag = text.rpartition(":") if ":" in text.rpartition("/")[2] else (text, "", "latest")
        parts = rest.split("/")
        host, namespace, model = [*("registry.ollama.ai", "library")[: max(0, 3 - len(parts))], *parts][:3]
        sound = len(parts) <= 3 and all(_PART.fullmatch(part) for part in (namespace, model, tag)) and host
        return Name(host, namespace, model, tag) if sound else None

    @property
    def path(self) -> Path:
        return Path(self.host, self.namespace, self.model, self.tag)

    def __str__(self) -> str:
        """As /api/tags shows it."""
        short = f"{self.model}:{self.tag}"
        if self.host != "registry.ollama.ai":
            return f"{self.host}/{self.namespace}/{short}"
        return short if self.namespace == "library" else f"{self.namespace}/{short}"

    @property
    def full(self) -> str:
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"


@dataclass(frozen=True)
class Layer:
    """One entry of a manifest: `kind` is the media type's last word, `source` the name or file that it came from."""

    kind: str
    digest: str
    size: int
    source: str = ""

    def to_json(self) -> Json:
        entry: Json = {"mediaType": MEDIA + self.kind, "digest": self.digest, "size": self.size}
        return entry | ({"from": self.source} if self.source else {})


@dataclass(frozen=True)
class Model:
    """A manifest with what its layers say. `digest` is of the manifest, `modified` in seconds of the epoch."""

    name: Name
    digest: str
    modified: float
    config: Json
    layers: tuple[Layer, ...]
    blobs: Path

    def path(self, layer: Layer) -> Path:
        return self.blobs / layer.digest.replace(":", "-")

    def _paths(self, kind: str) -> list[Path]:
        return [self.path(layer) for layer in self.layers if layer.kind == kind]

    @property
    def weights(self) -> Path | None:
        """The base; the last one wins if there are several."""
        return next(reversed(self._paths("model")), None)

    @property
    def adapters(self) -> tuple[Path, ...]:
        return tuple(self._paths("adapter"))

    @cached_property
    def gguf(self) -> Gguf:
        """ApiError if the base is broken or gone."""
        try:
            return read_gguf(self.weights or Path("/nonexistent"))
        except FileNotFoundError:
            raise ApiError(404, f"model {quoted(self.name.model)} not found, try pulling it first") from None

    def text(self, kind: str) -> str:
        """The text of a template, system or license layer, "" without one."""
        return "".join(path.read_text() for path in self._paths(kind)[-1:])

    @property
    def parameters(self) -> Json:
        return dict(json.loads(self.text("params") or "{}"))

    @property
    def parent(self) -> str:
        return next((layer.source for layer in self.layers if layer.kind == "model"), "")

    @property
    def size(self) -> int:
        return sum(layer.size for layer in self.layers) + len(go_json(self.config)) + 1

    @property
    def capabilities(self) -> tuple[str, ...]:
        if self.gguf.is_adapter:
            return ()
        template = "" if self.text("template") else self.gguf.chat_template
        marks = {"tools": "tools", "thinking": "enable_thinking"}
        return ("completion", *(name for name, mark in marks.items() if mark in template))

    def details(self, parent: str) -> Json:
        family, kind, quantization = (self.config[key] for key in ("model_family", "model_type", "file_type"))
        known = {"parent_model": parent, "format": "gguf", "family": family, "families": [family]}
        return known | {"parameter_size": kind, "quantization_level": quantization}


class Store:
    """A models directory. Nothing is kept in memory."""

    def __init__(self, root: Path) -> None:
        self.blobs = root / "blobs"
        self.manifests = root / "manifests"

    def blob(self, digest: str) -> Path:
        """Where a blob lies or would lie. ApiError if it is no digest."""
        found = DIGEST.fullmatch(digest)
        if found is None:
            raise ApiError(400, "invalid digest format")
        return self.blobs / f"sha256-{found[1]}"

    def add(self, kind: str, text: str) -> tuple[Layer, bool]:
        """A layer of a text, and whether its blob is new."""
        data = text.encode()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        new = not self.blob(digest).exists()
        if new:
            write_whole(self.blob(digest), data)
        return Layer(kind, digest, len(data)), new

    def read(self, layer: Layer) -> str:
        """The text of a layer. ApiError where it is gone."""
        path = self.blob(layer.digest)
        try:
            return path.read_text()
        except FileNotFoundError:
            raise ApiError(500, f"open {path}: no such file or directory") from None

    def remove(self, layer: Layer) -> None:
        """Takes a layer's blob away, unless a manifest needs it."""
        if layer.digest not in self._needed():
            self.blob(layer.digest).unlink(missing_ok=True)

    def rewritten(self, upload: Layer) -> tuple[Layer, bool]:
        """The layer of a model file as llama-quantize writes it anew, and whether its blob is new. For a moment the
        file is here three times, and then twice until a start prunes what was uploaded. ApiError on a full disk."""
        source, words = self.blob(upload.digest), f"{os.getpid()}{time.monotonic_ns()}"
        copy, partial = self.blobs / f"COPY{words}", self.blobs / f"sha256-{words}"
        try:
            try:
                shutil.copyfile(source, copy)
                with copy.open("rb+") as file:
                    file.seek(-len(_REWRITTEN), os.SEEK_END)
                    if file.read() != _REWRITTEN:
                        file.write(_REWRITTEN)
            except OSError:
                raise ApiError(500, "llama-quantize failed: exit status 1") from None
            try:
                shutil.copyfile(copy, partial)
            except OSError as error:
                raise ApiError(500, f"write {partial}: {(error.strerror or str(error)).lower()}") from None
            with partial.open("rb") as file:
                digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
            new = not self.blob(digest).exists()
            if new:
                partial.replace(self.blob(digest))
            return Layer(upload.kind, digest, self.blob(digest).stat().st_size, upload.source), new
        finally:
            copy.unlink(missing_ok=True)
            partial.unlink(missing_ok=True)

    def find(self, text: str, shown: str | None = None) -> Model:
        """The model of a name. ApiError: 404 (quoting `shown`), or 500 if its manifest cannot be read."""
        name = Name.parse(text)
        if name is None or not (self.manifests / name.path).is_file():
            raise ApiError(404, f"model '{text if shown is None else shown}' not found")
        return self._read(name)

    def _read(self, name: Name) -> Model:
        path = self.manifests / name.path
        data = path.read_bytes()
        try:
            manifest = json.loads(data)
            config = json.loads(self.blob(manifest["config"]["digest"]).read_text())
            layers = tuple(
                Layer(entry["mediaType"].removeprefix(MEDIA), entry["digest"], entry["size"], entry.get("from", ""))
                for entry in manifest["layers"]
            )
        except (ValueError, LookupError, FileNotFoundError):
            raise ApiError(500, "unexpected EOF") from None
        digest = hashlib.sha256(data).hexdigest()
        return Model(name, digest, path.stat().st_mtime, config, layers, self.blobs)

    def write(self, name: Name, config: Json, layers: list[Layer]) -> None:
        """The manifest of a name, in one step."""
        placed, _ = self.add("config", go_json(config))
        head = {"mediaType": _CONFIG_MEDIA, "digest": placed.digest, "size": placed.size}
        manifest = {"schemaVersion": 2, "mediaType": _MANIFEST_MEDIA, "config": head}
        path = self.manifests / name.path
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, go_json(manifest | {"layers": [layer.to_json() for layer in layers]}).encode())

    def copy(self, source: str, target: str) -> None:
        """ApiError if there is no such model, or the new name is none."""
        try:
            model = self.find(source)
        except ApiError:
            raise ApiError(404, f"model {quoted(source)} not found") from None
        name = Name.parse(target)
        if name is None:
            raise ApiError(400, f"destination {quoted(target)} is invalid")
        path = self.manifests / name.path
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, (self.manifests / model.name.path).read_bytes())

    def delete(self, text: str) -> None:
        """Takes the name away, and the blobs that no other name needs. ApiError if there is no such model."""
        model = self.find(text)
        path = self.manifests / model.name.path
        digest = json.loads(path.read_bytes())["config"]["digest"]
        path.unlink()
        for empty in (path.parent, path.parent.parent, path.parent.parent.parent):
            if not any(empty.iterdir()):
                empty.rmdir()
        needed = self._needed()
        for gone in {digest, *(layer.digest for layer in model.layers)} - needed:
            self.blob(gone).unlink(missing_ok=True)

    def models(self) -> list[Model]:
        """All that can be read, the newest first; the others are named in the log."""
        found = []
        for name in self._names():
            try:
                found.append(self._read(name))
            except ApiError as error:
                log("WARN", "manifest.go:180", "bad manifest", name=name.full, error=error.text)
        return sorted(found, key=lambda model: model.modified, reverse=True)

    def prune(self) -> int:
        """Removes blobs that no manifest needs, if they are old enough not to belong to an import that goes on."""
        names = list(self._names())
        if len(self.models()) != len(names):
            log("WARN", "images.go:905", "corrupt manifests detected, skipping prune operation")
            return 0
        needed = {self.blob(digest) for digest in self._needed()}
        old = time.time() - _PRUNED_AFTER_S
        gone = [path for path in self.blobs.iterdir() if path not in needed and path.stat().st_mtime < old]
        for path in gone:
            path.unlink()
        return len(gone)

    def _names(self) -> Iterator[Name]:
        for path in sorted(self.manifests.glob("*/*/*/*")):
            yield Name(*path.relative_to(self.manifests).parts)

    def _needed(self) -> set[str]:
        digests: set[str] = set()
        for name in self._names():
            text = (self.manifests / name.path).read_text()
            digests.update(f"sha256:{found}" for found in DIGEST.findall(text))
        return digests


def write_whole(path: Path, data: bytes) -> None:
    """The file appears only when it is whole."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    partial.write_bytes(data)
    partial.replace(path)


def merged(layers: list[Layer], layer: Layer) -> list[Layer]:
    """The layers with this one instead of those of its kind."""
    return [*(kept for kept in layers if kept.kind != layer.kind), layer]


def inherited(model: Model) -> list[Layer]:
    """The layers of a model for one that is made from it."""
    return [replace(layer, source=str(model.name)) for layer in model.layers if layer.kind != "params"]


def config_of(gguf: Gguf, human_size: str) -> dict[str, Any]:
    """The config of a model over these weights."""
    family = gguf.architecture
    known = {"model_format": "gguf", "model_family": family, "model_families": [family], "model_type": human_size}
    return known | {"file_type": gguf.file_type, "architecture": "amd64", "os": "linux"}
