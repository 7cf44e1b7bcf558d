"""Whether quantized safetensors are what they claim to be, told from their headers and scales.

It knows the layouts as vLLM reads them and nothing of the builders, so that it judges what others have built and what
we have built alike. GGUF files: gguf_claims.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from orchestrator.artifacts.json_file import read_json
from orchestrator.artifacts.safetensors import Checkpoint
from orchestrator.core.artifact import Recipe
from orchestrator.core.weights import Shape, shape_of
from orchestrator.errors import SourceError

_BLOCK = 16
_FLOATS = ("BF16", "F16", "F32")
_SCALAR: tuple[tuple[int, ...], ...] = ((1,), ())
_EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"
# What an engine fuses has one scale: vLLM takes the largest of several, and the other weights come out wrong.
_FUSED = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj"))

# What a tensor may be: types, shapes.
Part = tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]


@dataclass(frozen=True)
class Facts:
    """What an artifact's headers say: `form` in a few words, the architecture's name in the words of its format, the
    model's sizes, how many weights it has, and the bytes of its tensors."""

    form: str
    architecture: str
    shape: Shape
    parameters: int
    size: int


@dataclass(frozen=True)
class Scheme:
    """How linear weights are stored: `parts` by the suffixes of their names, for a weight [out, in]; `scales` are those
    of them that are one number, and `fused` says that engines expect one value for all that they fuse."""

    form: str
    recipe: Recipe
    parts: Callable[[int, int], dict[str, Part]]
    scales: tuple[str, ...]
    fused: bool


def check_nvfp4(directory: Path, recipe: Recipe) -> Facts:
    """What a directory of NVFP4 weights says of itself, as compressed-tensors or ModelOpt lay them out.

    Every linear weight has its codes and scales, the scales that fused weights share are one, embedding and head are
    not quantized, nothing else is there. So its size is exactly what its config.json implies. `recipe` is NVFP4 or
    NVFP4A16. SourceError with every problem, a line each.
    """
    return _check(directory, recipe)


def check_fp8(directory: Path) -> Facts:
    """What a directory of FP8 weights in compressed-tensors layout says of itself; see check_nvfp4."""
    return _check(directory, Recipe.FP8)


def refuse(path: Path, wanted: str, problems: list[str]) -> NoReturn:
    """SourceError: the path is not what is wanted, because of the problems."""
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    raise SourceError(
        f"{path} is not the {wanted} that it should be: {problems[0]}{more}.",
        "Get it again, or name another file, repository or commit.",
        "\n".join(problems),
    )


def scheme_of(directory: Path, config: dict[str, Any]) -> Scheme | None:
    """How the weights of the directory are quantized, in one of the ways that are known here; None if they are not.

    `config` is its config.json. SourceError if they are quantized in another way.
    """
    found = config.get("quantization_config")
    if found is None and (directory / "hf_quant_config.json").is_file():
        # ModelOpt's older exports say it only there.
        quantization = read_json(directory / "hf_quant_config.json").get("quantization")
        found = {"quant_method": "modelopt"} | (quantization if isinstance(quantization, dict) else {})
    if found is None:
        return None
    method = found.get("quant_method") if isinstance(found, dict) else None
    scheme = None
    if method == "compressed-tensors":
        scheme = _compressed_tensors(found)
    elif method == "modelopt":
        scheme = _modelopt(found)
    if scheme is None:
        stated = {key: found.get(key) for key in ("quant_method", "quant_algo", "format")} if method else found
        raise SourceError(
            f"{directory} is quantized in a way that orch does not know: {str(stated)[:200]}.",
            "Known: NVFP4 of compressed-tensors and ModelOpt, and FP8 of compressed-tensors.",
        )
    return scheme


def is_nvfp4(directory: Path) -> bool:
    """Whether it is a checkpoint that orch or others have quantized to NVFP4, in one of the layouts known here."""
    try:
        scheme = scheme_of(directory, read_json(directory / "config.json"))
    except SourceError:
        # What it is instead, those will say who look for something else.
        return False
    return scheme is not None and scheme.recipe in (Recipe.NVFP4, Recipe.NVFP4A16)


