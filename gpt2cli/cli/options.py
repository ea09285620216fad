"""The options, each declared once, in groups that commands use whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2cli.cli.grouped import Group
from gpt2cli.cli.io.inputs import read_argument, read_text
from gpt2cli.cli.usage import environment_name
from gpt2cli.config.sampling import DRAFT_TOKENS, USUAL, SamplingConfig
from gpt2cli.errors import UsageError

if TYPE_CHECKING:
    from gpt2cli.api import LoadedModel
    from gpt2cli.sampling.constraint import Constraint as Grammar

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


def _complete_draft(incomplete: str) -> list[str]:
    return [*one_of("ngram")(incomplete), *complete_model(incomplete)]


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
        help="Config name or alias (124M, medium, bard, …), YAML file, directory, "
        "or hub repository (owner/name).",
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
Offline = Annotated[bool, setting("--offline", help="Never use the network.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
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
    """Machine"""

    device: Device = "auto"
    threads: Threads = None
    offline: Offline = False


@dataclass(frozen=True)
class Where(Group):
    """Model and machine"""

    model: ModelName = "124M"
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


@dataclass(frozen=True)
class Sampling(Group):
    """Sampling"""

    temperature: Annotated[
        float | None,
        setting(
            "--temperature",
            "-t",
            metavar="N",
            help="0 is greedy; 1 the model's own distribution. "
            f"[default: the model's, {USUAL.temperature}]",
        ),
    ] = None
    top_k: Annotated[
        int | None,
        setting("--top-k", "-k", metavar="N", help="Choose among the N most probable tokens."),
    ] = None
    top_p: Annotated[
        float | None,
        setting(
            "--top-p",
            "-p",
            metavar="N",
            help="Choose among the most probable tokens that together reach N, the one that "
            f"crosses N included. [default: the model's, {USUAL.top_p}]",
        ),
    ] = None
    min_p: Annotated[
        float | None,
        number("--min-p", "Leave out tokens less than N times as probable as the best."),
    ] = None
    seed: Annotated[
        int | None, number("--seed", "Random seed. [default: random, shown on stderr]")
    ] = None
    repetition_penalty: Annotated[
        float | None,
        number("--repetition-penalty", "Above 1: make tokens that already occurred less likely."),
    ] = None
    frequency_penalty: Annotated[
        float | None,
        number(
            "--frequency-penalty", "Subtract N from a token's logit each time it was generated."
        ),
    ] = None
    presence_penalty: Annotated[
        float | None,
        number("--presence-penalty", "Subtract N once from tokens that were generated."),
    ] = None
    no_repeat_ngram: Annotated[
        int | None, number("--no-repeat-ngram", "Let no sequence of N tokens occur twice.")
    ] = None
    dry_multiplier: Annotated[
        float | None,
        number(
            "--dry-multiplier",
            "Penalise tokens that would prolong a repeated sequence, the more the longer it is; "
            "0.8 is usual.",
        ),
    ] = None
    dry_base: Annotated[
        float | None, number("--dry-base", "DRY grows by this factor per token.")
    ] = None
    dry_allowed_length: Annotated[
        int | None, number("--dry-allowed-length", "Tokens that DRY lets repeat.")
    ] = None
    dry_breaker: Annotated[
        list[str] | None,
        typer.Option(
            "--dry-breaker",
            metavar="TEXT",
            help="Text that ends a sequence for DRY. May be given several times. "
            "[default: newline, colon, quote, asterisk]",
        ),
    ] = None
    typical_p: Annotated[
        float | None,
        number(
            "--typical-p",
            "Locally typical sampling: choose among the tokens whose surprisal is nearest to the "
            "entropy, up to probability N.",
        ),
    ] = None
    xtc_probability: Annotated[
        float | None,
        number(
            "--xtc-probability",
            "Chance per token that XTC drops all but the least probable of the tokens above "
            "--xtc-threshold.",
        ),
    ] = None
    xtc_threshold: Annotated[
        float | None, number("--xtc-threshold", "Probability of a top choice of XTC.")
    ] = None
    mirostat_tau: Annotated[
        float | None,
        number(
            "--mirostat-tau",
            "Mirostat 2: keep the surprisal near N bits, in place of top-k, top-p and the like; "
            "5 is usual.",
        ),
    ] = None
    mirostat_eta: Annotated[
        float | None, number("--mirostat-eta", "How fast mirostat corrects itself.")
    ] = None
    bias: Annotated[
        list[str] | None,
        typer.Option(
            "--bias",
            metavar="TOKEN=AMOUNT",
            help="Add to a token's logit: ' London=2.5', or '#1234=-inf' to ban an id. May be "
            "given several times.",
        ),
    ] = None

    def given(self, base: SamplingConfig) -> dict[str, Any]:
        """Settings by name, without biases, whose ids only a vocabulary knows.

        Raises `UsageError` for an option without the one that it changes, which `base` may hold.
        """
        self.check_company(_CHANGES, base)
        names = (*(f.name for f in fields(SamplingConfig)), "seed")
        breakers = tuple(map(read_argument, self.dry_breaker or ())) or None
        return {name: getattr(self, name) for name in names} | {"dry_breakers": breakers}

    def biases(self) -> dict[str, float]:
        """Biases by token text. Raises `UsageError` for an invalid one."""
        if not self.bias:
            return {}
        from gpt2cli.sampling import bias

        return bias.parse(list(map(read_argument, self.bias)))


def resolve_biases(biases: dict[str, float], model: LoadedModel) -> dict[int, float]:
    """Biases by token id. Raises `UsageError` for what is not exactly one token."""
    if not biases:
        return {}
    from gpt2cli.sampling import bias

    return bias.resolve(biases, model.tokenizer)


# Options that only change what another one does.
_CHANGES = {
    "dry_base": "dry_multiplier",
    "dry_allowed_length": "dry_multiplier",
    "dry_breaker": "dry_multiplier",
    "xtc_threshold": "xtc_probability",
    "mirostat_eta": "mirostat_tau",
}


@dataclass(frozen=True)
class Search(Group):
    """Beam search"""

    beams: Annotated[
        int | None,
        number(
            "--beams",
            "Search for the most probable text, keeping the N best beginnings; nothing is drawn.",
        ),
    ] = None
    length_penalty: Annotated[
        float | None, number("--length-penalty", "Above 1 prefers longer texts. [default: 1]")
    ] = None

    def given(self) -> dict[str, Any]:
        """Settings by name. Raises `UsageError` for a penalty without beams."""
        self.check_company({"length_penalty": "beams"})
        return {"beams": self.beams, "length_penalty": self.length_penalty}


@dataclass(frozen=True)
class Constraint(Group):
    """Constraints"""

    regex: Annotated[
        str | None,
        typer.Option(
            "--regex",
            metavar="PATTERN",
            help="Constrain the output to a regular expression (Rust syntax).",
        ),
    ] = None
    json_schema: Annotated[
        Path | None,
        typer.Option("--json-schema", metavar="FILE", help="… to JSON that fits a JSON schema."),
    ] = None
    choice: Annotated[
        list[str] | None,
        typer.Option("--choice", metavar="TEXT", help="… to one of these; give it once for each."),
    ] = None
    grammar: Annotated[
        Path | None, typer.Option("--grammar", metavar="FILE", help="… to a Lark grammar.")
    ] = None

    def resolve(self) -> Grammar | None:
        """The one constraint given. Raises `UsageError` for two, and if no text can match."""
        from gpt2cli.sampling import constraint

        return constraint.resolve(
            regex=None if self.regex is None else read_argument(self.regex),
            json_schema=self.json_schema,
            choice=self.choices() or None,
            grammar=self.grammar,
        )

    def choices(self) -> list[str]:
        """The texts of --choice."""
        return list(map(read_argument, self.choice or ()))


@dataclass(frozen=True)
class Draft(Group):
    """Drafts"""

    draft: Annotated[
        str | None,
        setting(
            "--draft",
            metavar="NAME",
            autocompletion=_complete_draft,
            help="Let a smaller model, or with ngram what the text repeats, propose tokens that "
            "the model checks all at once: faster, and the same result.",
        ),
    ] = None
    draft_tokens: Annotated[
        int | None, number("--draft-tokens", f"Tokens proposed at most. [default: {DRAFT_TOKENS}]")
    ] = None
