"""Options that several commands share, so that the same thing has the same name everywhere."""

from __future__ import annotations

from typing import Annotated

import typer

from gpt2cli.config import shipped_specs


def _complete_model(incomplete: str) -> list[str]:
    names = [name for spec in shipped_specs() for name in (spec.name, *spec.aliases)]
    return [name for name in names if name.startswith(incomplete)]


def _remember_debug(ctx: typer.Context, wanted: bool) -> bool:
    if wanted and isinstance(ctx.obj, dict):
        ctx.obj["debug"] = True
    return wanted


Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        envvar="GPT2_MODEL",
        metavar="NAME",
        autocompletion=_complete_model,
        help="Config name or alias (124M, medium, bard, …), YAML file, directory, "
        "or hub repository (owner/name).",
    ),
]
Device = Annotated[
    str,
    typer.Option(envvar="GPT2_DEVICE", metavar="NAME", help="auto, cpu, cuda, cuda:N or mps."),
]
Dtype = Annotated[
    str,
    typer.Option(
        envvar="GPT2_DTYPE",
        metavar="NAME",
        help="auto (bfloat16 on GPUs that have it, else float32), float32, bfloat16 or float16.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(envvar="GPT2_THREADS", min=1, metavar="N", help="CPU threads (default: all)."),
]
Offline = Annotated[
    bool,
    typer.Option("--offline", envvar="GPT2_OFFLINE", help="Use the network for nothing."),
]
Debug = Annotated[
    bool,
    typer.Option("--debug", callback=_remember_debug, help="Show a traceback when it fails."),
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Tell on stderr what ran, where and how fast.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
