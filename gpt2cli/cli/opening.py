"""Models as the options name them, fetched and opened with progress bars."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from gpt2cli.cli.io.progress import download_progress
from gpt2cli.cli.io.terminal import complain
from gpt2cli.decoders import native
from gpt2cli.system.device import one_blas_thread

if TYPE_CHECKING:
    from gpt2cli.api import LoadedModel
    from gpt2cli.cli.options import Machine, Where
    from gpt2cli.decoders.protocol import Decoder


def load(where: Where) -> LoadedModel:
    """`api.load` of a model that will compute; nothing is fetched yet."""
    return load_named(where.model, where, where.precision, where.adapter, computes=True)


def load_named(
    name: str,
    machine: Machine | Where,
    precision: str = "auto",
    adapters: Sequence[str] | None = None,
    *,
    computes: bool = False,
) -> LoadedModel:
    """The same for a model that another option names, or that will not compute."""
    from gpt2cli import api

    model = api.load(
        name,
        adapters=adapters or (),
        device=machine.device,
        precision=precision,
        threads=machine.threads,
        offline=machine.offline,
        fetch=False,
    )
    if computes:
        model.read_ahead()
    if model.placement.device == "cpu" and native.available() and not adapters:
        with one_blas_thread():  # the engine multiplies, but where adapters are merged
            import_module("numpy")
    return model


def fetch(model: LoadedModel, *, vocabulary_only: bool = False) -> None:
    """`LoadedModel.fetch` with progress bars."""
    with download_progress() as progress:
        model.fetch(vocabulary_only=vocabulary_only, progress=progress)


def open_decoder(
    model: LoadedModel,
    tokens: int | None = None,
    *,
    compiled: bool = False,
    verbose: bool = False,
) -> Decoder:
    """`LoadedModel.decoder` with progress bars: the first run fetches, and may quantize.

    With `verbose` a notice says why the next run will quantize again, if it will.
    """
    with download_progress() as progress:
        decoder = model.decoder(tokens, compiled=compiled, progress=progress)
    if verbose and (reason := model.why_quantized_again()):
        complain(reason)
    return decoder
