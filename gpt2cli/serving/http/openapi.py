"""What a server can be asked, as OpenAPI 3.1 (spec.openapis.org/oas/v3.1.0) says it.

It agrees with what `completions.read` accepts: tests compare their fields, and ask at random.
"""

from __future__ import annotations

from typing import Any

from gpt2cli.generation.request import MOST_LOGPROBS
from gpt2cli.serving.completions import LARGEST, LONGEST_STOP, MOST_STOPS, SEEDS, URL
from gpt2cli.serving.http.service import MOST_TEXTS, Service
from gpt2cli.version import __version__

_REFUSALS = {
    "400": "A wrong request; `param` names the field.",
    "404": "Another model than the one that is served.",
    "408": "The body has not come in time.",
    "413": "A body that is too large.",
    "415": "A body that is no JSON.",
    "429": "The queue is full; `Retry-After` says when to come again.",
    "500": "The model or the program has failed.",
    "503": "The model is being opened, or has failed.",
}


def document(service: Service, *, has_key: bool) -> dict[str, Any]:
    """The description of a server; with a key every endpoint but one needs it."""
    models = {"type": "string", "enum": service.names}
    paths = {
        URL: {"post": _post("Continue prompts", _completion_request(service, models), _COMPLETION)},
        "/v1/models": {"get": _get("The model that is served", _MODELS)},
        "/v1/models/{name}": {"get": _named(models)},
        "/tokenize": {"post": _post("Text to tokens", _tokenize(models), _TOKENS)},
        "/detokenize": {"post": _post("Tokens to text", _detokenize(service, models), _TEXT)},
        "/tokenizer_info": {"get": _get("The special tokens", {"type": "object"})},
        "/health": {"get": _get("Whether requests are served", {"type": "object"})},
        "/metrics": {"get": _metrics()},
        "/openapi.json": {"get": _get("This description", {"type": "object"})},
    }
    for path, methods in paths.items():
        for operation in methods.values():
            if has_key and path != "/health":
                operation["security"] = [{"key": []}]
                operation["responses"]["401"] = _response("No key, or a wrong one.", _ERROR)
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "gpt2 serve", "version": __version__},
        "paths": paths,
    }
    if has_key:
        found["components"] = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
    return found


def _get(summary: str, schema: dict[str, Any]) -> dict[str, Any]:
    refusals = {"503": _response(_REFUSALS["503"], _ERROR)}
    return {"summary": summary, "responses": {"200": _response("Yes.", schema)} | refusals}


def _named(models: dict[str, Any]) -> dict[str, Any]:
    found = _get("The same by one of its names", _MODEL)
    found["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": models}]
    found["responses"]["404"] = _response(_REFUSALS["404"], _ERROR)
    return found


def _metrics() -> dict[str, Any]:
    found = _get("What was counted, for Prometheus", _TEXT_)
    found["responses"]["200"]["content"] = {"text/plain": {"schema": _TEXT_}}
    return found


def _post(summary: str, body: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    answer = _response("The answer.", schema)
    if schema is _COMPLETION:
        about = "Server-sent events: the data of each is a part of such an answer, or [DONE]."
        answer["content"]["text/event-stream"] = {"schema": {"description": about}}
    refusals = {status: _response(about, _ERROR) for status, about in _REFUSALS.items()}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {"200": answer} | refusals,
    }


