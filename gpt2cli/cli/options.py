"""Options that several commands share, so that the same thing has the same name everywhere."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpt2cli.cli.files import read_argument
from gpt2cli.config import END_OF_TEXT, SamplingConfig, known_names

if TYPE_CHECKING:
    from gpt2cli.constrain import Constraint
    from gpt2cli.generation import GenerationConfig


def _complete_model(incomplete: str) -> list[str]:
    return [name for name in known_names() if name.startswith(incomplete)]


def _complete_draft(incomplete: str) -> list[str]:
    return [*(["ngram"] if "ngram".startswith(incomplete) else []), *_complete_model(incomplete)]


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
    from gpt2cli.generation import GenerationConfig, new_seed

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
    typer.Option(
        "--model",
        "-m",
        envvar="GPT2_MODEL",
        metavar="NAME",
        autocompletion=_complete_model,
        help="Config name or alias (124M, medium, bard, …), YAML file, directory, "
        "or hub repository (owner/name).",
    ),
]
MaxTokens = Annotated[
    int,
    typer.Option("--max-tokens", "-n", envvar="GPT2_MAX_TOKENS", help="Tokens to generate."),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        "-t",
        envvar="GPT2_TEMPERATURE",
        help="0 is greedy; 1 the model's own distribution. [default: the model's, 0.8]",
    ),
]
TopK = Annotated[
    int | None, typer.Option("--top-k", "-k", help="Choose among the K most probable tokens.")
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        "-p",
        envvar="GPT2_TOP_P",
        help="Choose among the most probable tokens that together reach P, the one that "
        "crosses P included. [default: the model's, 0.95]",
    ),
]
MinP = Annotated[
    float | None,
    typer.Option(help="Leave out tokens less than P times as probable as the best."),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(help="Above 1: make tokens that already occurred less likely."),
]
FrequencyPenalty = Annotated[
    float | None,
    typer.Option(help="Subtract this from a token's logit each time it was generated."),
]
PresencePenalty = Annotated[
    float | None, typer.Option(help="Subtract this once from tokens that were generated.")
]
NoRepeatNgram = Annotated[
    int | None,
    typer.Option(metavar="N", help="Let no sequence of N tokens come a second time."),
]
DryMultiplier = Annotated[
    float | None,
    typer.Option(
        help="Penalise tokens that would prolong a repeated sequence, the more the longer "
        "it is; 0.8 is usual.",
    ),
]
DryBase = Annotated[
    float | None, typer.Option(help="DRY grows by this factor a token. [default: 1.75]")
]
DryAllowedLength = Annotated[
    int | None, typer.Option(help="Tokens that DRY lets repeat. [default: 2]")
]
DryBreaker = Annotated[
    list[str] | None,
    typer.Option(
        help="Text that ends a sequence for DRY, as often as needed. "
        "[default: newline, colon, quote, asterisk]"
    ),
]
TypicalP = Annotated[
    float | None,
    typer.Option(
        help="Choose among the tokens nearest to the expected surprise that together reach P."
    ),
]
XtcProbability = Annotated[
    float | None,
    typer.Option(help="How often XTC removes the top choices but the least of them."),
]
XtcThreshold = Annotated[
    float | None, typer.Option(help="How probable a top choice of XTC is. [default: 0.1]")
]
MirostatTau = Annotated[
    float | None,
    typer.Option(
        help="Mirostat 2: keep the surprise near this many bits, in place of top-k, "
        "top-p and the like; 5 is usual."
    ),
]
MirostatEta = Annotated[
    float | None, typer.Option(help="How fast mirostat corrects itself. [default: 0.1]")
]
Bias = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TOKEN=AMOUNT",
        help="Add to a token's logit: ' London=2.5', or '#1234=-inf' to ban an id. May be "
        "given several times.",
    ),
]
MinTokens = Annotated[int, typer.Option(metavar="N", help="Do not end before N tokens.")]
Beams = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Search for the most probable text, keeping the N best beginnings; nothing is drawn.",
    ),
]
LengthPenalty = Annotated[
    float | None, typer.Option(help="Of beams: above 1 prefers longer texts. [default: 1]")
]
Logprobs = Annotated[
    int | None,
    typer.Option(
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
    typer.Option(
        metavar="NAME|ngram",
        autocompletion=_complete_draft,
        help="Let a smaller model, or what the text repeats, propose tokens that the model "
        "checks all at once: faster, and the same result.",
    ),
]
DraftTokens = Annotated[
    int | None,
    typer.Option(metavar="N", help="Tokens that a draft proposes at most. [default: 7]"),
]
Seed = Annotated[int | None, typer.Option(help="Repeat a run. [default: drawn, and reported]")]
Stop = Annotated[
    list[str] | None, typer.Option(help="End before this text. May be given several times.")
]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help=f"Go on after {END_OF_TEXT}.")]
File = Annotated[Path | None, typer.Option("--file", "-f", help="Read the prompt from a file.")]
TwoModels = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME[:PRECISION]",
        autocompletion=_complete_model,
        help="Give it twice: a model as everywhere, and perhaps float32, bfloat16, float16, "
        "int8 or int4.",
    ),
]
Device = Annotated[
    str,
    typer.Option(envvar="GPT2_DEVICE", metavar="NAME", help="auto, cpu, cuda, cuda:N or mps."),
]
Dtype = Annotated[
    str,
    typer.Option(
        envvar="GPT2_DTYPE",
        metavar="NAME",
        help="auto (bfloat16 on GPUs that have it, else float32), float32, bfloat16 or float16.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(envvar="GPT2_THREADS", min=1, metavar="N", help="CPU threads (default: all)."),
]
Quantize = Annotated[
    str | None,
    typer.Option(
        envvar="GPT2_QUANTIZE",
        metavar="int8|int4",
        help="Code the weights in fewer bits: several times as fast on a CPU.",
    ),
]
Offline = Annotated[
    bool,
    typer.Option("--offline", envvar="GPT2_OFFLINE", help="Use the network for nothing."),
]
KeepNewline = Annotated[
    bool, typer.Option("--keep-newline", help="Keep the last newline of stdin or the file.")
]
NoSpecial = Annotated[
    bool, typer.Option("--no-special", help=f"Read {END_OF_TEXT} in the text as plain text.")
]
Debug = Annotated[
    bool,
    typer.Option("--debug", callback=_remember_debug, help="Show a traceback when it fails."),
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Tell on stderr what ran, where and how fast.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
