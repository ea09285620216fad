"""Options of many commands, each declared once, in the groups that commands take whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from gpt2cli.cli.grouped import Group
from gpt2cli.cli.io.inputs import read_argument, read_text
from gpt2cli.cli.usage import environment_name
from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.errors import UsageError

PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8", "int4")
_DEFAULTS = {f.name: f.default for f in fields(SamplingConfig)}


def one_of(*values: str) -> Callable[[str], list[str]]:
    """Completion for an option that takes one of these."""
    return lambda incomplete: [value for value in values if value.startswith(incomplete)]


def complete_config(incomplete: str) -> list[str]:
    """Names and aliases of the shipped configs, with or without weights."""
    from gpt2cli.config.spec import known_names

    return one_of(*known_names())(incomplete)


def complete_model(incomplete: str) -> list[str]:
    """The models that can be run: shipped configs with weights, and other cached ones."""
    from gpt2cli.config.spec import shipped_specs
    from gpt2cli.weights import cache

    specs = [spec for spec in shipped_specs() if spec.bundled or spec.repo_id]
    names = [name for spec in specs for name in (spec.name, *spec.aliases)]
    shipped = {spec.repo_id for spec in specs}
    cached = [m.repo_id for m in cache.cached_models() if m.repo_id not in shipped]
    return one_of(*names, *cached)(incomplete)


def complete_cached(incomplete: str) -> list[str]:
    """The models fetched from the hub."""
    from gpt2cli.weights import cache

    return one_of(*(model.repo_id for model in cache.cached_models()))(incomplete)


def setting(*names: str, **details: Any) -> Any:
    """An option whose default comes from the environment: GPT2_TOP_K for --top-k."""
    return typer.Option(*names, envvar=environment_name(names[0]), show_envvar=False, **details)


def number(name: str, help: str, **details: Any) -> Any:
    """A numeric setting; its help shows the default that `SamplingConfig` has for it."""
    default = _DEFAULTS.get(name.lstrip("-").replace("-", "_"))
    if default is not None and name != "--temperature":
        help = f"{help} [default: {default}]"
    return setting(name, metavar="N", help=help, **details)


def _remember_debug(ctx: typer.Context, wanted: bool) -> bool:
    if wanted and isinstance(ctx.obj, dict):
        ctx.obj["debug"] = True
    return wanted


ModelName = Annotated[
    str,
    setting(
        "--model",
        "-m",
        metavar="NAME",
        autocompletion=complete_model,
        rich_help_panel="Model and machine",
        help="Config name or alias (124M, medium, bard, …), YAML or GGUF file, directory, "
        "or hub repository (owner/name).",
    ),
]
Adapter = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        metavar="DIR[=WEIGHT]",
        rich_help_panel="Model and machine",
        help="A LoRA adapter in PEFT's layout, merged into the model; DIR=0.5 adds half of it. "
        "May be given several times.",
    ),
]
Device = Annotated[
    str,
    setting(
        "--device",
        metavar="NAME",
        autocompletion=one_of("auto", "cpu", "cuda", "mps"),
        help="auto, cpu, cuda, cuda:N or mps.",
    ),
]
Precision = Annotated[
    str,
    setting(
        "--precision",
        metavar="NAME",
        autocompletion=one_of(*PRECISIONS),
        help="auto (bf16 on GPUs that have it, else fp32), fp32, bf16, fp16; or int8, int4: "
        "quantized weights, several times faster on a CPU, slightly less exact.",
    ),
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Compile PyTorch's decoding step first, for a minute or more: for long runs.",
    ),
]
Threads = Annotated[
    int | None, setting("--threads", min=1, metavar="N", help="CPU threads. [default: all]")
]
Offline = Annotated[
    bool, setting("--offline", rich_help_panel="Model and machine", help="Never use the network.")
]
Json = Annotated[bool, typer.Option("--json", rich_help_panel="Output", help="Print JSON.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Report on stderr what ran, where and how fast.")
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Only errors on stderr: no notices, no bars.")
]
Color = Annotated[
    str,
    setting(
        "--color",
        metavar="WHEN",
        autocompletion=one_of("auto", "always", "never"),
        help="auto (on terminals that have colours, unless NO_COLOR is set), always or never.",
    ),
]
Debug = Annotated[
    bool,
    typer.Option("--debug", callback=_remember_debug, help="Show a traceback on an error."),
]
KeepNewline = Annotated[
    bool, setting("--keep-newline", help="Keep the last newline of stdin or the file.")
]
NoSpecial = Annotated[
    bool, setting("--no-special", help="Read <|endoftext|> in the text as plain text.")
]


@dataclass(frozen=True)
class Common(Group):
    """Messages"""

    quiet: Quiet = False
    color: Color = "auto"
    debug: Debug = False


@dataclass(frozen=True)
class Messages(Group):
    """Messages"""

    verbose: Verbose = False
    quiet: Quiet = False
    color: Color = "auto"
    debug: Debug = False


@dataclass(frozen=True)
class Machine(Group):
    """Model and machine"""

    device: Device = "auto"
    threads: Threads = None
    offline: Offline = False


@dataclass(frozen=True)
class Where(Group):
    """Model and machine"""

    model: ModelName = "124M"
    adapter: Adapter = None
    device: Device = "auto"
    precision: Precision = "auto"
    threads: Threads = None
    offline: Offline = False


@dataclass(frozen=True)
class WhereDecoding(Where):
    """Model and machine"""

    compile_: Compile = False


Prompt = Annotated[
    str | None,
    typer.Argument(metavar="TEXT", help="Text to read; - reads stdin. Piped text comes before it."),
]


@dataclass(frozen=True)
class PromptSource(Group):
    """Prompt"""

    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", metavar="FILE", help="Read the prompt from a file."),
    ] = None
    keep_newline: KeepNewline = False
    no_special: NoSpecial = False
    prompt_option: Annotated[
        str | None, typer.Option("--prompt", hidden=True, help="Another name of the prompt.")
    ] = None

    @property
    def special(self) -> bool:
        """Whether the text may name end-of-text."""
        return not self.no_special

    def argument(self, argument: str | None) -> str | None:
        """The prompt given in either way. Raises `UsageError` for two."""
        if self.prompt_option is None:
            return argument
        if argument is not None:
            raise UsageError("there are two prompts; leave out --prompt or the argument")
        return self.prompt_option

    def read(self, argument: str | None) -> str:
        """The text from file, stdin and argument. Raises `UsageError` if it cannot be read."""
        return read_text(self.argument(argument), self.file, self.keep_newline) or ""


@dataclass(frozen=True)
class Limits(Group):
    """Length and stopping"""

    max_tokens: Annotated[
        int, setting("--max-tokens", "-n", metavar="N", help="Tokens to generate.")
    ] = 100
    stop: Annotated[
        list[str] | None,
        typer.Option(
            "--stop", metavar="TEXT", help="End before this text. May be given several times."
        ),
    ] = None
    min_tokens: Annotated[int, number("--min-tokens", "Do not end before N tokens.")] = 0
    ignore_eos: Annotated[bool, setting("--ignore-eos", help="Continue after <|endoftext|>.")] = (
        False
    )

    def given(self) -> dict[str, Any]:
        """Settings by name."""
        return {
            "max_tokens": self.max_tokens,
            "min_tokens": self.min_tokens,
            "ignore_eos": self.ignore_eos,
            "stop": tuple(map(read_argument, self.stop or ())),
        }
