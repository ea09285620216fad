"""What a server can be asked, as OpenAPI 3.1 (spec.openapis.org/oas/v3.1.0) says it.

It agrees with what `completions.read` accepts: tests compare their fields, and ask at random.
"""

from __future__ import annotations

from typing import Any

from gpt2cli.generation.request import MOST_LOGPROBS
from gpt2cli.serving.completions import LARGEST, LONGEST_STOP, MOST_STOPS, SEEDS, URL
from gpt2cli.serving.http import openapi_page
from gpt2cli.serving.http.schemas import (
    ERROR,
    REFUSALS,
    SWITCH,
    TEXT,
    array,
    get,
    nullable,
    number,
    post,
    record,
    response,
    whole,
)
from gpt2cli.serving.http.service import MOST_TEXTS, Service
from gpt2cli.version import __version__

_CHUNKS = "the data of each is a part of such an answer, or [DONE]."


def document(service: Service, *, has_key: bool) -> dict[str, Any]:
    """The description of a server; with a key every endpoint but one needs it."""
    models = {"type": "string", "enum": service.names}
    fields = _completion_fields(service, models)
    paths = {
        URL: {"post": post("Continue prompts", record(fields, extra=False), _COMPLETION, _CHUNKS)},
        "/v1/models": {"get": get("The model that is served", _MODELS)},
        "/v1/models/{name}": {"get": _named(models)},
        "/tokenize": {"post": post("Text to tokens", _tokenize(models), _TOKENS)},
        "/detokenize": {"post": post("Tokens to text", _detokenize(service, models), _TEXT)},
        "/tokenizer_info": {"get": get("The special tokens", {"type": "object"})},
        "/health": {"get": get("Whether requests are served", {"type": "object"})},
        "/metrics": {"get": _metrics()},
        "/openapi.json": {"get": get("This description", {"type": "object"})},
        **openapi_page.paths(service, fields),
    }
    for path, methods in paths.items():
        for operation in methods.values():
            if has_key and path != "/health":
                operation["security"] = [{"key": []}]
                operation["responses"]["401"] = response("No key, or a wrong one.", ERROR)
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "gpt2 serve", "version": __version__},
        "paths": paths,
    }
    if has_key:
        found["components"] = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
    return found


def _named(models: dict[str, Any]) -> dict[str, Any]:
    found = get("The same by one of its names", _MODEL)
    found["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": models}]
    found["responses"]["404"] = response(REFUSALS["404"], ERROR)
    return found


def _metrics() -> dict[str, Any]:
    found = get("What was counted, for Prometheus", TEXT)
    found["responses"]["200"]["content"] = {"text/plain": {"schema": TEXT}}
    return found


_SHARE = number(exclusiveMinimum=0, maximum=1)
_PENALTY = number(minimum=-2, maximum=2)


def _completion_fields(service: Service, models: dict[str, Any]) -> dict[str, Any]:
    size, context = service.model.tokenizer.size, service.model.config.context_length
    token, ids = whole(0, size - 1), array(whole(0, size - 1), minItems=1)
    stop = {"type": "string", "minLength": 1, "maxLength": LONGEST_STOP}
    prompts = [array(TEXT, minItems=1, maxItems=MOST_TEXTS)]
    prompts += [ids, array(ids, minItems=1, maxItems=MOST_TEXTS)]
    fields: dict[str, Any] = {
        "model": models,
        "prompt": {"anyOf": [TEXT, *prompts]},
        "max_tokens": whole(0, context) | {"default": 16},
        "n": whole(1, MOST_TEXTS) | {"default": 1},
        "best_of": whole(1, MOST_TEXTS),
        "echo": SWITCH | {"default": False},
        "logprobs": whole(0, MOST_LOGPROBS),
        "seed": whole(*SEEDS),
        "stop": {"anyOf": [stop, array(stop, maxItems=MOST_STOPS)]},
        "stop_token_ids": array(token),
        "stream": SWITCH | {"default": False},
        "stream_options": record(
            {
                "include_usage": nullable(SWITCH),
                "continuous_usage_stats": nullable(SWITCH),
            },
            extra=False,
        ),
        "suffix": {"type": "string", "maxLength": 0},
        "user": TEXT,
        "logit_bias": {
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]{1,9}$"},
            "additionalProperties": number(minimum=-1e30, maximum=1e30),
        },
        "overflow": {"type": "string", "enum": ["error", "slide"], "default": "error"},
        "ignore_eos": SWITCH | {"default": False},
        "min_tokens": whole(0, context) | {"default": 0},
        "regex": TEXT,
        "json_schema": {"anyOf": [{"type": "object"}, TEXT]},
        "choice": array({"type": "string", "minLength": 1}, minItems=1),
        "grammar": {"type": "string", "minLength": 1},
    }
    return {name: nullable(schema) for name, schema in (fields | _SAMPLING).items()}


