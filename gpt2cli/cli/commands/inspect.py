"""`gpt2 inspect`: look at what the model is doing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from gpt2cli.cli import options
from gpt2cli.cli.io.inputs import check_writable, read_argument, read_text, write_file
from gpt2cli.cli.io.progress import fetch
from gpt2cli.cli.io.terminal import Output, complain_of_dropped, notice, print_rich
from gpt2cli.config.model import ModelConfig
from gpt2cli.errors import UsageError, did_you_mean

SECTIONS = ("next", "lens", "contributions", "activations", "norms", "attention")
OVERVIEW = SECTIONS[:4]


def _complete_sections(incomplete: str) -> list[str]:
    """The last of the names that commas divide."""
    before, comma, last = incomplete.rpartition(",")
    return [before + comma + name for name in options.one_of(*SECTIONS, "all")(last)]


def inspect(
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="TEXT", help="Text to read; - reads stdin. Piped text comes before it."
        ),
    ] = None,
    model: options.Model = "124M",
    show: Annotated[
        str | None,
        typer.Option(
            "--show",
            metavar="LIST",
            autocompletion=_complete_sections,
            help=f"Sections, with commas between: {', '.join(SECTIONS)}, or all. "
            f"[default: {','.join(OVERVIEW)}; with --json, all]",
        ),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="The next token to explain, such as ' the'. [default: the most probable]",
        ),
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(metavar="N", help="Attention of this layer, from 0. [default: the last]"),
    ] = None,
    head: Annotated[
        int | None,
        typer.Option(metavar="N", help="Attention of this head, from 0. [default: their mean]"),
    ] = None,
    all_heads: Annotated[
        bool, typer.Option("--all-heads", help="Attention of every head, of one layer or of all.")
    ] = False,
    top: Annotated[
        int, typer.Option(min=1, metavar="N", help="List the N most probable tokens.")
    ] = 10,
    last: Annotated[
        int, typer.Option(min=1, metavar="N", help="Keep details of the last N tokens.")
    ] = 64,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write an interactive page that needs nothing else."),
    ] = None,
    png: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a picture (needs matplotlib).")
    ] = None,
    as_json: options.Json = False,
    file: options.File = None,
    keep_newline: options.KeepNewline = False,
    no_special: options.NoSpecial = False,
    device: options.Device = "auto",
    threads: options.Threads = None,
    offline: options.Offline = False,
    quiet: options.Quiet = False,
    color: options.Color = "auto",
    debug: options.Debug = False,
) -> None:
    """Show what the model is doing when it has read a text.

    The next token's probabilities; the logit lens, what each layer would say; who
    contributes to the chosen token's logit; how long the activations are; what layer norms
    do; where attention looks. In float32, by the reference model in PyTorch.

    \b
    Examples:
      gpt2 inspect --model bard "ROMEO:"
      gpt2 inspect "The Eiffel Tower is in" --token " Paris" --html page.html
      gpt2 inspect -m bard "To be, or not to be" --layer 3 --head 2
      gpt2 inspect "Hello" --show lens,norms --json
    """
    from gpt2cli.system.device import limit_threads, place

    if threads is not None:
        limit_threads(threads)
    from gpt2cli.decoders import opening
    from gpt2cli.text.window import fit_prompt
    from gpt2cli.weights import sources

    source = sources.resolve(model)
    sections = _sections(show, as_json, layer is not None or head is not None or all_heads)
    if head is not None and all_heads:
        raise UsageError("--head and --all-heads exclude each other")
    for path in (html, png):
        if path is not None:
            check_writable(path, inputs=[file])
    if png is not None:
        _check_matplotlib()
    text = read_text(prompt, file, keep_newline) or ""
    placement = place(device, "float32")
    vocabulary = fetch(source, offline, vocabulary_only=True)
    layers = _layers(vocabulary.config(), layer, head, all_heads)
    tokenizer = opening.open_tokenizer(vocabulary)
    ids = opening.encode_prompt(tokenizer, text, special=not no_special)
    wanted = None if token is None else tokenizer.one(read_argument(token))
    window = fit_prompt(ids, vocabulary.config().context_length)
    complain_of_dropped(len(ids) - len(window))
    source = fetch(source, offline)

    from gpt2cli.analysis import inspection
    from gpt2cli.weights import checkpoint

    network = checkpoint.load(opening.directory_of(source), device=placement.device)
    data = inspection.inspect(network, tokenizer, window, token=wanted, window=last, top=top)
    if html is not None:
        from gpt2cli.cli.render.pages import inspection as page

        write_file(html, page.render(source.name, text, data.as_dict(SECTIONS)))
    if png is not None:
        from gpt2cli.cli.render import picture

        write_file(png, picture.render(source.name, text, data, sections, layers, head, all_heads))
    if as_json:
        facts = {"model": source.name, "prompt": text}
        record = facts | data.as_dict(sections)
        Output().write(json.dumps(record, ensure_ascii=False) + "\n")
    elif html is None and png is None:
        from gpt2cli.cli.render import charts

        print_rich(*charts.charts(data, sections, layers, head, all_heads))
    if data.first and (as_json or html or png or "attention" in sections):
        notice(f"details cover the last {last} of {len(window)} tokens (--last N for more)")


def _sections(show: str | None, as_json: bool, attention: bool) -> list[str]:
    """The sections to show, in the order in which they were asked for."""
    if show is None:
        return [*(SECTIONS if as_json else OVERVIEW), *["attention"][: attention and not as_json]]
    names = [name.strip() for name in show.split(",") if name.strip()]
    for name in names:
        if name not in (*SECTIONS, "all"):
            raise UsageError(
                f"unknown section {name!r}; use {', '.join(SECTIONS)} or all"
                f"{did_you_mean(name, SECTIONS)}"
            )
    chosen = SECTIONS if "all" in names else names
    return list(dict.fromkeys([*chosen, *["attention"][:attention]]))


def _layers(config: ModelConfig, layer: int | None, head: int | None, all_heads: bool) -> list[int]:
    """The layers whose attention is shown. Raises `UsageError` for any that are not there."""
    for name, value, count in (("layer", layer, config.n_layers), ("head", head, config.n_heads)):
        if value is not None and not 0 <= value < count:
            raise UsageError(f"{name} must be 0 to {count - 1}, not {value}", name)
    if layer is not None:
        return [layer]
    return list(range(config.n_layers)) if all_heads else [config.n_layers - 1]


def _check_matplotlib() -> None:
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise UsageError("--png needs matplotlib; install it with: pip install 'gpt2cli[plot]'")
