"""Pages of HTML: one look, one file each, no text that disguises itself, keys and contrast."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from helpers import Run

from gpt2cli.analysis import inspection, patching
from gpt2cli.analysis.heatmap import Piece
from gpt2cli.cli.commands.inspect import SECTIONS
from gpt2cli.cli.render import pages
from gpt2cli.cli.render.pages import heatmap
from gpt2cli.cli.render.pages import inspection as inspected
from gpt2cli.cli.render.pages import patching as patched
from gpt2cli.cli.render.pages.heatmap import Scored
from gpt2cli.errors import WeightsError
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.weights import checkpoint

CONTROLS = {chr(c) for c in (*range(0x20), *range(0x7F, 0xA0))} - {"\n", "\t"}
DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def scored(model: str, name: str, text: str) -> str:
    pieces = [Piece(text[:1], None, 0), *(Piece(c, i / 3, i) for i, c in enumerate(text[1:], 1))]
    return heatmap.render(model, [Scored(name, {"tokens": "7"}, pieces)]).decode()


@pytest.fixture(scope="module")
def inspect(tiny_directory: Path) -> Callable[..., str]:
    model, tokenizer = checkpoint.load(tiny_directory), Tokenizer.load(tiny_directory)

    def page(name: str, text: str) -> str:
        data = inspection.inspect(model, tokenizer, tokenizer.encode(text)[-32:])
        return inspected.render(name, text, data.as_dict(SECTIONS)).decode()

    return page


@pytest.fixture(scope="module")
def patch(tiny_directory: Path) -> Callable[..., str]:
    model, tokenizer = checkpoint.load(tiny_directory), Tokenizer.load(tiny_directory)

    def page(name: str, text: str) -> str:
        ids = [tokenizer.encode(text)[-31:] + tokenizer.encode(end) for end in "pq"]
        data = patching.patch(model, tokenizer, *ids, answer=40, versus=41)
        return patched.render(name, [text + "p", text + "q"], data).decode()

    return page


@pytest.fixture(scope="module")
def both(inspect: Callable[..., str], patch: Callable[..., str]) -> dict[str, str]:
    return {
        "score": scored("bard", "a.txt", "To be, or not"),
        "inspect": inspect("bard", "To be"),
        "patch": patch("bard", "To be"),
    }


class Outline(HTMLParser):
    """Headings by level with their text, and the elements that there are."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.headings: list[list[str]] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append([tag, ""])
            self.open = True

    def handle_endtag(self, tag: str) -> None:
        self.open = self.open and tag != self.headings[-1][0]

    def handle_data(self, data: str) -> None:
        if self.open:
            self.headings[-1][1] += data


def test_all_look_like_one_program(both: dict[str, str]) -> None:
    styles = {page.split("<style>")[1].split("</style>")[0] for page in both.values()}
    assert styles == {"\n".join(["", *pages.part("style.css").splitlines(), ""])}
    for command, page in both.items():
        assert f"gpt2 {command} · bard" in page
        assert not re.search(r"""\b(src|href)=|https?:|@import|url\(""", page)


def test_a_page_has_what_readers_of_screens_need(both: dict[str, str]) -> None:
    for page in both.values():
        outline = Outline(page)
        tags = [tag for tag, _ in outline.elements]
        assert (tags.count("main"), tags.count("h1"), tags.count("title")) == (1, 1, 1)
        assert ("html", {"lang": "en"}) in outline.elements
        assert any(a.get("name") == "viewport" for _, a in outline.elements)
        levels = [int(tag[1]) for tag, _ in outline.headings]
        assert levels[0] == 1
        assert set(levels[1:]) == {2}
        texts = [text for _, text in outline.headings]
        assert len(set(texts)) == len(texts)
        ids = {a["id"] for _, a in outline.elements if "id" in a}
        for tag, attributes in outline.elements:
            assert attributes.get("aria-labelledby") in (None, *ids)
            if "data-rove" in attributes:  # a heat map, or a text in colours
                assert attributes.get("aria-label") or attributes.get("aria-labelledby"), tag


def test_the_heading_is_how_the_text_begins(inspect: Callable[..., str]) -> None:
    text = "To be,\nor not to be: that is the question: " * 9
    for page in (inspect("bard", text), scored("bard", "a.txt", text)):
        assert "<title>bard: “To be, or not to be: that is the question: To be, or not" in page
        title = html.unescape(page.split("<title>bard: ")[1].split("</title>")[0])
        assert Outline(page).headings[0][1] == title
        assert title.endswith(" …”")
        assert len(title) < 90
    assert pages.excerpt("Short\n\n") == "“Short”"
    assert pages.excerpt("日" * 200) == f"“{'日' * 80} …”"
    assert "2 texts" in heatmap.render("m", [Scored("a", {}, []), Scored("b", {}, [])]).decode()


def test_each_page_says_what_its_numbers_are(both: dict[str, str]) -> None:
    assert "−log₂" in both["score"]
    assert all(word in both["score"] for word in ("<em>Surprisal</em>", "<em>bits</em>", "Rank"))
    assert all(word in both["inspect"] for word in ("<em>logit</em>", "<em>rank</em>"))
    assert "100 is all of it, 0 nothing" in both["patch"]


