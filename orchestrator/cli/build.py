"""The verbs that build artifacts: all of a profile's, or one at a path of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import AsJson, OnlyPlan, ProfileName, ReadyMade, Yes, app, session_of
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.cli.session import Session
    from orchestrator.core.plan import Plan

build = typer.Typer(invoke_without_command=True, help="Build a profile's artifacts, or one at a path of your own.")
app.add_typer(build, name="build")

WeightsDirectory = Annotated[
    Path, typer.Argument(help="A model directory: config, tokenizer, safetensors.", exists=True, file_okay=False)
]


@build.callback()
def build_all(
    context: typer.Context,
    profile: ProfileName = None,
    recipes: Annotated[
        list[str] | None, typer.Option("--recipe", help="Only this one; may be repeated. Default: all.")
    ] = None,
    ready_made: ReadyMade = None,
    plan: OnlyPlan = False,
    locked: Annotated[
        Path | None, typer.Option(help="A lock file: refuse what differs from it.", dir_okay=False)
    ] = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Have every artifact of a profile in the store: pulled, built in one read of the weights, or taken ready-made."""
    if context.invoked_subcommand is not None:
        return
    with session_of(as_json) as session:
        from orchestrator.app.build import plan_build, recipes_of, tell_estimate, weights_alone
        from orchestrator.app.lock import built_differently, check_locked, locked_profile, read_lock
        from orchestrator.app.profiles import named_profile
        from orchestrator.cli.deploy import confirm_download
        from orchestrator.cli.lock import tell_differences

        orch = session.orch
        lock = read_lock(orch, locked) if locked is not None else None
        observed = orch.observe()
        if lock is not None:
            loaded = locked_profile(orch, lock, profile, observed, ready_made)
            check_locked(orch, lock, loaded, observed)
        else:
            loaded = named_profile(orch, profile, observed, ready_made)
        chosen = recipes_of(loaded, recipes or [])
        first = plan_build(orch, loaded, chosen, asked=bool(recipes))
        if plan:
            session.screen.plan(first)
            return
        if profile is None and lock is None:

            def taking() -> Plan:
                return plan_build(orch, named_profile(orch, profile, observed, ready_made=True), chosen)

            confirm_download(session, first, yes, taking if ready_made is None else None)
        # In two parts: what a build takes is known when the weights are here.
        session.run(weights_alone(first))

        def make_rest() -> Plan:
            rest = plan_build(orch, loaded, chosen, asked=bool(recipes))
            tell_estimate(orch, rest)
            return rest

        session.plan_and_run("build", make_rest, only_plan=False, lock=False)
        if lock is not None:
            tell_differences(session.screen, built_differently(orch, lock, loaded, observed))


@build.command("gguf")
def build_gguf(
    source: Annotated[
        Path, typer.Argument(help="A model directory, or an unquantized GGUF file (F32, F16, BF16).", exists=True)
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The GGUF file to write.")],
    quant: Annotated[
        str,
        typer.Option(
            help="f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m or nvfp4; with llama.cpp's own tools any that llama-quantize "
            "names."
        ),
    ] = "q6_k",
    in_container: Annotated[
        bool, typer.Option("--in-container", help="Use llama.cpp's own tools, which know most models, in their image.")
    ] = False,
    tools: Annotated[
        Path | None,
        typer.Option(help="Use the tools of this llama.cpp checkout or installation.", exists=True, file_okay=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Safetensors or an unquantized GGUF of a dense Qwen2, Qwen3, Llama or Mistral to GGUF in one pass, its tensors
    byte-identical to those of llama.cpp's own tools; with --in-container or --tools other models too, by these tools.
    nvfp4 has the very weights that vLLM serves; a directory that is NVFP4 already is repacked, not quantized again."""
    with session_of(as_json) as session:
        from orchestrator.app.build import build_gguf as make_gguf

        make_gguf(session.orch, source, output, quant, in_container, tools)
        _tell_file(session, output)


@build.command("nvfp4")
def build_nvfp4(
    directory: WeightsDirectory,
    output: Annotated[Path, typer.Option("-o", "--output", help="The directory to write; must not exist.")],
    mode: Annotated[
        str,
        typer.Option(
            help="a16: 4-bit weights, 16-bit activations; needs no data. w4a4: both 4-bit, by llm-compressor."
        ),
    ] = "a16",
    calibration: Annotated[
        Path | None,
        typer.Option(help="Texts for w4a4, JSONL. Default: the few that orch ships.", exists=True, dir_okay=False),
    ] = None,
    samples: Annotated[int, typer.Option(help="How many of the texts, from the first on.", min=1)] = 512,
    tokens: Annotated[int, typer.Option(help="At most this many tokens of each text.", min=16)] = 2048,
    as_json: AsJson = False,
) -> None:
    """Safetensors to NVFP4, in the layout that vLLM reads. Byte-identical to what llm-compressor writes; w4a4 is
    written by it, in an environment that orch makes."""
    with session_of(as_json) as session:
        from orchestrator.app.build import build_nvfp4 as make_nvfp4
        from orchestrator.core.profile import CalibrationTexts

        if mode not in ("a16", "w4a4"):
            raise UsageError(f"orch does not know the NVFP4 mode {mode}.", hint="Known: a16, w4a4")
        if mode == "a16" and calibration is not None:
            raise UsageError("Weights alone need no calibration.", hint="--mode w4a4")
        path = str(calibration.resolve()) if calibration is not None else None
        texts = CalibrationTexts(path=path, samples=samples, tokens=tokens) if mode == "w4a4" else None
        make_nvfp4(session.orch, directory, output, texts)
        _tell_file(session, output)


@build.command("fp8")
def build_fp8(
    directory: WeightsDirectory,
    output: Annotated[Path, typer.Option("-o", "--output", help="The directory to write; must not exist.")],
    as_json: AsJson = False,
) -> None:
    """Safetensors to FP8 with a scale per channel, activations quantized while it is served. Byte-identical to what
    llm-compressor writes."""
    with session_of(as_json) as session:
        from orchestrator.app.build import build_fp8 as make_fp8

        make_fp8(session.orch, directory, output)
        _tell_file(session, output)


def _tell_file(session: Session, output: Path) -> None:
    from orchestrator.app.build import size_of

    size = size_of(output)
    session.screen.result({"built": str(output), "size": size}, f"{output}: {size / 1e6:.1f} MB.")