def linear_sizes(shape: Shape) -> dict[str, tuple[int, int]]:
    """Module in a layer to [out, in] of its weight."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return {
        "self_attn.q_proj": (queries, shape.hidden),
        "self_attn.k_proj": (keys, shape.hidden),
        "self_attn.v_proj": (keys, shape.hidden),
        "self_attn.o_proj": (shape.hidden, queries),
        "mlp.gate_proj": (shape.intermediate, shape.hidden),
        "mlp.up_proj": (shape.intermediate, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.intermediate),
    }


def _check(directory: Path, recipe: Recipe) -> Facts:
    config = read_json(directory / "config.json")
    shape, scheme, wanted = shape_of(config), scheme_of(directory, config), f"{recipe.value} checkpoint"
    if shape is None:
        refuse(directory, wanted, ["config.json does not give the sizes of a transformer"])
    if scheme is None:
        refuse(directory, wanted, ["config.json has no quantization_config: it is not quantized"])
    with Checkpoint.open(directory) as checkpoint:
        problems = [] if scheme.recipe is recipe else [f"it is {scheme.form}"]
        problems += _tensor_problems(checkpoint, shape, scheme)
        problems = problems or list(_scale_problems(checkpoint, shape, scheme))
        if problems:
            refuse(directory, wanted, problems)
        architectures = config.get("architectures")
        return Facts(
            form=scheme.form,
            architecture=str(architectures[0]) if isinstance(architectures, list) and architectures else "unknown",
            shape=shape,
            parameters=shape.layer_parameters + shape.end_parameters,
            size=sum(tensor.size for tensor in checkpoint.tensors.values()),
        )


def _compressed_tensors(config: dict[str, Any]) -> Scheme | None:
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or not groups or not all(isinstance(group, dict) for group in groups.values()):
        return None
    found = {_group(group, config.get("format")) for group in groups.values()}
    weights, activations = found.pop()
    if found or weights is None:
        return None
    if weights == "nvfp4":
        recipe = Recipe.NVFP4 if activations else Recipe.NVFP4A16
        scales = (".weight_global_scale", ".input_global_scale") if activations else (".weight_global_scale",)
        form = f"NVFP4 of compressed-tensors, {'W4A4' if activations else 'W4A16'}"
        return Scheme(form, recipe, lambda out, width: _packed(out, width, scales), scales, fused=True)
    inputs = (".input_scale",) if activations == "static" else ()
    form = f"FP8 of compressed-tensors, {activations} activations"
    return Scheme(form, Recipe.FP8, lambda out, width: _fp8(out, width, inputs), inputs, fused=False)


def _group(group: dict[str, Any], default: object) -> tuple[str | None, str]:
    """(how weights are stored, how activations are: "", dynamic or static)."""
    weights, inputs = group.get("weights"), group.get("input_activations")
    if not isinstance(weights, dict) or weights.get("type") != "float":
        return None, ""
    form, bits = group.get("format") or default, weights.get("num_bits")
    activations = ""
    if isinstance(inputs, dict):
        if inputs.get("num_bits") != bits:
            return None, ""
        activations = "dynamic" if inputs.get("dynamic") else "static"
    if form == "nvfp4-pack-quantized" and bits == 4 and weights.get("group_size") == _BLOCK:
        return "nvfp4", activations
    plain = weights.get("strategy") in ("channel", "tensor")
    return ("fp8" if form == "float-quantized" and bits == 8 and plain and activations else None), activations


def _modelopt(config: dict[str, Any]) -> Scheme | None:
    algorithm = config.get("quant_algo")
    if algorithm not in ("NVFP4", "W4A16_NVFP4") or config.get("group_size", _BLOCK) != _BLOCK:
        return None
    activations = algorithm == "NVFP4"
    scales = (".weight_scale_2", ".input_scale") if activations else (".weight_scale_2",)
    return Scheme(
        f"NVFP4 of ModelOpt, {'W4A4' if activations else 'W4A16'}",
        Recipe.NVFP4 if activations else Recipe.NVFP4A16,
        lambda out, width: _packed(out, width, scales, ".weight"),
        scales,
        fused=False,
    )


def _packed(out: int, width: int, scales: tuple[str, ...], codes: str = ".weight_packed") -> dict[str, Part]:
    return {
        codes: (("U8",), ((out, width // 2),)),
        ".weight_scale": (("F8_E4M3",), ((out, width // _BLOCK),)),
    } | dict.fromkeys(scales, (("F32",), _SCALAR))


def _fp8(out: int, width: int, scales: tuple[str, ...]) -> dict[str, Part]:
    return {
        ".weight": (("F8_E4M3",), ((out, width),)),
        ".weight_scale": (_FLOATS, ((out, 1), *_SCALAR)),
    } | dict.fromkeys(scales, (_FLOATS, _SCALAR))


def _tensor_problems(checkpoint: Checkpoint, shape: Shape, scheme: Scheme) -> list[str]:
    if shape.layers > len(checkpoint.tensors):
        return [f"config.json says {shape.layers} layers, and there are {len(checkpoint.tensors)} tensors"]
    required = dict(_required(shape, scheme))
    allowed = required | dict(_optional(shape))
    found = checkpoint.tensors
    problems = [f"{name} is missing" for name in required if name not in found]
    for name, tensor in found.items():
        if name not in allowed:
            problems.append(f"{name} does not belong there")
            continue
        types, shapes = allowed[name]
        if tensor.dtype not in types:
            problems.append(f"{name} is {tensor.dtype}, not {' or '.join(types)}")
        if tensor.shape not in shapes:
            problems.append(f"{name} has shape {list(tensor.shape)}, not {list(shapes[0])}")
    return problems


def _required(shape: Shape, scheme: Scheme) -> Iterator[tuple[str, Part]]:
    ends = (_FLOATS, ((shape.vocab, shape.hidden),))
    norm = (_FLOATS, ((shape.hidden,),))
    yield _EMBEDDING, ends
    if not shape.tied:
        yield _HEAD, ends
    yield "model.norm.weight", norm
    for layer in range(shape.layers):
        yield f"model.layers.{layer}.input_layernorm.weight", norm
        yield f"model.layers.{layer}.post_attention_layernorm.weight", norm
        for module, sizes in linear_sizes(shape).items():
            for suffix, kind in scheme.parts(*sizes).items():
                yield f"model.layers.{layer}.{module}{suffix}", kind


def _optional(shape: Shape) -> Iterator[tuple[str, Part]]:
    """What some families have, or some tools write, beside the rest."""
    if shape.tied:
        yield _HEAD, (_FLOATS, ((shape.vocab, shape.hidden),))
    for layer in range(shape.layers):
        attention = f"model.layers.{layer}.self_attn"
        for norm in ("q_norm", "k_norm"):
            yield f"{attention}.{norm}.weight", (_FLOATS, ((shape.head_dim,),))
        for scale in ("k_scale", "v_scale", "k_proj.k_scale", "v_proj.v_scale"):
            yield f"{attention}.{scale}", (_FLOATS, _SCALAR)
        for module, (out, _) in linear_sizes(shape).items():
            yield f"model.layers.{layer}.{module}.bias", (_FLOATS, ((out,),))


def _scale_problems(checkpoint: Checkpoint, shape: Shape, scheme: Scheme) -> Iterator[str]:
    """Scales that are no positive numbers, or that differ between weights that an engine fuses."""
    for layer in range(shape.layers):
        for suffix in scheme.scales:
            values = {}
            for module in linear_sizes(shape):
                name = f"model.layers.{layer}.{module}{suffix}"
                value = float(checkpoint.read(checkpoint.tensors[name]).item())
                values[module] = value
                if not math.isfinite(value) or value <= 0:
                    yield f"{name} is {value}"
            for fused in _FUSED if scheme.fused else ():
                if len({values[module] for module in fused}) > 1:
                    scales = ", ".join(f"{module} {values[module]:g}" for module in fused)
                    yield f"model.layers.{layer}: {suffix[1:]} differs between fused weights: {scales}"
