"""Options that several commands share, so that the same thing has the same name everywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2cli.cli.io.inputs import read_argument
from gpt2cli.cli.usage import environment_name
from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.config.spec import known_names, shipped_specs
from gpt2cli.text.vocabulary import END_OF_TEXT

if TYPE_CHECKING:
    from gpt2cli.generation.request import GenerationConfig
    from gpt2cli.sampling.constraint import Constraint


def one_of(*values: str) -> Callable[[str], list[str]]:
    """Completion for an option that takes one of these."""
    return lambda incomplete: [value for value in values if value.startswith(incomplete)]


def complete_config(incomplete: str) -> list[str]:
    """Names and aliases of the shipped configs, with or without weights."""
    return one_of(*known_names())(incomplete)


def complete_model(incomplete: str) -> list[str]:
    """What can be run: shipped configs that have weights, and what is cached beside them."""
    from gpt2cli.weights import cache

    specs = [spec for spec in shipped_specs() if spec.bundled or spec.repo_id]
    names = [name for spec in specs for name in (spec.name, *spec.aliases)]
    shipped = {spec.repo_id for spec in specs}
    cached = [m.repo_id for m in cache.cached_models() if m.repo_id not in shipped]
    return one_of(*names, *cached)(incomplete)


def complete_cached(incomplete: str) -> list[str]:
    """What was fetched from the hub."""
    from gpt2cli.weights import cache

    return one_of(*(model.repo_id for model in cache.cached_models()))(incomplete)


def _complete_draft(incomplete: str) -> list[str]:
    return [*one_of("ngram")(incomplete), *complete_model(incomplete)]


def setting(*names: str, **details: Any) -> Any:
    """An option that finds its default in the environment: GPT2_TOP_K for --top-k."""
    return typer.Option(*names, envvar=environment_name(names[0]), show_envvar=False, **details)


def _remember_debug(ctx: typer.Context, wanted: bool) -> bool:
    if wanted and isinstance(ctx.obj, dict):
        ctx.obj["debug"] = True
    return wanted


def configure(
    context: typer.Context, base: SamplingConfig, constraint: Constraint | None = None
) -> GenerationConfig:
    """Settings by the names of the options: `base`, with what was given in its place.

    Biases are left to the caller: only a vocabulary knows their ids.
    """
    from gpt2cli.generation.request import GenerationConfig, new_seed

    given = {name: value for name, value in context.params.items() if value is not None}
    sampling = {f.name: given[f.name] for f in fields(SamplingConfig) if f.name in given}
    settings = {f.name: given[f.name] for f in fields(GenerationConfig) if f.name in given}
    settings |= {
        "sampling": base.updated(**sampling),
        "seed": given.get("seed", new_seed()),
        "stop": tuple(read_argument(text) for text in given.get("stop", ())),
        "bias": {},
        "constraint": constraint,
    }
    if breakers := given.get("dry_breaker"):
        settings["dry_breakers"] = tuple(read_argument(text) for text in breakers)
    return GenerationConfig(**settings)


Model = Annotated[
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
AnyModel = Annotated[
    str,
    setting(
        "--model",
        "-m",
        metavar="NAME",
        autocompletion=complete_config,
        help="Config name or alias (124M, medium, gpt3, …), YAML file, directory, "
        "or hub repository (owner/name) that was fetched.",
    ),
]
MaxTokens = Annotated[int, setting("--max-tokens", "-n", metavar="N", help="Tokens to generate.")]
Temperature = Annotated[
    float | None,
    setting(
        "--temperature",
        "-t",
        metavar="N",
        help="0 is greedy; 1 the model's own distribution. [default: the model's, 0.8]",
    ),
]
TopK = Annotated[
    int | None,
    setting("--top-k", "-k", metavar="N", help="Choose among the N most probable tokens."),
]
TopP = Annotated[
    float | None,
    setting(
        "--top-p",
        "-p",
        metavar="N",
        help="Choose among the most probable tokens that together reach N, the one that "
        "crosses N included. [default: the model's, 0.95]",
    ),
]
MinP = Annotated[
    float | None,
    setting(
        "--min-p", metavar="N", help="Leave out tokens less than N times as probable as the best."
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    setting(
        "--repetition-penalty",
        metavar="N",
        help="Above 1: make tokens that already occurred less likely.",
    ),
]
FrequencyPenalty = Annotated[
    float | None,
    setting(
        "--frequency-penalty",
        metavar="N",
        help="Subtract this from a token's logit each time it was generated.",
    ),
]
PresencePenalty = Annotated[
    float | None,
    setting(
        "--presence-penalty",
        metavar="N",
        help="Subtract this once from tokens that were generated.",
    ),
]
NoRepeatNgram = Annotated[
    int | None,
    setting(
        "--no-repeat-ngram", metavar="N", help="Let no sequence of N tokens come a second time."
    ),
]
DryMultiplier = Annotated[
    float | None,
    setting(
        "--dry-multiplier",
        metavar="N",
        help="Penalise tokens that would prolong a repeated sequence, the more the longer "
        "it is; 0.8 is usual.",
    ),
]
DryBase = Annotated[
    float | None,
    setting("--dry-base", metavar="N", help="DRY grows by this factor per token. [default: 1.75]"),
]
DryAllowedLength = Annotated[
    int | None,
    setting("--dry-allowed-length", metavar="N", help="Tokens that DRY lets repeat. [default: 2]"),
]
DryBreaker = Annotated[
    list[str] | None,
    typer.Option(
        "--dry-breaker",
        metavar="TEXT",
        help="Text that ends a sequence for DRY. May be given several times. "
        "[default: newline, colon, quote, asterisk]",
    ),
]
TypicalP = Annotated[
    float | None,
    setting(
        "--typical-p",
        metavar="N",
        help="Choose among the tokens nearest to the expected surprise that together reach N.",
    ),
]
XtcProbability = Annotated[
    float | None,
    setting(
        "--xtc-probability",
        metavar="N",
        help="How often XTC removes the top choices but the least of them.",
    ),
]
XtcThreshold = Annotated[
    float | None,
    setting(
        "--xtc-threshold", metavar="N", help="How probable a top choice of XTC is. [default: 0.1]"
    ),
]
MirostatTau = Annotated[
    float | None,
    setting(
        "--mirostat-tau",
        metavar="N",
        help="Mirostat 2: keep the surprise near this many bits, in place of top-k, "
        "top-p and the like; 5 is usual.",
    ),
]
MirostatEta = Annotated[
    float | None,
    setting(
        "--mirostat-eta", metavar="N", help="How fast mirostat corrects itself. [default: 0.1]"
    ),
]
Bias = Annotated[
    list[str] | None,
    typer.Option(
        "--bias",
        metavar="TOKEN=AMOUNT",
        help="Add to a token's logit: ' London=2.5', or '#1234=-inf' to ban an id. May be "
        "given several times.",
    ),
]
MinTokens = Annotated[int, setting("--min-tokens", metavar="N", help="Do not end before N tokens.")]
Beams = Annotated[
    int | None,
    setting(
        "--beams",
        metavar="N",
        help="Search for the most probable text, keeping the N best beginnings; nothing is drawn.",
    ),
]
LengthPenalty = Annotated[
    float | None,
    setting(
        "--length-penalty",
        metavar="N",
        help="Of beams: above 1 prefers longer texts. [default: 1]",
    ),
]
Logprobs = Annotated[
    int | None,
    typer.Option(
        "--logprobs",
        metavar="N",
        help="With --json: log-probabilities of each token and of the N best in its place, by "
        "the model, before sampling changed any.",
    ),
]
Regex = Annotated[
    str | None,
    typer.Option(
        "--regex", metavar="PATTERN", help="Write only what matches all of a pattern, as Rust's."
    ),
]
JsonSchema = Annotated[
    Path | None,
    typer.Option("--json-schema", metavar="FILE", help="Write only JSON that fits a JSON schema."),
]
Choice = Annotated[
    list[str] | None,
    typer.Option("--choice", metavar="TEXT", help="Write one of these; give it once for each."),
]
Grammar = Annotated[
    Path | None,
    typer.Option("--grammar", metavar="FILE", help="Write only what a grammar allows, as Lark's."),
]
Draft = Annotated[
    str | None,
    setting(
        "--draft",
        metavar="NAME",
        autocompletion=_complete_draft,
        help="Let a smaller model, or with ngram what the text repeats, propose tokens that the "
        "model checks all at once: faster, and the same result.",
    ),
]
DraftTokens = Annotated[
    int | None,
    setting(
        "--draft-tokens", metavar="N", help="Tokens that a draft proposes at most. [default: 7]"
    ),
]
Seed = Annotated[
    int | None,
    setting("--seed", metavar="N", help="Repeat a run. [default: drawn, and reported]"),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        "--stop", metavar="TEXT", help="End before this text. May be given several times."
    ),
]
IgnoreEos = Annotated[bool, setting("--ignore-eos", help=f"Go on after {END_OF_TEXT}.")]
File = Annotated[
    Path | None,
    typer.Option("--file", "-f", metavar="FILE", help="Read the prompt from a file."),
]
TwoModels = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME[:PRECISION]",
        autocompletion=complete_model,
        help="Give it twice: a model as everywhere, and perhaps float32, bfloat16, float16, "
        "int8 or int4.",
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
Dtype = Annotated[
    str,
    setting(
        "--dtype",
        metavar="NAME",
        autocompletion=one_of("auto", "float32", "bfloat16", "float16"),
        help="auto (bfloat16 on GPUs that have it, else float32), float32, bfloat16 or float16.",
    ),
]
Threads = Annotated[
    int | None,
    setting("--threads", min=1, metavar="N", help="CPU threads. [default: all]"),
]
Quantize = Annotated[
    str | None,
    setting(
        "--quantize",
        metavar="NAME",
        autocompletion=one_of("int8", "int4"),
        help="int8 or int4: weights in fewer bits, several times as fast on a CPU.",
    ),
]
Offline = Annotated[bool, setting("--offline", help="Use the network for nothing.")]
KeepNewline = Annotated[
    bool, setting("--keep-newline", help="Keep the last newline of stdin or the file.")
]
NoSpecial = Annotated[
    bool, setting("--no-special", help=f"Read {END_OF_TEXT} in the text as plain text.")
]
Debug = Annotated[
    bool,
    typer.Option("--debug", callback=_remember_debug, help="Show a traceback when it fails."),
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Tell on stderr what ran, where and how fast.")
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Tell on stderr of errors alone: no notices, no bars.")
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
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
