"""OpenAI's `/v1/completions`: what a request asks for, in our settings, and what is wrong with it.

The format is that of platform.openai.com/docs/api-reference/completions; fields beyond it have the
names of vLLM (docs.vllm.ai, "OpenAI-Compatible Server") where that has them. A file of requests and
a server read them alike, and answer by `choices`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.errors import ContextError, GPT2CLIError, UsageError, did_you_mean, shown
from gpt2cli.serving.choices import Answer
from gpt2cli.text.window import OVERFLOW

if TYPE_CHECKING:
    from gpt2cli.text.tokenizer import Tokenizer

Prompt: TypeAlias = "str | list[int]"
URL = "/v1/completions"
MOST_TOKENS = 16  # that OpenAI generates where a request does not say
# What OpenAI does where a request says nothing.
DEFAULTS = {"max_tokens": MOST_TOKENS, "temperature": 1.0, "top_p": 1.0}
MOST_STOPS, LONGEST_STOP = 256, 1000  # each is looked for after every token
LARGEST = 1e30  # of a number, so that arithmetic in float32 has room
SEEDS = (-(2**63), 2**64 - 1)  # with those of 64 bits that have a sign
CONSTRAINTS = ("regex", "json_schema", "choice", "grammar")
NAMES = {"samples": "n", "bias": "logit_bias"}  # of settings that have others here
_OF_A_STREAM = ("include_usage", "continuous_usage_stats")
_SETTINGS = (
    *(field.name for field in fields(SamplingConfig)),
    *("max_tokens", "stop", "seed"),
    *("min_tokens", "ignore_eos", "stop_token_ids", "overflow"),
)
_PLAIN = ("prompt", "model", "user", "suffix", "stream", "stream_options")
KNOWN = (*_PLAIN, *("n", "best_of", "echo", "logprobs", "logit_bias"), *_SETTINGS, *CONSTRAINTS)


@dataclass(frozen=True, slots=True)
class Request:
    """A request: its prompts, the settings of each by our names, and how it is answered."""

    prompts: Sequence[Prompt]
    settings: Mapping[str, Any]
    answer: Answer
    is_echoing: bool = False
    is_streaming: bool = False
    usage_at_the_end: bool = False
    usage_in_each: bool = False

    def answer_to(self, prompt: Prompt, tokenizer: Tokenizer) -> Answer:
        """How one of its prompts is answered."""
        if not self.is_echoing:
            return self.answer
        text = prompt if isinstance(prompt, str) else tokenizer.decode(prompt)
        return replace(self.answer, echo=text)


def read(body: Mapping[str, Any], given: Collection[str] = ()) -> Request:
    """The request of a body; the settings in `given` have no default of OpenAI's.

    Raises `UsageError`, which names the field, for what is unknown or cannot be done.
    """
    for name in body:
        if name not in KNOWN:
            raise UsageError(f"unknown field {shown(name)}{_hint(name)}", "unknown field")
    body = {name: value for name, value in body.items() if value is not None}
    _check_plain(body)
    echoes, streams = _switch(body, "echo"), _switch(body, "stream")
    end, each = _stream_options(body, streams)
    n, best_of = _samples(body, streams)
    is_counted = not {"n", "best_of"}.isdisjoint(body) or "samples" not in given
    logprobs = _whole(body, "logprobs", None)
    is_listed = logprobs is not None or "logprobs" in given
    settings = {name: body[name] for name in _SETTINGS if name in body}
    is_asked = settings.get("max_tokens") != 0 or type(settings["max_tokens"]) is bool
    if not is_asked:
        settings["max_tokens"] = 1
    if is_counted:
        settings["samples"] = best_of
    if best_of > n or logprobs is not None:
        settings["logprobs"] = logprobs or 0
    if echoes and is_listed:  # each token of the prompt has one, so all must be read
        settings |= {"prompt_logprobs": logprobs or 0, "overflow": "error"}
    if "logit_bias" in body:
        settings["bias"] = _by_id(body["logit_bias"])
    settings |= _checked(settings) | _constraint(body)
    answer = Answer("", n if is_counted else None, is_listed, is_asked)
    return Request(
        _prompts(body), _with_defaults(settings, given), answer, echoes, streams, end, each
    )


def _with_defaults(settings: dict[str, Any], given: Collection[str]) -> dict[str, Any]:
    """Settings, and OpenAI's for what neither they nor those in `given` say."""
    present = {*given, *settings}
    present |= {"top_p"} if "mirostat_tau" in present else set()
    missing = {name: value for name, value in DEFAULTS.items() if name not in present}
    return {name: v for name, v in (missing | settings).items() if v is not None}


def _hint(name: str) -> str:
    if name == "messages":
        return f": a GPT-2 knows no chat; send a prompt to {URL}"
    return did_you_mean(name, KNOWN)


def _check_plain(body: Mapping[str, Any]) -> None:
    for name in ("model", "user", "suffix"):
        if not isinstance(body.get(name, ""), str):
            raise UsageError(f"{name} must be text, not {shown(body[name])}", name)
    if body.get("suffix"):
        raise UsageError(
            "suffix is not possible: a GPT-2 reads only what comes before, and cannot insert",
            "suffix",
        )


def _samples(body: Mapping[str, Any], streams: bool) -> tuple[int, int]:
    """How many texts are shown, and of how many."""
    n = _whole(body, "n", 1, least=1)
    best_of = _whole(body, "best_of", n, least=1)
    if best_of < n:
        raise UsageError(f"best_of must be at least n ({n}), not {best_of}", "best_of")
    if best_of > n and streams:
        raise UsageError(
            "best_of and stream cannot go together: which is best is known last", "best_of"
        )
    return n, best_of


