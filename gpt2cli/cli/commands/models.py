"""`gpt2 models`: what can be run, what is on this disk, and how to fetch or remove it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

import typer

from gpt2cli.cli import options
from gpt2cli.cli.commands.export import export
from gpt2cli.cli.io.progress import download_progress
from gpt2cli.cli.io.terminal import Output, notice, visible
from gpt2cli.cli.render.tables import new_table, print_rich
from gpt2cli.cli.usage import Command, Group
from gpt2cli.config.spec import shipped_specs
from gpt2cli.errors import UsageError, WeightsError
from gpt2cli.weights import cache, sources

app = typer.Typer(cls=Group, rich_markup_mode=None)
app.command(cls=Command)(export)

_NAME = "Config name or alias, or hub repository (owner/name)."
Name = Annotated[
    str, typer.Argument(metavar="NAME", autocompletion=options.complete_model, help=_NAME)
]
CachedName = Annotated[
    str, typer.Argument(metavar="NAME", autocompletion=options.complete_cached, help=_NAME)
]


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    aliases: tuple[str, ...]
    origin: str
    status: str
    size: int | None


@app.callback(invoke_without_command=True)
def models(
    ctx: typer.Context,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    color: options.Color = "auto",
    debug: options.Debug = False,
) -> None:
    """List models, here or on the hub; pull, rm, path, export.

    \b
    Examples:
      gpt2 models
      gpt2 models pull gpt2-medium
      gpt2 models rm distilbert/distilgpt2
    """
    if ctx.invoked_subcommand:
        return
    rows = _rows()
    if as_json:
        listed = [{field: getattr(row, field) for field in _Row.__slots__} for row in rows]
        Output().write(json.dumps(listed, ensure_ascii=False) + "\n")
    else:
        _print_table(rows)


def _rows() -> list[_Row]:
    cached = {model.repo_id: model for model in cache.cached_models()}
    rows = []
    for spec in shipped_specs():
        if spec.bundled:
            rows.append(_Row(spec.name, spec.aliases, "bundled", "ready", _bundled_size(spec.name)))
        elif spec.repo_id:
            found = cached.pop(spec.repo_id, None)
            rows.append(_hub_row(spec.name, spec.aliases, spec.repo_id, found))
    rows += [_hub_row(repo_id, (), repo_id, model) for repo_id, model in sorted(cached.items())]
    return rows


def _hub_row(
    name: str, aliases: tuple[str, ...], repo_id: str, model: cache.CachedModel | None
) -> _Row:
    if model is None:
        return _Row(name, aliases, repo_id, "not fetched", None)
    unready = "vocabulary only" if model.vocabulary_only else "incomplete"
    return _Row(name, aliases, repo_id, "ready" if model.complete else unready, model.size)


def _bundled_size(name: str) -> int:
    directory = sources.resolve(name).directory
    return sum(p.stat().st_size for p in directory.iterdir()) if directory else 0


def _print_table(rows: list[_Row]) -> None:
    table = new_table("model", "aliases", "from", "status", "on disk", text=4)
    for row in rows:
        size = f"{row.size / 1e6:,.1f} MB" if row.size is not None else ""
        cells = (row.name, ", ".join(row.aliases), row.origin, row.status, size)
        table.add_row(*(visible(cell) for cell in cells))
    print_rich(table)


def _hub_id(name: str) -> str:
    source = sources.resolve(name)
    if source.repo_id is None:
        raise UsageError(
            f"{name} does not come from the hub; it is in {source.file or source.directory}"
        )
    return source.repo_id


@app.command(cls=Command)
def pull(name: Name, quiet: options.Quiet = False, debug: options.Debug = False) -> None:
    """Fetch a model, or its newest revision; prints its directory.

    \b
    Examples:
      gpt2 models pull 124M
      gpt2 models pull distilbert/distilgpt2
    """
    source = sources.resolve(name)
    _hub_id(name)
    with download_progress() as progress:
        fetched = sources.fetch(source, update=True, progress=progress)
    Output().write(f"{fetched.directory}\n")


@app.command(cls=Command)
def rm(name: CachedName, quiet: options.Quiet = False, debug: options.Debug = False) -> None:
    """Delete a fetched model from the hub's cache, and what was made of it.

    Of a GGUF file only its converted copy is deleted.

    \b
    Examples:
      gpt2 models rm 1558M
      gpt2 models rm tuned.gguf
      gpt2 models rm distilbert/distilgpt2
    """
    from gpt2cli.decoders.native import quantize
    from gpt2cli.weights.gguf import imported

    source = sources.resolve(name)
    removed = imported.remove(source.file) if source.file else cache.remove(_hub_id(name))
    freed = removed + imported.prune() + quantize.prune()
    notice(f"removed {name}: {freed / 1e6:,.1f} MB freed")


@app.command(cls=Command)
def path(name: Name, quiet: options.Quiet = False, debug: options.Debug = False) -> None:
    """Print the directory of a model that is bundled, fetched, local or made of a GGUF file.

    \b
    Examples:
      gpt2 models path bard
      ls -lh "$(gpt2 models path 124M)"
    """
    source = sources.resolve(name)
    if source.file:
        with download_progress() as progress:
            source = sources.fetch(source, progress=progress)
    if source.directory is None:
        raise WeightsError(f"{name} is not on this disk; fetch it with: gpt2 models pull {name}")
    Output().write(f"{source.directory}\n")
