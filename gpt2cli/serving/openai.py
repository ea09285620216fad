"""OpenAI's batch lines for `/v1/completions`: requests in, and results as its libraries read them.

The formats are those of platform.openai.com/docs/api-reference/batch and …/completions. Names
and times are not drawn anew: the same run gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpt2cli.errors import UsageError, did_you_mean, shown

if TYPE_CHECKING:
    from gpt2cli.generation.record import Completion, Sample

URL = "/v1/completions"
# What the service does where a request says nothing.
DEFAULTS = {"max_tokens": 16, "temperature": 1.0, "top_p": 1.0}
_NAMES = {"n": "samples", "logit_bias": "bias"}
_SAME = (
    *("max_tokens", "temperature", "top_p", "stop", "seed", "logprobs"),
    *("presence_penalty", "frequency_penalty"),
    # Beyond the service's own, as other servers have them.
    *("top_k", "min_p", "typical_p", "repetition_penalty", "min_tokens", "ignore_eos"),
)
_IGNORED = ("model", "user", "stream_options")
_KNOWN = (*_NAMES, *_SAME, *_IGNORED, "prompt", "echo", "best_of", "suffix", "stream")


@dataclass(frozen=True, slots=True)
class Request:
    """What a line asks for, in our settings."""

    prompt: Any
    settings: Mapping[str, Any]
    echo: bool


def is_request(line: Mapping[str, Any] | None) -> bool:
    """Whether a line is one of a batch."""
    return line is not None and "custom_id" in line and "body" in line


def read(line: Mapping[str, Any], given: Collection[str]) -> Request:
    """The request of a line; the settings in `given` have no default of the service.

    Raises `UsageError` for what is no completion, or none that this program can make.
    """
    method, url, body = (line.get(name) for name in ("method", "url", "body"))
    if not isinstance(line.get("custom_id"), str):
        raise UsageError("custom_id must be text")
    if method != "POST":
        raise UsageError(f"method must be POST, not {shown(method)}")
    if url != URL:
        chat = ", for a GPT-2 continues texts and knows no chat" if "chat" in str(url) else ""
        raise UsageError(f"url must be {URL}, not {shown(url)}{chat}")
    if not isinstance(body, dict):
        raise UsageError(f"body must be an object, not {shown(body)}")
    _check_body(body)
    ours = _NAMES | {name: name for name in _SAME}
    settings = {ours[n]: value for n, value in body.items() if n in ours and value is not None}
    if "bias" in settings:
        settings["bias"] = _by_id(settings["bias"])
    present = {*given, *settings} | ({"top_p"} if "mirostat_tau" in given else set())
    missing = {name: value for name, value in DEFAULTS.items() if name not in present}
    return Request(_prompt(body), missing | settings, bool(body.get("echo")))


def _check_body(body: Mapping[str, Any]) -> None:
    for name in body:
        if name not in _KNOWN:
            raise UsageError(f"body has an unknown field {name!r}{did_you_mean(name, _KNOWN)}")
    if "prompt" not in body:
        raise UsageError("body has no prompt")
    if body.get("suffix"):
        raise UsageError("suffix is not possible: a GPT-2 reads only what comes before")
    if body.get("stream"):
        raise UsageError("stream is not possible in a file of results")
    if body.get("best_of") not in (None, body.get("n") or 1):
        raise UsageError(f"best_of must be n ({body.get('n') or 1}), not {shown(body['best_of'])}")
    if not isinstance(body.get("echo"), bool | None):
        raise UsageError(f"echo must be true or false, not {shown(body['echo'])}")
    if body.get("echo") and body.get("logprobs") is not None:
        raise UsageError(
            "echo and logprobs together ask for those of the prompt, which gpt2 score computes"
        )


def _prompt(body: Mapping[str, Any]) -> Any:
    """The one prompt: null is the empty one, and a list of one prompt is that."""
    prompt = body["prompt"]
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        if len(prompt) > 1:
            raise UsageError(f"prompt holds {len(prompt)} prompts; give each a line of its own")
        return prompt[0]
    return "" if prompt is None else prompt


def _by_id(biases: Any) -> Any:
    """Biases with the ids written as `gpt2cli.sampling.bias` has them."""
    if not isinstance(biases, dict):
        raise UsageError(f"logit_bias must be an object of ids and amounts, not {shown(biases)}")
    if wrong := next((name for name in biases if not name.isdecimal()), None):
        raise UsageError(f"logit_bias must name ids of tokens, not {shown(wrong)}")
    return {f"#{name}": amount for name, amount in biases.items()}


def result(index: int, custom_id: Any, body: Mapping[str, Any]) -> dict[str, Any]:
    """The line of a request that succeeded."""
    return _line(index, custom_id, 200, body, None)


def failure(index: int, custom_id: Any, message: str) -> dict[str, Any]:
    """The line of a request that failed."""
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    reason = {"code": "invalid_request", "message": message}
    return _line(index, custom_id, 400, {"error": error}, reason)


def _line(
    index: int, custom_id: Any, status: int, body: Mapping[str, Any], error: Any
) -> dict[str, Any]:
    return {
        "id": f"batch_req_{index}",
        "custom_id": custom_id,
        "response": {"status_code": status, "request_id": f"req_{index}", "body": body},
        "error": error,
    }


def completion(index: int, found: Completion, model: str, echo: str) -> dict[str, Any]:
    """The body of a result, with the seed besides. `echo` is put before each text."""
    written = sum(len(sample.token_ids) for sample in found.samples)
    return {
        "id": f"cmpl-{index}",
        "object": "text_completion",
        "created": 0,
        "model": model,
        "choices": [_choice(i, sample, echo) for i, sample in enumerate(found.samples)],
        "usage": {
            "prompt_tokens": found.prompt_tokens,
            "completion_tokens": written,
            "total_tokens": found.prompt_tokens + written,
        },
        "seed": found.seed,
    }


def _choice(index: int, sample: Sample, echo: str) -> dict[str, Any]:
    return {
        "index": index,
        "text": echo + sample.text,
        "finish_reason": "length" if sample.finish_reason == "length" else "stop",
        "logprobs": _logprobs(sample) if sample.logprobs else None,
    }


def _logprobs(sample: Sample) -> dict[str, Any]:
    offsets, end = [], 0
    for chosen in sample.logprobs:
        offsets.append(end)
        end += len(chosen.token)
    return {
        "tokens": [chosen.token for chosen in sample.logprobs],
        "token_logprobs": [chosen.logprob for chosen in sample.logprobs],
        "top_logprobs": [{t.token: t.logprob for t in c.top} for c in sample.logprobs],
        "text_offset": offsets,
    }
