"""What the page at / asks of the server, in OpenAPI: `openapi` puts it beside the rest."""

from __future__ import annotations

from typing import Any

from gpt2cli.config.interventions import ABLATE_WITH, STRONGEST
from gpt2cli.generation.request import MOST_LOGPROBS
from gpt2cli.serving.asked import MOST_STEERINGS
from gpt2cli.serving.http.endpoint import PAGE
from gpt2cli.serving.http.page_answers import MOST_CANDIDATES
from gpt2cli.serving.http.schemas import TEXT, array, get, nullable, number, post, record, whole
from gpt2cli.serving.http.service import MOST_TEXTS, Service
from gpt2cli.serving.http.writing import SETTINGS
from gpt2cli.serving.insight import MAPS, MOST_LISTED, MOST_NEURONS, MOST_TOP

Schema = dict[str, Any]

_NUMBERS = array(number())
_PACKED = {
    "shape": array(whole()),
    "data": TEXT | {"description": "Little-endian fp32, in base64."},
}
_NAMED = {
    "id": whole(),
    "text": TEXT,
    "bytes": TEXT | {"description": "In base64, where the text does not say them."},
}
_NEWS = (
    "the data of each is {news: [{sample, token, finish_reason}]} with tokens as `score` has them, "
    "then {done, seed, facts}, then [DONE]; or {error}."
)
_PATCHES = "the data of each is {done, of}, the last {result}, then [DONE]; or {error}."


def paths(service: Service, fields: Schema) -> dict[str, Any]:
    """All operations of the page; `fields` are those of a completion."""
    return _writing(service, fields) | _inside(service)


def _writing(service: Service, fields: Schema) -> dict[str, Any]:
    prompt, plan = _prompt(service), nullable(_plan(service))
    settings = {name: fields[name] for name in SETTINGS}
    score = {"prompt": prompt, "top": nullable(whole(0, MOST_LOGPROBS))}
    following = {"prompt": prompt, "top": nullable(whole(1, MOST_CANDIDATES))}
    stages = settings | following | {"prompt_length": nullable(whole())}
    # At least one token, unlike a completion that only measures.
    settings = settings | score | {"plan": plan, "n": nullable(whole(1, MOST_TEXTS))}
    return {
        f"{PAGE}model": {"get": get("What the page needs to know of the model", _MODEL)},
        f"{PAGE}score": {"post": post("How probable each token is", _body(score), _SCORE)},
        f"{PAGE}next": {"post": post("The best next tokens", _body(following), _NEXT)},
        f"{PAGE}stages": {
            "post": post("What each rule of sampling does next", _body(stages), _STAGES)
        },
        f"{PAGE}continue": {"post": post("Continue a text", _body(settings), None, _NEWS)},
    }


def _inside(service: Service) -> dict[str, Any]:
    config = service.model.config
    read = {"prompt": _prompt(service), "plan": nullable(_plan(service))}
    token, top = nullable(_token(service)), nullable(whole(1, MOST_TOP))
    position = nullable(whole())
    inspect = read | {"position": position, "token": token, "versus": token, "top": top}
    inspect |= {"neurons": nullable(whole(0, MOST_NEURONS))}
    lens = read | {"top": nullable(whole(1, MOST_LISTED)), "first": position}
    head = read | {"layer": whole(0, config.n_layers - 1), "head": whole(0, config.n_heads - 1)}
    head |= {"position": position}
    effect = read | {"token": token, "top": top}
    patch: Schema = {"clean": _prompt(service), "corrupted": _prompt(service)}
    patch |= {"answer": token, "versus": token}
    patch |= {"maps": nullable(array({"type": "string", "enum": list(MAPS)}, minItems=1))}
    about = "What one head does for a token"
    return {
        f"{PAGE}inspect": {"post": post("What happens to a token", _body(inspect), _INSPECT)},
        f"{PAGE}lens": {"post": post("The logit lens by layer and token", _body(lens), _LENS)},
        f"{PAGE}attention": {"post": post("All heads' attention", _body(read), _ATTENTION)},
        f"{PAGE}head": {"post": post(about, _body(head, "layer", "head"), _HEAD)},
        f"{PAGE}effect": {"post": post("What a plan changes", _body(effect), _EFFECT)},
        f"{PAGE}patch": {
            "post": post(
                "What restores an answer", record(patch, *_PROMPTS, extra=False), None, _PATCHES
            )
        },
        f"{PAGE}heads": {"get": get("Which heads are of which kind", _HEADS)},
    }


