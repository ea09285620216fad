"""gpt2cli: GPT-2 in a shell and in Python, and a source that is meant to be read.

`load` opens a model. To read the source, begin with `config.model` (what a GPT-2 is, in eight
numbers), `model.gpt2` (the network), `text.tokenizer`, `weights.checkpoint` (where weights come
from), `sampling.rules` (logits to a token), `generation.loop`, `training.trainer`; `docs/` has a
map. `cli` is the thin layer that a shell sees.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpt2cli.version import __version__

__all__ = [
    "GPT2CLIError",
    "GenerationConfig",
    "Interventions",
    "LoadedModel",
    "__version__",
    "load",
]

if TYPE_CHECKING:
    from gpt2cli.api import LoadedModel, load
    from gpt2cli.config.interventions import Interventions
    from gpt2cli.errors import GPT2CLIError
    from gpt2cli.generation.request import GenerationConfig

_PUBLIC = {
    "GPT2CLIError": "gpt2cli.errors",
    "GenerationConfig": "gpt2cli.generation.request",
    "Interventions": "gpt2cli.config.interventions",
    "LoadedModel": "gpt2cli.api",
    "load": "gpt2cli.api",
}


def __getattr__(name: str) -> Any:
    # The command line imports this package and must not pay for what it does not use.
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PUBLIC[name]), name)
