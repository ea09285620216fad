"""Logit biases as text: ` London=2.5`, `#1234=-inf`.

No token of GPT-2 is a "#" and digits at once (its pattern splits them), so #1234 is an id.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from gpt2cli.errors import UsageError
from gpt2cli.text.tokenizer import Tokenizer

_ID = re.compile(r"#([0-9]{1,9})")


def parse(texts: list[str]) -> dict[str, float]:
    """Parse TOKEN=AMOUNT, split at the last "=". Raises `UsageError` for anything else."""
    return dict(_parse(text) for text in texts)


def resolve(biases: Mapping[str, float], tokenizer: Tokenizer) -> dict[int, float]:
    """The biases by token id. Raises `UsageError` for what is not exactly one token."""
    return {_find(token, tokenizer): amount for token, amount in biases.items()}


def _parse(text: str) -> tuple[str, float]:
    token, equals, number = text.rpartition("=")
    if not token or not equals:
        raise UsageError(f"a bias is written TOKEN=AMOUNT, such as ' London=2.5', not {text!r}")
    try:
        amount = float(number)
    except ValueError:
        amount = math.nan
    if math.isnan(amount) or amount == math.inf:
        raise UsageError(f"the bias of {token!r} must be a number, or -inf to ban, not {number!r}")
    return token, amount


def _find(token: str, tokenizer: Tokenizer) -> int:
    if match := _ID.fullmatch(token):
        if (token_id := int(match[1])) < tokenizer.size:
            return token_id
        raise UsageError(f"token ids go from 0 to {tokenizer.size - 1}, not to {token}")
    return tokenizer.one(token)
