"""A vocabulary and a prompt that want to be markup, programs or another order of reading."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import browsers
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


# Controls where text is looked at; what is typed, and what is read aloud as it streams, is itself.
RAW = r"""
() => {
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const isText = node.parentElement.closest("#text, .backdrop, [role=log]");
    if (!isText && /[\u202a-\u202e\u2066-\u2069\u0000-\u0008\u000b-\u001f\u007f]/.test(node.data)) {
      found.push(node.parentElement.outerHTML.slice(0, 200));
    }
  }
  return found;
}
"""


def assert_is_text(page: Any) -> None:
    """Nothing of what was said or typed has become an element, or ran, or turned a line round."""
    assert "hurt" not in page.title()
    assert page.locator("img, iframe, object, embed, base, script:not([src])").count() == 0
    assert page.locator("[onerror], [onload], meta[http-equiv]").count() == 0
    assert page.locator("a[href*='evil'], a[href^='javascript']").count() == 0
    assert page.evaluate(RAW) == []


def walk(page: Any) -> None:
    """Look into everything that can be opened."""
    for room in ("Write", "Look inside", "What if"):
        page.locator("#rooms").get_by_role("tab", name=room).click()
        browsers.settled(page)
        page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
        browsers.settled(page)
        assert_is_text(page)


def test_what_a_model_says_is_text(page: Any) -> None:
    text = page.get_by_role("textbox", name="Text", exact=True)
    text.fill("a")
    page.get_by_role("button", name="Continue").click()
    page.wait_for_function("() => document.querySelector('#text').value.includes('evil.example')")
    browsers.settled(page)
    for said in HOSTILE[:6]:
        assert said in text.input_value()
    walk(page)
    page.reload()
    page.wait_for_selector(browsers.READY)
    browsers.settled(page)
    walk(page)  # begins in the room that was open
    page.locator("#rooms").get_by_role("tab", name="Write").click()
    assert HOSTILE[0] in text.input_value()


@pytest.mark.parametrize(
    "prompt", ["".join(HOSTILE[:4]), "".join(HOSTILE[4:9])], ids=["markup", "controls"]
)
def test_what_is_typed_is_text(page: Any, prompt: str) -> None:
    page.get_by_role("textbox", name="Text", exact=True).fill(prompt)
    browsers.settled(page)
    walk(page)
