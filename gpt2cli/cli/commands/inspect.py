"""`gpt2 inspect`: look at what the model is doing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpt2cli.cli import opening, options
from gpt2cli.cli.grouped import Group, grouped
from gpt2cli.cli.intervening import Changes
from gpt2cli.cli.io.inputs import read_argument
from gpt2cli.cli.io.terminal import Output, complain_of_dropped, notice
from gpt2cli.cli.render.drawing import check_matplotlib
from gpt2cli.cli.render.tables import print_rich
from gpt2cli.config.model import ModelConfig
from gpt2cli.errors import UsageError, did_you_mean
from gpt2cli.files import check_writable, write_file

if TYPE_CHECKING:
    from gpt2cli.analysis.inspection import Inspection
    from gpt2cli.api import LoadedModel

SECTIONS = (
    *("next", "lens", "contributions", "activations"),
    *("norms", "embedding", "neurons", "attention"),
)
OVERVIEW = SECTIONS[:4]


def _complete_sections(incomplete: str) -> list[str]:
    """Completions of the last of the names separated by commas."""
    before, comma, last = incomplete.rpartition(",")
    return [before + comma + name for name in options.one_of(*SECTIONS, "all")(last)]


@dataclass(frozen=True)
class Details(Group):
    """What is shown"""

    show: Annotated[
        str | None,
        typer.Option(
            "--show",
            metavar="LIST",
            autocompletion=_complete_sections,
            help=f"Sections, with commas between: {', '.join(SECTIONS)}, or all. "
            f"[default: {','.join(OVERVIEW)}; with --json, all]",
        ),
    ] = None
    token: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="The next token to explain, such as ' the'. [default: the most probable]",
        ),
    ] = None
    versus: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="What speaks for it rather than for this token (not in --html)."
        ),
    ] = None
    layer: Annotated[
        int | None,
        typer.Option(metavar="N", help="Attention of this layer, from 0. [default: the last]"),
    ] = None
    head: Annotated[
        int | None,
        typer.Option(metavar="N", help="Attention of this head, from 0. [default: their mean]"),
    ] = None
    all_heads: Annotated[
        bool, typer.Option("--all-heads", help="Attention of every head, of one layer or of all.")
    ] = False
    top: Annotated[
        int, typer.Option(min=1, metavar="N", help="List the N most probable tokens.")
    ] = 10
    last: Annotated[
        int, typer.Option(min=1, metavar="N", help="Keep details of the last N tokens.")
    ] = 64

    @property
    def attention(self) -> bool:
        """Whether an option concerns attention, which is then shown."""
        return self.layer is not None or self.head is not None or self.all_heads


@dataclass(frozen=True)
class Shown(Group):
    """Output"""

    as_json: options.Json = False
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write an interactive page that needs nothing else."),
    ] = None
    png: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a picture (needs matplotlib).")
    ] = None

    def check(self, file: Path | None) -> None:
        """Raise `UsageError` if a file cannot be written."""
        for path in (self.html, self.png):
            if path is not None:
                check_writable(path, inputs=[file])
        if self.png is not None:
            check_matplotlib("png")


@grouped
def inspect(
    *,
    prompt: options.Prompt = None,
    source: options.PromptSource,
    details: Details,
    changes: Changes,
    shown: Shown,
    model: options.ModelName = "124M",
    adapter: options.Adapter = None,
    machine: options.Machine,
    common: options.Common,
) -> None:
    """Show what the model is doing when it has read a text.

    The next token's probabilities; the logit lens, what each layer would say; who
    contributes to the chosen token's logit; how long the activations are; what layer norms
    do; where attention looks. In float32, by the reference model in PyTorch.

    With parts switched off or steering: what happens then, and what was predicted before.

    \b
    Examples:
      gpt2 inspect --model bard "ROMEO:"
      gpt2 inspect "The Eiffel Tower is in" --token " Paris" --html page.html
      gpt2 inspect -m bard "To be, or not to be" --layer 3 --head 2
      gpt2 inspect "Hello" --show lens,norms --json
      gpt2 inspect -m bard "ROMEO:" --ablate 2.3 --ablate mlp.1 --show next
    """
    opened = opening.load_named(model, machine, "fp32", adapter)
    sections = _sections(details.show, shown.as_json, details.attention)
    if details.head is not None and details.all_heads:
        raise UsageError("--head and --all-heads exclude each other")
    changes.check()
    shown.check(source.file)
    text = source.read(prompt)
    opening.fetch(opened, vocabulary_only=True)
    layers = _layers(opened.config, details)
    named = (details.token, details.versus)
    tokens = [None if text is None else opened.tokenizer.one(read_argument(text)) for text in named]
    ids = opened.encode(text, special=source.special)
    opened = changes.applied(opened, text, ids)
    window = opened.fit(ids)
    complain_of_dropped(len(ids) - len(window))
    opening.fetch(opened)
    data = _inspected(opened, window, tokens, details)
    _show(opened, text, data, sections, layers, details, shown)
    if data.first and (shown.as_json or shown.html or shown.png or "attention" in sections):
        last = details.last
        notice(f"details cover the last {last} of {len(window)} tokens (--last N for more)")


def _inspected(
    model: LoadedModel, window: list[int], tokens: list[int | None], details: Details
) -> Inspection:
    """What the reference model does when it reads the tokens."""
    from gpt2cli.analysis import inspection

    network = model.network()
    return inspection.inspect(
        network,
        model.tokenizer,
        window,
        token=tokens[0],
        versus=tokens[1],
        window=details.last,
        top=details.top,
        edits=model.edits(network) if model.interventions else None,
    )


def _show(
    model: LoadedModel,
    text: str,
    data: Inspection,
    sections: list[str],
    layers: list[int],
    details: Details,
    shown: Shown,
) -> None:
    """Write the files that were asked for, and print JSON or charts."""
    chosen = sections, layers, details.head, details.all_heads
    if shown.html is not None:
        from gpt2cli.cli.render.pages import inspection as page

        write_file(shown.html, page.render(model.title, text, data.as_dict(SECTIONS)))
    if shown.png is not None:
        from gpt2cli.cli.render import picture

        write_file(shown.png, picture.render(model.title, text, data, *chosen))
    if shown.as_json:
        facts = {**model.facts(), "engine": "PyTorch"}
        record = {**facts, "prompt": text, **data.as_dict(sections)}
        Output().write(json.dumps(record, ensure_ascii=False) + "\n")
    elif shown.html is None and shown.png is None:
        from gpt2cli.cli.render import charts

        print_rich(*charts.charts(data, *chosen))


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


def _layers(config: ModelConfig, details: Details) -> list[int]:
    """The layers whose attention is shown. Raises `UsageError` for a layer or head out of range."""
    for name, value, count in (
        ("layer", details.layer, config.n_layers),
        ("head", details.head, config.n_heads),
    ):
        if value is not None and not 0 <= value < count:
            raise UsageError(f"{name} must be 0 to {count - 1}, not {value}", name)
    if details.layer is not None:
        return [details.layer]
    return list(range(config.n_layers)) if details.all_heads else [config.n_layers - 1]
