"""For schemathesis: a request that its schema allows is refused only for what no schema can say.

`schemathesis run` loads this module by SCHEMATHESIS_HOOKS. Fields that exclude each other or bound
one another would have nearly all random requests refused, so these are settled before.
"""

from __future__ import annotations

import json
import re
from typing import Any

import schemathesis

REASONS = (
    r"\d+ tokens of prompt and \d+ to generate exceed the context",
    r"logit_bias must be for token ids from",  # a name is a text, of which a schema knows no bounds
    r"no token is left to choose",  # a penalty of 1e-300, or a bias of each token of a regex
    r"(regex|json_schema|grammar)(: | is )",  # the languages of these
    r"the constraint failed",
    r"prompts times n may be up to",
    # Of the page, what depends on the length of a text.
    r"(position|first|prompt_length) must be a whole number from",
    r"there is no position\.\d+: (the text has|positions are)",
    r"prompt has \d+ tokens, the context",
    r"interventions at some positions hold",
    r".* is \d+ tokens, not one",
    r"both prompts must have as many tokens",
    r"the prompts are the same",
    r"the prompts make no difference",
    r"answer and versus are both",
)
MOST_OF_A_PAGE = 8  # tokens or characters: a look inside takes longer the more there are
WITHOUT_MIROSTAT = ("top_k", "top_p", "min_p", "typical_p", "xtc_probability")
WITHOUT_CONSTRAINT = ("stop", "stop_token_ids", "ignore_eos", "min_tokens")
CONSTRAINTS = ("regex", "json_schema", "choice", "grammar")


def _is_allowed(case: schemathesis.Case[Any]) -> bool:
    return case.meta is not None and case.meta.generation.mode.is_positive


@schemathesis.hook
def before_call(
    ctx: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, Any]
) -> None:
    """Settle what is said twice, now in one way and now in the other."""
    if not (_is_allowed(case) and isinstance(case.body, dict)):
        return
    body: dict[str, Any] = {name: value for name, value in case.body.items() if value is not None}
    if "mirostat_tau" in body:
        for name in WITHOUT_MIROSTAT if len(body) % 2 else ("mirostat_tau",):
            body.pop(name, None)
    kinds = [name for name in CONSTRAINTS if name in body]
    for name in [*kinds[1:], *(WITHOUT_CONSTRAINT if kinds else ())]:
        body.pop(name, None)
    if case.path.startswith("/page/"):
        for name in ("prompt", "clean", "corrupted"):
            if name in body:
                body[name] = body[name][:MOST_OF_A_PAGE]
        if "continue" not in case.path and "stages" not in case.path:
            case.body = body
            return
        body["max_tokens"] = max(1, body.get("max_tokens", 8))
        body["n"] = min(body.get("n", 1), 4)
    body["max_tokens"] = min(body.get("max_tokens", 16), 8)
    if "min_tokens" in body:
        body["min_tokens"] = min(body["min_tokens"], body["max_tokens"])
    if "best_of" in body:
        body["best_of"] = max(body["best_of"], body.get("n", 1))
        body["stream"] = False
    if not body.get("stream"):
        body.pop("stream_options", None)
    case.body = body


@schemathesis.check
def refused_for_what_no_schema_says(
    ctx: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case[Any]
) -> None:
    """Fail for a 400 to a request that the schema allows, unless its reason is known."""
    if _is_allowed(case) and response.status_code == 400:
        message = response.json()["error"]["message"]
        assert any(re.match(reason, message) for reason in REASONS), message


@schemathesis.check
def streams_have_an_end(
    ctx: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case[Any]
) -> None:
    """Fail for a stream that has anything but chunks, and then [DONE] or what has gone wrong."""
    if not response.headers.get("content-type", [""])[0].startswith("text/event-stream"):
        return
    *events, last, nothing = response.content.decode().split("\n\n")
    assert nothing == ""
    for event in events:
        data = json.loads(event.removeprefix("data: "))
        if case.path.startswith("/page/"):
            assert {"news", "done", "result"} & data.keys()
        else:
            assert data["object"] == "text_completion"
    assert last == "data: [DONE]" or "error" in json.loads(last.removeprefix("data: "))