def _whole(body: Mapping[str, Any], name: str, default: Any, *, least: int = 0) -> Any:
    value = body.get(name, default)
    _check_size(name, value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if name in body and (type(value) is not int or value < least):
        raise UsageError(f"{name} must be a whole number from {least}, not {shown(value)}", name)
    return value


def _check_size(name: str, value: Any) -> None:
    if type(value) in (int, float) and abs(value) > LARGEST:
        raise UsageError(f"{name} must be up to {LARGEST:g}, not {shown(value)}", name)


def _switch(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise UsageError(f"{name} must be true or false, not {shown(value)}", name)
    return value


def _stream_options(body: Mapping[str, Any], streams: bool) -> tuple[bool, bool]:
    options = body.get("stream_options", {})
    if not isinstance(options, dict):
        raise UsageError(
            f"stream_options must be an object, not {shown(options)}", "stream_options"
        )
    if options and not streams:
        raise UsageError("stream_options need stream to be true", "stream_options")
    for name in options:
        if name not in _OF_A_STREAM:
            hint = did_you_mean(name, _OF_A_STREAM)
            raise UsageError(f"stream_options have no {shown(name)}{hint}", "stream_options")
    options = {name: value for name, value in options.items() if value is not None}
    end, each = (_switch(options, name) for name in _OF_A_STREAM)
    return end, each


def _checked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that need a word of their own, in the types of the library."""
    changed: dict[str, Any] = {}
    for name, value in settings.items():
        _check_size(name, value)
        if isinstance(value, float) and value.is_integer():
            changed[name] = int(value)  # JSON knows but one kind of number
        elif isinstance(value, str) and name not in ("stop", "overflow"):
            raise UsageError(f"{name} must be a number, not {shown(value)}", name)
    if settings.get("top_k") in (0, -1) and type(settings["top_k"]) is not bool:
        changed["top_k"] = None  # as vLLM says that there is no limit
    if type(seed := changed.get("seed", settings.get("seed"))) is int:
        if not SEEDS[0] <= seed <= SEEDS[1]:
            raise UsageError(f"seed must be a number of 64 bits, not {shown(seed)}", "seed")
        changed["seed"] = seed % 2**64  # OpenAI's have a sign
    if settings.get("overflow", OVERFLOW[0]) not in OVERFLOW:
        raise UsageError(
            f"overflow must be slide or error, not {shown(settings['overflow'])}", "overflow"
        )
    _check_stops(settings.get("stop"))
    return changed


def _check_stops(given: Any) -> None:
    """Raise `UsageError` for more, or longer ones, than can be looked for."""
    stops = given if isinstance(given, list) else [given]
    if len(stops) > MOST_STOPS:
        raise UsageError(f"stop may have up to {MOST_STOPS} texts, not {len(stops):,}", "stop")
    if any(isinstance(stop, str) and len(stop) > LONGEST_STOP for stop in stops):
        raise UsageError(f"a stop may have up to {LONGEST_STOP:,} characters", "stop")


def _constraint(body: Mapping[str, Any]) -> dict[str, Any]:
    """The text's constraint, if there is one."""
    given = {name: body[name] for name in CONSTRAINTS if name in body}
    if not given:
        return {}
    from gpt2cli.files import to_json
    from gpt2cli.sampling import constraint

    if isinstance(given.get("json_schema"), dict):
        given["json_schema"] = to_json(given["json_schema"]).decode()
    choices = given.get("choice", ["text"])
    if not isinstance(choices, list) or not choices or not all(type(c) is str for c in choices):
        raise UsageError(f"choice must be a list of texts, not {shown(choices)}", "choice")
    for name, value in given.items():
        if name != "choice" and not isinstance(value, str):
            raise UsageError(f"{name} must be text, not {shown(value)}", name)
    return {"constraint": constraint.resolve(**given)}


def _prompts(body: Mapping[str, Any]) -> Sequence[Prompt]:
    """The prompts; without one there is the empty one, the beginning of a document."""
    given = body.get("prompt", "")
    several = given if isinstance(given, list) and given and _is_prompt(given[0]) else [given]
    for prompt in several:
        if not _is_prompt(prompt):
            raise UsageError(
                f"prompt must be text, token ids, or a list of such prompts, not {shown(given)}",
                "prompt",
            )
    return several


def _is_prompt(value: Any) -> bool:
    if isinstance(value, str):
        return True
    return isinstance(value, list) and bool(value) and all(type(i) is int for i in value)


def _by_id(biases: Any) -> dict[int, float]:
    """Biases by token id; JSON's names are texts."""
    if not isinstance(biases, dict):
        raise UsageError(
            f"logit_bias must be an object of ids and amounts, not {shown(biases)}", "logit_bias"
        )
    for name, amount in biases.items():
        if not (name.isascii() and name.isdecimal() and len(name) < 10):
            raise UsageError(f"logit_bias must name ids of tokens, not {shown(name)}", "logit_bias")
        if type(amount) not in (int, float) or not abs(amount) <= LARGEST:
            raise UsageError(f"logit_bias must have numbers, not {shown(amount)}", "logit_bias")
    return {int(name): float(amount) for name, amount in biases.items()}


def error(
    message: str, kind: str, *, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """The object that says what is wrong."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def what_is_wrong(
    found: GPT2CLIError, kind: str = "invalid_request_error", code: str | None = None
) -> dict[str, Any]:
    """The object for a failure, in the names of a request's fields."""
    names = [NAMES.get(name, name) for name in found.settings]
    param = next((name for name in names if name in KNOWN), None)
    code = "context_length_exceeded" if isinstance(found, ContextError) else code
    return error(found.renamed(NAMES), kind, param=param, code=code)
