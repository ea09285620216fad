"""`gpt2 score`: how probable a text is to a model."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2cli import __version__
from gpt2cli.cli import options
from gpt2cli.cli.commands import score_lines
from gpt2cli.cli.io.inputs import NamedText, check_writable, input_names, named_texts, read_argument
from gpt2cli.cli.io.progress import fetch, open_decoder, token_progress
from gpt2cli.cli.io.terminal import complain
from gpt2cli.cli.render import score_top, score_views
from gpt2cli.errors import UsageError

if TYPE_CHECKING:
    from gpt2cli.analysis.scorer import Scorer
    from gpt2cli.cli.render.score_views import Stretches
    from gpt2cli.decoders.protocol import Decoder
    from gpt2cli.system.device import Placement
    from gpt2cli.weights.sources import Source


def score(
    files: Annotated[
        list[str] | None, typer.Argument(help="Files to score; - is stdin.", metavar="FILE")
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            "--text", metavar="TEXT", help="Score this text; with --choices, the context."
        ),
    ] = None,
    model: options.Model = "124M",
    choices: Annotated[
        list[str] | None,
        typer.Option(
            "--choices", metavar="TEXT", help="Rank this as a way to go on. Give several."
        ),
    ] = None,
    lines: Annotated[
        bool, typer.Option("--lines", help="Score each line by itself, as JSON a line.")
    ] = False,
    below: Annotated[
        float | None,
        typer.Option(metavar="N", help="With --lines: pass on lines of less perplexity."),
    ] = None,
    above: Annotated[
        float | None,
        typer.Option(metavar="N", help="With --lines: pass on lines of more perplexity."),
    ] = None,
    field: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="With --lines: they are JSON objects; score this field."),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(metavar="N", help="Tokens from window to window. [default: half the context]"),
    ] = None,
    bos: Annotated[
        bool, typer.Option("--bos", help="Begin with <|endoftext|>, so the first token counts.")
    ] = False,
    heatmap: Annotated[
        bool, typer.Option("--heatmap", help="Show the text, coloured by surprisal.")
    ] = False,
    ranks: Annotated[
        bool, typer.Option("--ranks", help="Colour by rank: top 10, 100, 1000, beyond (GLTR).")
    ] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write that as a page of HTML.")
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(
            "--top", min=1, metavar="N", help="List the N most surprising tokens of each text."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line and text.")
    ] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print a row for each token.")] = False,
    keep_newline: options.KeepNewline = False,
    no_special: options.NoSpecial = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    quantize: options.Quantize = None,
    threads: options.Threads = None,
    offline: options.Offline = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
    color: options.Color = "auto",
    debug: options.Debug = False,
) -> None:
    """Tell how probable a text is, and each token of it.

    Perplexity, bits per byte, the surprisal of each token.

    The first token has nothing before it and is not counted, unless --bos is given. A text
    longer than the context is read in windows, as transformers recommends; bits per byte
    compares models whatever their vocabularies.

    \b
    Examples:
      gpt2 score essay.txt --heatmap
      gpt2 score essay.txt --top 10
      gpt2 score --text "The capital of France is" --choices " Paris" --choices " Rome"
      gpt2 score --lines --below 200 < crawl.txt > clean.txt
    """
    shapes = (bool(choices), lines, as_csv, heatmap or ranks, top is not None and not as_json)
    if sum(shapes) > 1 or (as_json and (lines or as_csv or heatmap or ranks)):
        raise UsageError(
            "--choices, --lines, --csv, --heatmap, --top and --json are different answers"
        )
    if choices and top is not None:
        raise UsageError("--top lists tokens of whole texts; leave out --choices")
    if (lines or choices) and html:
        raise UsageError("--html shows whole texts; leave out --lines and --choices")
    if lines and text is not None:
        raise UsageError("--lines reads files or stdin; leave out --text")
    if not lines and not (below is None and above is None and field is None):
        raise UsageError("--below, --above and --field go with --lines")
    for name, limit in (("below", below), ("above", above)):
        if limit is not None and not limit > 0:
            raise UsageError(f"--{name} takes a perplexity, which is above 0, not {limit}")

    names = input_names(files or [], text)
    if html:
        check_writable(html, inputs=names)
    texts = named_texts(names, text, keep_newline)
    if not (texts or choices):
        raise UsageError("there is no text; name a file, pipe one in, or give --text")
    if choices and len(texts) > 1:
        raise UsageError("--choices go on from one text, not from several")

    run = _open(model, stride, (device, dtype, quantize, threads), offline, bos, not no_special)
    if lines:
        score_lines.score_lines(run, names, below, above, field, verbose)
        return
    if choices:
        context = "".join(texts[0][1]) if texts else ""
        _rank(run, context, [read_argument(choice) for choice in choices], as_json, verbose)
        return
    found = _score(run, texts, verbose, written=as_csv)
    titles = [title for title, _ in texts]
    if html or as_json or heatmap or ranks:
        found = list(found)
    if html:
        score_views.write_page(
            html, run.source.name, titles, found, run.scorer.tokenizer, by_rank=ranks
        )
    if as_json:
        score_views.print_json(titles, found, run.facts, run.scorer.tokenizer, top)
    elif as_csv:
        score_views.print_csv(titles, found, run.scorer.tokenizer)
    elif top is not None:
        score_top.print_top(titles, found, run.scorer.tokenizer, top)
    elif (heatmap or ranks) and html is None:
        score_views.print_heatmap(titles, found, run.scorer.tokenizer, by_rank=ranks)
    elif html is None:
        score_views.print_table(titles, found)


@dataclass(frozen=True)
class Run:
    """How to score, and the model that shall, of which only the vocabulary has been fetched."""

    scorer: Scorer
    source: Source
    placement: Placement
    quantize: str | None
    offline: bool

    @property
    def facts(self) -> dict[str, Any]:
        """What it needs to be repeated."""
        return {
            "model": self.source.name,
            "revision": self.source.revision,
            "device": self.placement.device,
            "dtype": self.placement.dtype,
            "quantize": self.quantize,
            "version": __version__,
            "stride": self.scorer.stride,
            "bos": self.scorer.bos,
        }

    @property
    def description(self) -> str:
        """What it is, in a few words."""
        from gpt2cli.decoders import opening

        return opening.describe(self.source, self.placement, self.quantize)

    def open(self, batch_size: int, tokens: int, verbose: bool) -> Decoder:
        """The model itself, with room for so many windows of so many tokens."""
        source = fetch(self.source, self.offline)
        size = self.scorer.tokenizer.size
        return open_decoder(
            source, self.placement, size, batch_size, tokens, self.quantize, verbose=verbose
        )


def _open(
    model: str,
    stride: int | None,
    where: tuple[str, str, str | None, int | None],
    offline: bool,
    bos: bool,
    special: bool,
) -> Run:
    """Check what can be checked, and fetch the vocabulary."""
    from gpt2cli.system.device import check_names, limit_threads, place

    device, dtype, quantize, threads = where
    if threads is not None:
        limit_threads(threads)
    from gpt2cli.analysis import scoring
    from gpt2cli.analysis.scorer import Scorer
    from gpt2cli.decoders import opening
    from gpt2cli.weights import sources

    check_names(device, dtype)
    source = sources.resolve(model)
    placement = place(device, dtype)
    opening.check_quantize(quantize, placement)
    if stride is not None and source.spec:
        scoring.check_stride(stride, source.config().context_length)
    source = fetch(source, offline, vocabulary_only=True)
    config, tokenizer = source.config(), opening.open_tokenizer(source)
    if stride is None:
        stride = scoring.default_stride(config.context_length)
    block = scoring.block_size(placement.device)
    scorer = Scorer(config, tokenizer, stride, block, bos, special)
    return Run(scorer, source, placement, quantize, offline)


def _score(run: Run, texts: list[NamedText], verbose: bool, *, written: bool) -> Stretches:
    """All texts, as they are read. Raises `UsageError` at once for one with nothing to score."""
    scorer = run.scorer
    ids = [scorer.encode(pieces) for _, pieces in texts]
    for (name, _), row in zip(texts, ids, strict=True):
        scorer.check(row, name)
    tokens = scorer.capacity(ids)
    batch_size = scorer.batch_size(tokens, scorer.windows(ids))
    decoder = run.open(batch_size, tokens, verbose)

    def read() -> Stretches:
        total, begun = sum(map(len, ids)) - len(ids), time.perf_counter()
        with token_progress(total, written=written) as advance:
            yield from scorer.stretches(decoder, ids, batch_size, advance)
        if verbose:
            complain(
                f"{run.description}, {total:,} tokens, windows of {scorer.config.context_length} "
                f"that move on by {scorer.stride}, "
                f"{total / (time.perf_counter() - begun):.1f} tokens/s"
            )

    return read()


def _rank(run: Run, context: str, choices: list[str], as_json: bool, verbose: bool) -> None:
    """Weigh alternatives and print them, the most probable first."""
    from gpt2cli.analysis import ranking

    rows, shared = run.scorer.encode_choices(context, choices)
    tokens = run.scorer.capacity(rows)
    batch_size = run.scorer.batch_size(tokens, len(rows))
    decoder = run.open(batch_size, tokens, verbose)
    found = ranking.weigh(decoder, rows, shared, choices, batch_size)
    if as_json:
        score_views.print_choices_json(context, found, run.facts)
    else:
        score_views.print_choices(found)
    if verbose:
        complain(f"{run.description}, {sum(map(len, rows)):,} tokens")