_PROMPTS = "clean", "corrupted"


def _body(fields: Schema, *others: str) -> Schema:
    return record(fields, "prompt", *others, extra=False)


def _prompt(service: Service) -> Schema:
    return {"anyOf": [TEXT, array(whole(0, service.model.tokenizer.size - 1))]}


def _token(service: Service) -> Schema:
    """A token by its id, or the text of one."""
    return {"anyOf": [whole(0, service.model.tokenizer.size - 1), TEXT]}


def _plan(service: Service) -> Schema:
    config = service.model.config
    layers = range(config.n_layers)
    parts = [f"{layer}.{head}" for layer in layers for head in range(config.n_heads)]
    parts += [f"{kind}.{layer}" for kind in ("attention", "mlp", "layer") for layer in layers]
    steering = {
        "towards": TEXT,
        "away": TEXT,
        "layer": whole(0, config.n_layers - 1),
        "strength": number(minimum=-STRONGEST, maximum=STRONGEST),
        "first": whole(),
    }
    return record(
        {
            "ablate": array(
                {"anyOf": [{"enum": parts}, TEXT | {"pattern": "^position\\.[0-9]{1,3}$"}]}
            ),
            "ablate_with": nullable({"type": "string", "enum": list(ABLATE_WITH)}),
            "reference": nullable(TEXT),
            "steer": array(
                record(steering, "towards", "away", "layer", extra=False), maxItems=MOST_STEERINGS
            ),
        },
        extra=False,
    )


def _listed(**others: Schema) -> Schema:
    return array(record(_NAMED | others, "id", "text", *others))


_SCORE = record(
    {
        "tokens": _listed(
            logprob=nullable(number()),
            rank=nullable(whole(1)),
            top=_listed(logprob=number()),
        )
    },
    "tokens",
)
_REST = ("counts", "means", "masses", "tops")  # of groups of the tokens that are not listed
_NEXT = record(
    {
        "candidates": _listed(logit=number()),
        "text": _listed(logit=number()),
        "rest": record(dict.fromkeys(_REST, _NUMBERS), *_REST),
        "read": whole(1),
        "log_total": number(),
        "entropy": number(minimum=0),
        "size": whole(1),
    },
    *("candidates", "text", "rest", "read", "log_total", "entropy", "size"),
)
_STAGES = record(
    {
        "stages": array(
            record(
                {
                    "rule": TEXT,
                    "candidates": whole(),
                    "top": _listed(before=number(), after=number()),
                },
                *("rule", "candidates", "top"),
            )
        )
    },
    "stages",
)
_MODEL = record(
    {
        "name": TEXT,
        "description": TEXT,
        "config": record({}),
        "size": whole(1),
        "end_of_text": nullable(whole()),
        "sampling": record({}),
        "facts": record({}),
        "unchangeable": nullable(TEXT),
        "limits": record({name: whole(1) for name in ("candidates", "texts", "patches")}),
    },
    *("name", "description", "config", "size", "end_of_text", "sampling", "facts"),
    *("unchangeable", "limits"),
)
_INSPECT = record(
    {"target": record({}), "next": array(record({})), "attention_row": array(array(_NUMBERS))},
    *("tokens", "target", "next", "contributions", "lens", "activations", "norms"),
    *("attention_row", "embedding", "neurons"),
)
_LENS = record(
    {
        "first": whole(),
        "ids": array(array(array(whole()))),
        "texts": array(array(array(TEXT))),
        "probabilities": array(array(_NUMBERS)),
    },
    *("first", "ids", "texts", "probabilities"),
)
_ATTENTION = record(
    _PACKED | {"first": whole(), "block": whole(1)}, "shape", "data", "first", "block"
)
_ROWS = ("scores", "weights", "values", "q", "k", "v")
_HEAD = record(
    {
        **dict.fromkeys(_ROWS, _NUMBERS),
        "output_norm": number(),
        "map": record(_PACKED, "shape", "data"),
    },
    *(*_ROWS, "output_norm", "map"),
)
_EFFECT = record({"kl": number(), "tokens": array(record({}))}, "kl", "tokens")
_HEADS = record({"least": number(), "heads": record({})}, "least", "heads")