def _response(about: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": about, "content": {"application/json": {"schema": schema}}}


def _object(properties: dict[str, Any], *required: str, extra: bool = True) -> dict[str, Any]:
    found = {"type": "object", "properties": properties, "required": list(required)}
    return found if extra else found | {"additionalProperties": False}


def _array(items: dict[str, Any], **limits: int) -> dict[str, Any]:
    return {"type": "array", "items": items} | limits


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    if isinstance(kind := schema.get("type"), str) and "enum" not in schema:
        return schema | {"type": [kind, "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def _whole(least: int | None = 0, most: int | None = None) -> dict[str, Any]:
    limits = {"minimum": least, "maximum": most}
    return {"type": "integer"} | {name: v for name, v in limits.items() if v is not None}


def _number(**limits: float) -> dict[str, Any]:
    return {"type": "number"} | limits


_TEXT_ = {"type": "string"}
_SWITCH = {"type": "boolean"}
_SHARE = _number(exclusiveMinimum=0, maximum=1)
_PENALTY = _number(minimum=-2, maximum=2)


def _completion_request(service: Service, models: dict[str, Any]) -> dict[str, Any]:
    size, context = service.model.tokenizer.size, service.model.config.context_length
    token, ids = _whole(0, size - 1), _array(_whole(0, size - 1), minItems=1)
    stop = {"type": "string", "minLength": 1, "maxLength": LONGEST_STOP}
    prompts = [_array(_TEXT_, minItems=1, maxItems=MOST_TEXTS)]
    prompts += [ids, _array(ids, minItems=1, maxItems=MOST_TEXTS)]
    fields: dict[str, Any] = {
        "model": models,
        "prompt": {"anyOf": [_TEXT_, *prompts]},
        "max_tokens": _whole(0, context) | {"default": 16},
        "n": _whole(1, MOST_TEXTS) | {"default": 1},
        "best_of": _whole(1, MOST_TEXTS),
        "echo": _SWITCH | {"default": False},
        "logprobs": _whole(0, MOST_LOGPROBS),
        "seed": _whole(*SEEDS),
        "stop": {"anyOf": [stop, _array(stop, maxItems=MOST_STOPS)]},
        "stop_token_ids": _array(token),
        "stream": _SWITCH | {"default": False},
        "stream_options": _object(
            {
                "include_usage": _nullable(_SWITCH),
                "continuous_usage_stats": _nullable(_SWITCH),
            },
            extra=False,
        ),
        "suffix": {"type": "string", "maxLength": 0},
        "user": _TEXT_,
        "logit_bias": {
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]{1,9}$"},
            "additionalProperties": _number(minimum=-1e30, maximum=1e30),
        },
        "overflow": {"type": "string", "enum": ["error", "slide"], "default": "error"},
        "ignore_eos": _SWITCH | {"default": False},
        "min_tokens": _whole(0, context) | {"default": 0},
        "regex": _TEXT_,
        "json_schema": {"anyOf": [{"type": "object"}, _TEXT_]},
        "choice": _array({"type": "string", "minLength": 1}, minItems=1),
        "grammar": {"type": "string", "minLength": 1},
    }
    fields = {name: _nullable(schema) for name, schema in (fields | _SAMPLING).items()}
    return _object(fields, extra=False)


_SAMPLING: dict[str, Any] = {
    "temperature": _number(minimum=0, maximum=LARGEST) | {"default": 1},
    "top_p": _SHARE | {"default": 1},
    "top_k": _whole(-1, int(LARGEST)),
    "min_p": _number(minimum=0, maximum=1),
    "typical_p": _SHARE,
    "repetition_penalty": _number(exclusiveMinimum=0, maximum=LARGEST),
    "frequency_penalty": _PENALTY,
    "presence_penalty": _PENALTY,
    "dry_multiplier": _number(minimum=0, maximum=LARGEST),
    "dry_base": _number(minimum=1, maximum=LARGEST),
    "dry_allowed_length": _whole(1, int(LARGEST)),
    "no_repeat_ngram": _whole(1, int(LARGEST)),
    "xtc_probability": _number(minimum=0, maximum=1),
    "xtc_threshold": _number(exclusiveMinimum=0, maximum=0.5),
    "mirostat_tau": _number(exclusiveMinimum=0, maximum=LARGEST),
    "mirostat_eta": _number(exclusiveMinimum=0, maximum=1),
}
_LOGPROBS = _object(
    {
        "tokens": _array(_TEXT_),
        "token_logprobs": _array(_nullable(_number())),
        "top_logprobs": _array(_nullable({"type": "object", "additionalProperties": _number()})),
        "text_offset": _array(_whole()),
    }
)
_CHOICE = _object(
    {
        "index": _whole(),
        "text": _TEXT_,
        "finish_reason": {"enum": ["stop", "length", None]},
        "logprobs": _nullable(_LOGPROBS),
        "seed": _whole(),
    },
    *("index", "text", "finish_reason", "logprobs"),
)
_USAGE = _object(
    {name: _whole() for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
)
_COMPLETION = _object(
    {
        "id": _TEXT_,
        "object": {"const": "text_completion"},
        "created": _whole(),
        "model": _TEXT_,
        "choices": _array(_CHOICE),
        "usage": _USAGE,
        "system_fingerprint": _TEXT_,
    },
    *("id", "object", "created", "model", "choices", "usage"),
)
_MODEL = _object(
    {
        "id": _TEXT_,
        "object": {"const": "model"},
        "created": _whole(),
        "owned_by": _TEXT_,
        "aliases": _array(_TEXT_),
        "max_model_len": _whole(),
    },
    *("id", "object", "created", "owned_by"),
)
_MODELS = _object({"object": {"const": "list"}, "data": _array(_MODEL)}, "object", "data")
_TOKENS = _object(
    {"tokens": _array(_whole()), "count": _whole(), "max_model_len": _whole()}, "tokens", "count"
)
_TEXT = _object({"prompt": _TEXT_}, "prompt")
_ERROR = _object(
    {
        "error": _object(
            {
                "message": _TEXT_,
                "type": _TEXT_,
                "param": _nullable(_TEXT_),
                "code": _nullable(_TEXT_),
            },
            *("message", "type", "param", "code"),
        )
    },
    "error",
)


def _tokenize(models: dict[str, Any]) -> dict[str, Any]:
    fields = {"model": _nullable(models), "prompt": _TEXT_, "add_special_tokens": _SWITCH}
    return _object(fields, "prompt", extra=False)


def _detokenize(service: Service, models: dict[str, Any]) -> dict[str, Any]:
    ids = _array(_whole(0, service.model.tokenizer.size - 1))
    return _object({"model": _nullable(models), "tokens": ids}, "tokens", extra=False)
