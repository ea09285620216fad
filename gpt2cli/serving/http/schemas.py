"""Pieces of a description in OpenAPI 3.1: schemas, and operations with their refusals."""

from __future__ import annotations

from typing import Any

REFUSALS = {
    "400": "A wrong request; `param` names the field.",
    "404": "Another model than the one that is served.",
    "408": "The body has not come in time.",
    "413": "A body that is too large.",
    "415": "A body that is no JSON.",
    "429": "The queue is full; `Retry-After` says when to come again.",
    "500": "The model or the program has failed.",
    "503": "The model is being opened, or has failed.",
}


def post(
    summary: str, body: dict[str, Any], schema: dict[str, Any] | None, events: str = ""
) -> dict[str, Any]:
    """An operation that takes a body, and answers by JSON of a schema, or by `events`."""
    answer: dict[str, Any] = {"description": "The answer.", "content": {}}
    if schema is not None:
        answer = response("The answer.", schema)
    if events:
        about = f"Server-sent events: {events}"
        answer["content"]["text/event-stream"] = {"schema": {"description": about}}
    refusals = {status: response(about, ERROR) for status, about in REFUSALS.items()}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {"200": answer} | refusals,
    }


def response(about: str, schema: dict[str, Any]) -> dict[str, Any]:
    """A response of JSON."""
    return {"description": about, "content": {"application/json": {"schema": schema}}}


def record(properties: dict[str, Any], *required: str, extra: bool = True) -> dict[str, Any]:
    """An object; without `extra` it has no other fields."""
    found = {"type": "object", "properties": properties, "required": list(required)}
    return found if extra else found | {"additionalProperties": False}


def array(items: dict[str, Any], **limits: int) -> dict[str, Any]:
    """A list."""
    return {"type": "array", "items": items} | limits


def nullable(schema: dict[str, Any]) -> dict[str, Any]:
    """The same, or null."""
    if isinstance(kind := schema.get("type"), str) and "enum" not in schema:
        return schema | {"type": [kind, "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def whole(least: int | None = 0, most: int | None = None) -> dict[str, Any]:
    """A whole number."""
    limits = {"minimum": least, "maximum": most}
    return {"type": "integer"} | {name: v for name, v in limits.items() if v is not None}


def number(**limits: float) -> dict[str, Any]:
    """Any number."""
    return {"type": "number"} | limits


def get(summary: str, schema: dict[str, Any]) -> dict[str, Any]:
    """An operation that takes nothing."""
    refusals = {"503": response(REFUSALS["503"], ERROR)}
    return {"summary": summary, "responses": {"200": response("Yes.", schema)} | refusals}


TEXT = {"type": "string"}
SWITCH = {"type": "boolean"}
ERROR = record(
    {
        "error": record(
            {
                "message": TEXT,
                "type": TEXT,
                "param": nullable(TEXT),
                "code": nullable(TEXT),
            },
            *("message", "type", "param", "code"),
        )
    },
    "error",
)