@pytest.mark.parametrize("character", sorted(CONTROLS | set(DIRECTIONS)))
def test_no_text_controls_or_disguises_a_page(
    inspect: Callable[..., str], patch: Callable[..., str], character: str
) -> None:
    text = f"ab{character}cd"
    assert character not in patch(text, text)
    for page in (inspect(text, text), scored(text, text, text)):
        assert character not in page
        title = html.unescape(page.split("<title>")[1].split("</title>")[0])
        assert title.count("ab") == title.count("cd") == 2
        assert len(title) > len("abcd: “abcd”")
    data = json.loads(inspect(text, text).split('id="data">')[1].split("</script>")[0])
    assert data["tokens"]
    assert not any(character in shown for shown in strings(data))


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)


def test_no_text_becomes_html(inspect: Callable[..., str], patch: Callable[..., str]) -> None:
    evil = "</pre></script><script>alert(1)</script><!--&\"'"
    for page in (inspect(evil, evil), scored(evil, evil, evil), patch(evil, evil)):
        assert page.count("alert(1)</script>") == 0
        assert page.count("<script") == page.count("</script>") == 1 + ('id="data"' in page)
        assert "<!--" not in page
        digest = re.search(r"script-src 'sha256-([^']+)'", page)
        script = page.split("<script>")[1].split("</script>")[0].encode()
        assert digest is not None
        assert base64.b64decode(digest[1]) == hashlib.sha256(script).digest()


def test_a_name_that_is_no_utf8_still_makes_a_page(inspect: Callable[..., str]) -> None:
    assert '<h2 id="text0">?.txt</h2>' in scored("\udcff", "\udcff.txt", "abc")
    assert "gpt2 inspect · ?" in inspect("\udcff", "abc")


def test_numbers_that_are_not_finite_are_one_sentence(tiny_directory: Path) -> None:
    model, tokenizer = checkpoint.load(tiny_directory), Tokenizer.load(tiny_directory)
    data = inspection.inspect(model, tokenizer, [1, 2, 3]).as_dict(SECTIONS)
    data["target"]["logit"] = float("nan")
    with pytest.raises(WeightsError, match="the weights of tiny give no numbers"):
        inspected.render("tiny", "abc", data)


def test_every_token_can_be_reached_and_tells_its_numbers() -> None:
    outline = Outline(scored("bard", "a.txt", "abcd\n"))
    spans = [attributes for tag, attributes in outline.elements if tag == "span"]
    assert [span.get("tabindex") for span in spans] == ["0"] * 5
    assert [span["data-tip"] for span in spans] == [
        "“a”: not scored, for nothing precedes it",
        "“b”: 0.33 bits (a probability of 79.37 %), rank 1",
        "“c”: 0.67 bits (a probability of 63.00 %), rank 2",
        "“d”: 1.00 bits (a probability of 50.00 %), rank 3",
        "“↵”: 1.33 bits (a probability of 39.69 %), rank 4",
    ]
    assert [span.get("class") for span in spans] == [
        None,
        *["bits0 rank0"] * 2,
        *["bits1 rank0"] * 2,
    ]
    assert not any("title" in attributes for _, attributes in outline.elements)


def test_the_most_surprising_come_first_behind_their_context() -> None:
    page = scored("bard", "a.txt", "abcdefghijklmnopq rs")
    rows = re.findall(r'<th scope="row">(.*?)<b>(.*?)</b></th><td>([\d.]+)</td>', page)
    assert len(rows) == 10
    assert rows[0] == ("hijklmnopq·r", "s", "6.33")
    assert [bits for _, _, bits in rows] == [f"{i / 3:.2f}" for i in range(19, 9, -1)]


def test_texts_of_several_files_share_a_page(run_main: Run, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text("My lord, I am here.\n" * 3)
    page = tmp_path / "page.html"
    names = [str(tmp_path / name) for name in "ab"]
    run_main("score", "-m", "bard", "--device", "cpu", *names, "--html", str(page), "--ranks")
    shown = page.read_text(encoding="utf-8")
    assert [text for _, text in Outline(shown).headings] == ["2 texts", *names]
    assert 'id="by-rank" checked' in shown
    assert shown.count("perplexity") == 2


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1])
def test_text_can_be_read_on_every_colour_by_day_and_by_night(scheme: int) -> None:
    found = re.findall(r"--([\w-]+): light-dark\((#\w+), (#\w+)\);", pages.part("style.css"))
    colours = {name: both[scheme] for name, *both in found}
    pairs = [("ink", name) for name in colours if re.match(r"paper|card|hot|cold|bits|rank", name)]
    pairs += [(text, on) for text in ("faint", "accent") for on in ("paper", "card")]
    assert len(pairs) == 4 + 5 + 4 + 4
    for text, on in pairs:
        dark, light = sorted((luminance(colours[text]), luminance(colours[on])))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, on)
