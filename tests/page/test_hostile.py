"""A vocabulary and a prompt that want to be markup, programs or another order of reading."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import servers
from helpers import says

from gpt2cli.text.vocabulary import END_OF_TEXT, byte_alphabet

pytestmark = pytest.mark.browser

# Each would leave a sign if anything took it for more than text.
HOSTILE = [
    "<img src=x onerror=\"document.title='hurt'\">",
    "<script>document.title='hurt'</script>",
    "</textarea></script></style></title>",
    "\"><svg onload=document.title='hurt'>",
    "javascript:document.title='hurt'",
    "{{7*7}}${7*7}&lt;b&gt;&#x41;",
    "\u202egnp.exe\u2066\u2069",
    "\x00\x1b[31m\x07\x7f\r\v",
    "\u2028\u2029\ufeff\u200b",
    "\\ud800\\udfff\\u0000",
    "e" + "\u0301" * 60,
    "W" * 300,
    "https://evil.example/?q=",
]
SIZE = 300  # of the vocabulary of `says`


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Command]:
    """A model that says all of `HOSTILE`, and parts of a character, again and again."""
    directory = tmp_path_factory.mktemp("<b>hostile&amp;")
    letters = {byte: letter for letter, byte in byte_alphabet().items()}
    spelled = ["".join(letters[b] for b in text.encode()) for text in HOSTILE]
    tokens = [END_OF_TEXT, *(letters[b] for b in range(256)), *spelled]
    tokens += [f"zz{i}" for i in range(SIZE - len(tokens))]
    (directory / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    said = [tokens.index(token) for token in spelled] + [1 + 0xE2, 1 + 0x80]
    with servers.command("-m", str(says(directory, said, directory))) as found:
        yield found


def test_it_is_served(server: Any) -> None:
    body = {"prompt": "a", "max_tokens": 13, "temperature": 0}
    print(server.complete(**body).json)
