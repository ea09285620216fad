"""`gpt2 models export`: a model, or an adapter, in the files of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpt2cli.cli import opening, options
from gpt2cli.cli.io.progress import download_progress
from gpt2cli.cli.io.terminal import Output
from gpt2cli.errors import UsageError
from gpt2cli.system import precision as precisions

FORMATS = ("gguf", "hf")
_GGUF = ("fp32", "fp16", "bf16", "q8_0", "q4_0")  # `gguf.export.PRECISIONS`, without its import
_ALIASES = {"f32": "fp32", "f16": "fp16"}  # llama.cpp's names

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", autocompletion=options.complete_model, help="Whatever --model takes."
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="NAME",
        autocompletion=options.one_of(*FORMATS),
        help="gguf (one file: llama.cpp, ollama) or hf (a directory: transformers, mlx-lm). "
        "[default: gguf if the output ends so, else hf]",
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="NAME",
        autocompletion=options.one_of(*_GGUF),
        help="fp32, fp16 or bf16; for gguf also q8_0 and q4_0, in 8 and 4 bits. "
        "[default: as stored; with adapters fp32]",
    ),
]
Out = Annotated[
    Path,
    typer.Option("--output", "-o", metavar="PATH", help="File (gguf) or directory (hf) to write."),
]
AdapterOnly = Annotated[
    bool,
    typer.Option("--adapter-only", help="Write the adapter alone, for llama.cpp's --lora."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]


def export(
    name: Name,
    output: Out,
    format_: Format = None,
    precision: Precision = None,
    adapter: options.Adapter = None,
    adapter_only: AdapterOnly = False,
    overwrite: Overwrite = False,
    offline: options.Offline = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Write a model as other programs read it; prints the path.

    Adapters are merged into it, each by its weight.

    \b
    Examples:
      gpt2 models export 124M --precision q8_0 -o gpt2.gguf
      gpt2 models export bard --format hf --precision fp32 -o bard-fp32
      gpt2 models export tuned.gguf -o tuned
      gpt2 models export 124M --adapter verse=0.7 --adapter prose=0.3 -o both
      gpt2 models export 124M --adapter mine --adapter-only -o mine-lora.gguf
    """
    to_gguf = _is_gguf(format_, output)
    chosen = _precision(precision, to_gguf)
    if adapter_only and not (to_gguf and adapter and len(adapter) == 1 and precision is None):
        raise UsageError("--adapter-only needs one --adapter, --format gguf and no --precision")
    machine = options.Machine(device="cpu", offline=offline)
    model = opening.load_named(name, machine, "fp32", adapter)
    if output.exists() and not overwrite:
        raise UsageError(f"{output} exists; --overwrite replaces it")
    with download_progress() as progress:
        model.fetch(progress=progress)
        if adapter_only:
            model.save_adapter(output, overwrite=overwrite)
        elif to_gguf:
            model.save_gguf(output, chosen, overwrite=overwrite, progress=progress)
        else:
            model.save(output, chosen, overwrite=overwrite, progress=progress)
    Output().write(f"{output}\n")


def _is_gguf(given: str | None, output: Path) -> bool:
    """Whether the format is GGUF. Raises `UsageError` for an unknown one."""
    if given is not None and given not in FORMATS:
        raise UsageError(f"--format must be {' or '.join(FORMATS)}, not {given!r}")
    return given == "gguf" if given else output.suffix.lower() == ".gguf"


def _precision(given: str | None, is_gguf: bool) -> str | None:
    """The precision by our name. Raises `UsageError` if the format does not have it."""
    if given is None:
        return None
    name = _ALIASES.get(given.lower(), given.lower())
    return precisions.parse(name, _GGUF if is_gguf else precisions.FLOATS)
