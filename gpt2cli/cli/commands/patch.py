"""`gpt2 patch`: which activations restore one prompt's answer in another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpt2cli.cli import opening, options
from gpt2cli.cli.grouped import Group, grouped
from gpt2cli.cli.io.inputs import read_argument
from gpt2cli.cli.io.progress import token_progress
from gpt2cli.cli.io.terminal import Output, notice
from gpt2cli.cli.render.tables import print_rich
from gpt2cli.errors import UsageError, did_you_mean
from gpt2cli.files import check_writable, write_file

if TYPE_CHECKING:
    from gpt2cli.analysis.patching import Patching
    from gpt2cli.api import LoadedModel
    from gpt2cli.model.gpt2 import GPT2

MAPS = ("stream", "heads", "attention", "mlp")
OVERVIEW = MAPS[:2]


@dataclass(frozen=True)
class Compared(Group):
    """Answers and maps"""

    answer: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="The next token that the clean prompt has, such as ' she'. [default: its most "
            "probable]",
        ),
    ] = None
    versus: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="The one that the corrupted prompt has. [default: its most probable]",
        ),
    ] = None
    show: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="What to patch, with commas between: stream, what goes into a layer; attention "
            "and mlp, what these add; heads, each at all positions; or all. [default: "
            f"{','.join(OVERVIEW)}; with --json and --html, all]",
        ),
    ] = None

    def maps(self, every: bool) -> list[str]:
        """What is patched. Raises `UsageError` for what is nothing."""
        if self.show is None:
            return list(MAPS if every else OVERVIEW)
        names = [name.strip() for name in self.show.split(",") if name.strip()]
        for name in names:
            if name not in (*MAPS, "all"):
                hint = did_you_mean(name, MAPS)
                raise UsageError(f"there is no map {name!r}; use {', '.join(MAPS)} or all{hint}")
        return [name for name in MAPS if name in names or "all" in names]


@dataclass(frozen=True)
class Shown(Group):
    """Output"""

    as_json: options.Json = False
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page that needs nothing else.")
    ] = None


@grouped
def patch(
    *,
    clean: Annotated[str, typer.Argument(metavar="CLEAN", help="A prompt with the answer.")],
    corrupted: Annotated[
        str,
        typer.Argument(metavar="CORRUPTED", help="One of as many tokens, with another answer."),
    ],
    compared: Compared,
    shown: Shown,
    model: options.ModelName = "124M",
    adapter: options.Adapter = None,
    machine: options.Machine,
    common: options.Common,
) -> None:
    """Show which activations restore one prompt's answer in another.

    The corrupted prompt is read again and again, each time with one activation taken from the
    clean one. 100 per cent restores all of the difference between both answers' logits, 0 none.

    \b
    Examples:
      gpt2 patch "I told the woman that" "I told the man that" -m bard
      gpt2 patch "The Eiffel Tower is in" "The Colosseum is in" --answer " Paris" --versus " Rome"
      gpt2 patch "She said" "He said" -m bard --show all --html page.html
    """
    maps = compared.maps(every=shown.as_json or shown.html is not None)
    if shown.html is not None:
        check_writable(shown.html)
    opened = opening.load_named(model, machine, "fp32", adapter)
    opening.fetch(opened, vocabulary_only=True)
    tokenizer = opened.tokenizer
    named = (compared.answer, compared.versus)
    answers = [None if text is None else tokenizer.one(read_argument(text)) for text in named]
    prompts = [read_argument(text) for text in (clean, corrupted)]
    ids = [opened.encode(text) for text in prompts]
    opening.fetch(opened)
    network = opened.network()
    _tell_of_spaces(opened, network, ids, answers)
    found = _patched(opened, network, ids, answers, maps)
    _show(opened, prompts, found, shown)


def _tell_of_spaces(
    model: LoadedModel, network: GPT2, ids: list[list[int]], answers: list[int | None]
) -> None:
    """A word on an answer that probably lacks the space before it."""
    from gpt2cli.analysis import patching

    for prompt, answer in zip(ids, answers, strict=True):
        if answer is None or len(prompt) > model.config.context_length:
            continue
        if (better := patching.spaced(network, model.tokenizer, prompt, answer)) is not None:
            show = model.tokenizer.show
            notice(f"{show(better)!r} is more probable there than {show(answer)!r}", asked=True)


def _patched(
    model: LoadedModel,
    network: GPT2,
    ids: list[list[int]],
    answers: list[int | None],
    maps: list[str],
) -> Patching:
    """All patches, with a bar."""
    from gpt2cli.analysis import patching

    (clean, corrupted), (answer, versus) = ids, answers
    first = patching.check(network, model.tokenizer, clean, corrupted)
    total = patching.count(network, len(clean) - first, maps)
    with token_progress(total, unit="patches") as advance:
        return patching.patch(
            network,
            model.tokenizer,
            clean,
            corrupted,
            answer=answer,
            versus=versus,
            maps=maps,
            advance=advance,
        )


def _show(model: LoadedModel, prompts: Sequence[str], found: Patching, shown: Shown) -> None:
    """Write the page that was asked for, and print JSON or tables."""
    facts = {**model.facts(), "engine": "PyTorch"}
    if shown.html is not None:
        from gpt2cli.cli.render.pages import patching as page

        write_file(shown.html, page.render(model.title, prompts, found))
    if shown.as_json:
        texts = dict(zip(("clean_prompt", "corrupted_prompt"), prompts, strict=True))
        record = {**facts, **texts, **found.as_dict()}
        Output().write(json.dumps(record, ensure_ascii=False) + "\n")
    elif shown.html is None:
        from gpt2cli.cli.render import patch_view

        print_rich(*patch_view.tables(found))