_SAMPLING: dict[str, Any] = {
    "temperature": number(minimum=0, maximum=LARGEST) | {"default": 1},
    "top_p": _SHARE | {"default": 1},
    "top_k": whole(-1, int(LARGEST)),
    "min_p": number(minimum=0, maximum=1),
    "typical_p": _SHARE,
    "repetition_penalty": number(exclusiveMinimum=0, maximum=LARGEST),
    "frequency_penalty": _PENALTY,
    "presence_penalty": _PENALTY,
    "dry_multiplier": number(minimum=0, maximum=LARGEST),
    "dry_base": number(minimum=1, maximum=LARGEST),
    "dry_allowed_length": whole(1, int(LARGEST)),
    "no_repeat_ngram": whole(1, int(LARGEST)),
    "xtc_probability": number(minimum=0, maximum=1),
    "xtc_threshold": number(exclusiveMinimum=0, maximum=0.5),
    "mirostat_tau": number(exclusiveMinimum=0, maximum=LARGEST),
    "mirostat_eta": number(exclusiveMinimum=0, maximum=1),
}
_LOGPROBS = record(
    {
        "tokens": array(TEXT),
        "token_logprobs": array(nullable(number())),
        "top_logprobs": array(nullable({"type": "object", "additionalProperties": number()})),
        "text_offset": array(whole()),
    }
)
_CHOICE = record(
    {
        "index": whole(),
        "text": TEXT,
        "finish_reason": {"enum": ["stop", "length", None]},
        "logprobs": nullable(_LOGPROBS),
        "seed": whole(),
    },
    *("index", "text", "finish_reason", "logprobs"),
)
_USAGE = record({name: whole() for name in ("prompt_tokens", "completion_tokens", "total_tokens")})
_COMPLETION = record(
    {
        "id": TEXT,
        "object": {"const": "text_completion"},
        "created": whole(),
        "model": TEXT,
        "choices": array(_CHOICE),
        "usage": _USAGE,
        "system_fingerprint": TEXT,
    },
    *("id", "object", "created", "model", "choices", "usage"),
)
_MODEL = record(
    {
        "id": TEXT,
        "object": {"const": "model"},
        "created": whole(),
        "owned_by": TEXT,
        "aliases": array(TEXT),
        "max_model_len": whole(),
    },
    *("id", "object", "created", "owned_by"),
)
_MODELS = record({"object": {"const": "list"}, "data": array(_MODEL)}, "object", "data")
_TOKENS = record(
    {"tokens": array(whole()), "count": whole(), "max_model_len": whole()}, "tokens", "count"
)
_TEXT = record({"prompt": TEXT}, "prompt")


def _tokenize(models: dict[str, Any]) -> dict[str, Any]:
    fields = {"model": nullable(models), "prompt": TEXT, "add_special_tokens": SWITCH}
    return record(fields, "prompt", extra=False)


def _detokenize(service: Service, models: dict[str, Any]) -> dict[str, Any]:
    ids = array(whole(0, service.model.tokenizer.size - 1))
    return record({"model": nullable(models), "tokens": ids}, "tokens", extra=False)
