"""Options of how the next token is chosen: sampling, search, constraints, drafts."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2cli.cli.grouped import Group
from gpt2cli.cli.io.inputs import read_argument
from gpt2cli.cli.options import complete_model, number, one_of, setting
from gpt2cli.config.sampling import DRAFT_TOKENS, LENGTH_PENALTY, USUAL, SamplingConfig

if TYPE_CHECKING:
    from gpt2cli.api import LoadedModel
    from gpt2cli.sampling.constraint import Constraint as Grammar


def _complete_draft(incomplete: str) -> list[str]:
    return [*one_of("ngram")(incomplete), *complete_model(incomplete)]


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
        """Settings by name, biases left out: only a vocabulary knows their ids.

        Raises `UsageError` for an option without the one that it changes, which `base` may hold.
        """
        self.check_company(_CHANGES, base)
        names = (*(f.name for f in fields(SamplingConfig)), "seed")
        breakers = tuple(map(read_argument, self.dry_breaker or ())) or None
        return {name: getattr(self, name) for name in names} | {"dry_breakers": breakers}

    def biases(self) -> dict[str, float]:
        """Biases by token, as they were given. Raises `UsageError` for what is none."""
        if not self.bias:
            return {}
        from gpt2cli.sampling import bias

        return bias.parse(list(map(read_argument, self.bias)))


def resolve_biases(biases: dict[str, float], model: LoadedModel) -> dict[int, float]:
    """The same by token id. Raises `UsageError` for what is not exactly one token."""
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
        float | None,
        number("--length-penalty", f"Above 1 prefers longer texts. [default: {LENGTH_PENALTY:g}]"),
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
        """The one that is given. Raises `UsageError` for two, and for what nothing can match."""
        if {self.regex, self.json_schema, self.grammar} == {None} and not self.choice:
            return None
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
