"""`gpt2 score`: how probable a text is to a model."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2cli.cli import opening, options
from gpt2cli.cli.commands.score_lines import Lines, score_lines
from gpt2cli.cli.grouped import Group, grouped
from gpt2cli.cli.io.inputs import NamedText, input_names, named_texts, read_argument
from gpt2cli.cli.io.progress import token_progress
from gpt2cli.cli.io.terminal import complain
from gpt2cli.cli.render import score_top, score_views
from gpt2cli.errors import UsageError
from gpt2cli.files import check_writable

if TYPE_CHECKING:
    from gpt2cli.analysis.scorer import Scorer
    from gpt2cli.api import LoadedModel
    from gpt2cli.cli.render.score_views import Segments


@dataclass(frozen=True)
class Texts(Group):
    """Text"""

    text: Annotated[
        str | None,
        typer.Option("--text", metavar="TEXT", help="Score this text; with --choice, the context."),
    ] = None
    choice: Annotated[
        list[str] | None,
        typer.Option(
            "--choice", metavar="TEXT", help="Rank this as a continuation; give it once for each."
        ),
    ] = None
    bos: Annotated[
        bool, typer.Option("--bos", help="Begin with <|endoftext|>, so the first token counts.")
    ] = False
    stride: Annotated[
        int | None,
        typer.Option(metavar="N", help="Tokens from window to window. [default: half the context]"),
    ] = None
    keep_newline: options.KeepNewline = False
    no_special: options.NoSpecial = False

    def choices(self) -> list[str]:
        """The texts of --choice."""
        return list(map(read_argument, self.choice or ()))


@dataclass(frozen=True)
class Shown(Group):
    """Output"""

    heatmap: Annotated[
        bool, typer.Option("--heatmap", help="Show the text, coloured by surprisal.")
    ] = False
    ranks: Annotated[
        bool, typer.Option("--ranks", help="Colour by rank: top 10, 100, 1000, beyond (GLTR).")
    ] = False
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write that as a page of HTML.")
    ] = None
    top: Annotated[
        int | None,
        typer.Option(
            "--top", min=1, metavar="N", help="List the N most surprising tokens of each text."
        ),
    ] = None
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line and text.")
    ] = False
    as_csv: Annotated[bool, typer.Option("--csv", help="Print a row for each token.")] = False

    def check(self, texts: Texts, lines: Lines) -> None:
        """Raise `UsageError` if more than one kind of answer is asked for."""
        coloured, listed = self.heatmap or self.ranks, self.top is not None and not self.as_json
        shapes = (bool(texts.choice), bool(lines.name), self.as_csv, coloured, listed)
        if sum(shapes) > 1 or (self.as_json and (lines.name or self.as_csv or coloured)):
            raise UsageError(
                f"--choice, {lines.name or '--lines'}, --csv, --heatmap, --top and --json are "
                "different answers"
            )
        if texts.choice and self.top is not None:
            raise UsageError("--top lists tokens of whole texts; leave out --choice")
        if (lines.name or texts.choice) and self.html:
            raise UsageError("--html shows whole texts; leave out --lines, --jsonl and --choice")
        if lines.name and texts.text is not None:
            raise UsageError(f"{lines.name} reads files or stdin; leave out --text")


Files = Annotated[
    list[str] | None, typer.Argument(help="Files to score; - is stdin.", metavar="FILE")
]


@grouped
def score(
    *,
    files: Files = None,
    texts: Texts,
    shown: Shown,
    lines: Lines,
    where: options.Where,
    messages: options.Messages,
) -> None:
    """Show how probable a text is, and each token of it.

    Perplexity, bits per byte, the surprisal of each token.

    The first token has nothing before it and is not counted, unless --bos is given. A text
    longer than the context is read in windows, as transformers recommends; bits per byte
    compares models whatever their vocabularies.

    \b
    Examples:
      gpt2 score essay.txt --heatmap
      gpt2 score essay.txt --top 10
      gpt2 score --text "The capital of France is" --choice " Paris" --choice " Rome"
      gpt2 score --lines --max-perplexity 200 < crawl.txt > clean.txt
      gpt2 score --jsonl rows.jsonl --field body > scored.jsonl
    """
    shown.check(texts, lines)
    lines.check()
    names = input_names(files or [], texts.text)
    if shown.html:
        check_writable(shown.html, inputs=names)
    read = named_texts(names, texts.text, texts.keep_newline)
    if not (read or texts.choice):
        raise UsageError("there is no text; name a file, pipe one in, or give --text")
    if texts.choice and len(read) > 1:
        raise UsageError("choices continue one text, not several")
    model = opening.load(where)
    if texts.stride is not None and model.source.spec:
        from gpt2cli.analysis.scoring import check_stride

        check_stride(texts.stride, model.config.context_length)
    opening.fetch(model, vocabulary_only=True)
    scorer = model.scorer(texts.stride, bos=texts.bos, special=not texts.no_special)
    if lines.name:
        score_lines(model, scorer, names, lines, verbose=messages.verbose)
    elif texts.choice:
        context = "".join(read[0][1]) if read else ""
        _rank(model, scorer, context, texts.choices(), shown, messages)
    else:
        titles = [title for title, _ in read]
        found = _score(model, scorer, read, written=shown.as_csv, verbose=messages.verbose)
        _show(titles, found, model, scorer, shown)


def _facts(model: LoadedModel, scorer: Scorer) -> dict[str, Any]:
    """What is needed to repeat the run."""
    return {**model.facts(), "stride": scorer.stride, "bos": scorer.bos}


def _show(
    titles: list[str], found: Segments, model: LoadedModel, scorer: Scorer, shown: Shown
) -> None:
    """Print or write what was asked for, text by text if the format allows it."""
    tokenizer = scorer.tokenizer
    if shown.html or shown.as_json or shown.heatmap or shown.ranks:
        found = list(found)
    if shown.html:
        page = shown.html
        score_views.write_page(page, model.name, titles, found, tokenizer, by_rank=shown.ranks)
    if shown.as_json:
        score_views.print_json(titles, found, _facts(model, scorer), tokenizer, shown.top)
    elif shown.as_csv:
        score_views.print_csv(titles, found, tokenizer)
    elif shown.top is not None:
        score_top.print_top(titles, found, tokenizer, shown.top)
    elif (shown.heatmap or shown.ranks) and shown.html is None:
        score_views.print_heatmap(titles, found, tokenizer, by_rank=shown.ranks)
    elif shown.html is None:
        score_views.print_table(titles, found)


def _score(
    model: LoadedModel, scorer: Scorer, texts: list[NamedText], *, written: bool, verbose: bool
) -> Segments:
    """All texts, as they are read. Raises `UsageError` at once for one with nothing to score."""
    ids = [scorer.encode(pieces) for _, pieces in texts]
    for (name, _), row in zip(texts, ids, strict=True):
        scorer.check(row, name)
    decoder = opening.open_decoder(model, scorer.cache_tokens(ids), verbose=verbose)

    def read() -> Segments:
        total, begun = sum(map(len, ids)) - len(ids), time.perf_counter()
        with token_progress(total, written=written) as advance:
            yield from scorer.score_texts(decoder, ids, advance)
        if verbose:
            complain(
                f"{model.describe()}, {total:,} tokens, windows of "
                f"{scorer.config.context_length} that move on by {scorer.stride}, "
                f"{total / (time.perf_counter() - begun):.1f} tokens/s"
            )

    return read()


def _rank(
    model: LoadedModel,
    scorer: Scorer,
    context: str,
    choices: list[str],
    shown: Shown,
    messages: options.Messages,
) -> None:
    """Rank choices and print them, the most probable first."""
    from gpt2cli.analysis import ranking

    rows, shared = scorer.encode_choices(context, choices)
    tokens = scorer.cache_tokens(rows)
    decoder = opening.open_decoder(model, tokens, verbose=messages.verbose)
    found = ranking.rank_choices(decoder, rows, shared, choices, scorer.block)
    if shown.as_json:
        score_views.print_choices_json(context, found, _facts(model, scorer))
    else:
        score_views.print_choices(found)
    if messages.verbose:
        complain(f"{model.describe()}, {sum(map(len, rows)):,} tokens")
