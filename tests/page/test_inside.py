"""The room "Look inside" against `gpt2 inspect --json`: every number it shows is one of those."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from browsers import Watched

pytestmark = pytest.mark.browser

TEXT = "O Romeo, Romeo! wherefore art thou"
LAST = 12  # the position of its last token
NEAR = 2e-5  # inspect writes six digits


@pytest.fixture(scope="module")
def inspected() -> dict[str, Any]:
    """What `gpt2 inspect --json` says of the text."""
    command = [sys.executable, "-m", "gpt2cli", "inspect", "-m", "bard", TEXT, "--json"]
    found = subprocess.run(command, capture_output=True, check=True, timeout=120)
    data: dict[str, Any] = json.loads(found.stdout)
    return data


@pytest.fixture
def room(page: Any) -> Any:
    return looked(page)


def looked(page: Any, text: str = TEXT) -> Any:
    """The page in the room, with a text, its last token looked at."""
    page.get_by_role("tab", name="Write").click()
    page.locator("#room-write textarea").first.fill(text)
    page.get_by_role("tab", name="Look inside").click()
    page.wait_for_selector(".tile canvas:not(.waiting)", timeout=90_000)  # opens the model
    page.wait_for_selector(".inside:not([aria-busy]) .stage")
    return page


def numbers(found: Any) -> list[float]:
    """All numbers in a part of the page, undrawn."""
    every = "all => all.map(one => Number(one.dataset.value))"
    values: list[float] = found.locator("[data-value]").evaluate_all(every)
    return values


def stage(page: Any, key: str) -> Any:
    return page.locator(f".inside .stage[data-key='{key}']")


def open_head(page: Any, name: str) -> Any:
    page.locator(f".inside .tile[data-name='{name}']").click()
    opened = page.locator(f".opened[data-head='{name}']")
    opened.locator("figure.map").first.wait_for()
    return opened


def test_the_map_of_a_head_has_the_numbers_of_inspect(room: Any, inspected: Any) -> None:
    found = numbers(open_head(room, "2.3").locator("figure.map").first)
    rows = inspected["attention"][2][3]
    expected = [row[column] for i, row in enumerate(rows) for column in range(i + 1)]
    assert found == pytest.approx(expected, abs=NEAR)


def test_small_maps_are_strongest_where_most_flows(room: Any, inspected: Any) -> None:
    """In the light, a stronger colour is a darker one."""
    strongest = """canvas => {
        const {width, height} = canvas;
        const {data} = canvas.getContext("2d").getImageData(0, 0, width, height);
        const dark = (i) => data[4 * i + 3] * 3 - data[4 * i] - data[4 * i + 1] - data[4 * i + 2];
        return Array.from({length: height}, (_, row) => {
            const all = Array.from({length: width}, (_, column) => dark(row * width + column));
            return all.indexOf(Math.max(...all));
        });
    }"""
    for name, layer, head in (("0.0", 0, 0), ("1.2", 1, 2), ("3.3", 3, 3)):
        canvas = room.locator(f".inside .tile[data-name='{name}'] canvas")
        maps = inspected["attention"][layer][head]
        for row, column in enumerate(canvas.evaluate(strongest)):
            assert maps[row][column] == pytest.approx(max(maps[row]), rel=0.03)


def test_a_head_is_named_by_what_it_takes_most_from(room: Any, inspected: Any) -> None:
    row = inspected["attention"][2][3][LAST]
    most = max(range(LAST + 1), key=row.__getitem__)
    label = room.locator(".inside .tile[data-name='2.3']").get_attribute("aria-label")
    text = inspected["tokens"][most]["text"].replace(" ", "␣")
    assert label == f"head 2.3: takes most from {most} {text} ({row[most]:.1%})"


def test_each_row_has_the_lengths_and_the_lens_of_inspect(room: Any, inspected: Any) -> None:
    lengths, lens = inspected["activations"], inspected["lens"]
    for layer in range(4):
        expected = [
            lengths["attention"][layer][LAST],
            lengths["feed_forward"][layer][LAST],
            lengths["stream"][layer + 1][LAST],
            lens["probabilities"][layer + 1][LAST][0],
        ]
        found = stage(room, str(layer))
        assert numbers(found.locator(".line")) == pytest.approx(expected, abs=NEAR)
        assert found.locator(".says .token").text_content() == lens["texts"][layer + 1][LAST][
            0
        ].replace(" ", "␣").replace("\n", "⏎")
    embedding = inspected["embedding"]
    found = numbers(stage(room, "embedding").locator(".line"))
    assert found[:2] == pytest.approx([embedding["token"], embedding["position"]], abs=NEAR)


def test_a_block_shows_what_its_layer_norms_and_neurons_do(room: Any, inspected: Any) -> None:
    stage(room, "1").get_by_role("button", name="block 1").click()
    norms = inspected["norms"]
    for index, table in zip((2, 3), stage(room, "1").locator(".norms").all(), strict=True):
        found = numbers(table)
        for row, name in enumerate(("in", "normalised", "out")):
            expected = [norms[f"{what}_{name}"][index][LAST] for what in ("mean", "variance")]
            assert found[3 * row : 3 * row + 2] == pytest.approx(expected, abs=NEAR)
    neurons = stage(room, "1").locator(".step", has_text="strongest neurons")
    expected = [(n["activation"], n["logit"]) for n in inspected["neurons"][1]]
    flat = [number for pair in expected for number in pair]
    assert numbers(neurons)[: len(flat)] == pytest.approx(flat, abs=NEAR)


def test_the_last_row_has_the_probabilities(room: Any, inspected: Any) -> None:
    stage(room, "output").get_by_role("button").first.click()
    table = stage(room, "output").locator(".bars")
    expected = [n for one in inspected["next"] for n in (one["logit"], one["probability"])]
    assert numbers(table) == pytest.approx(expected, abs=NEAR)


def test_arrow_keys_walk_from_token_to_token(room: Any, inspected: Any) -> None:
    room.locator(".inside .strip [tabindex='0']").focus()
    room.keyboard.press("ArrowLeft")
    room.keyboard.press("ArrowLeft")
    chosen = room.locator(".inside .strip [aria-pressed='true']")
    assert chosen.get_attribute("data-index") == str(LAST - 2)
    best = inspected["lens"]["texts"][-1][LAST - 2][0].replace(" ", "␣")
    room.locator(".headline", has_text=f"at position {LAST - 2}").wait_for()
    assert room.locator(".headline .token").last.text_content() == best
    room.keyboard.press("Home")
    room.locator(".headline", has_text="at position 0").wait_for()
    assert room.evaluate("document.activeElement.textContent") == "O"


def test_heads_are_walked_to_and_opened_with_keys(room: Any, inspected: Any) -> None:
    room.locator(".inside .tile[tabindex='0']").focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowDown", "Enter"):
        room.keyboard.press(key)
    opened = room.locator(".opened[data-head='2.1']")
    opened.locator("figure.map").first.wait_for()
    assert room.evaluate("document.activeElement.textContent") == "Head 2.1"
    weights = opened.locator(".bars td:nth-of-type(5)")
    found = weights.evaluate_all("all => all.map(one => Number(one.dataset.value))")
    assert found == pytest.approx(inspected["attention"][2][1][LAST], abs=NEAR)


def test_later_tokens_are_masked(room: Any) -> None:
    room.locator(".inside .strip button").nth(4).click()
    room.locator(".headline", has_text="at position 4").wait_for()
    rows = open_head(room, "2.3").locator(".bars").first.locator("tbody tr")
    masked = [("masked" in text) for text in rows.all_text_contents()]
    assert masked == [False] * 5 + [True] * 8
    scores = rows.locator("td:nth-of-type(2)").count()
    assert scores == LAST + 1


def test_parts_add_up_to_the_logit_of_a_minus_that_of_b(room: Any, inspected: Any) -> None:
    parts = room.locator(".inside .parts")
    expected = inspected["next"][0]["logit"]
    assert numbers(parts.locator("p.sum").locator(".."))[0] == pytest.approx(expected, abs=1e-4)
    other = inspected["next"][1]
    parts.get_by_label("minus B: from the candidates").select_option(str(other["id"]))
    parts.get_by_role("heading", name="minus ,").wait_for()
    found = float(parts.locator("p.sum").get_attribute("data-value"))
    assert found == pytest.approx(expected - other["logit"], abs=1e-4)
    largest = parts.locator(".bars").first.locator("tbody th").first
    assert largest.text_content() == "head 2.3"


def test_a_token_is_typed_and_what_is_none_is_said(room: Any, watched: Watched) -> None:
    watched.forgive("400")
    parts = room.locator(".inside .parts")
    field = parts.get_by_label("A: typed")
    field.fill(" love")
    field.press("Enter")
    parts.get_by_role("heading", name="the logit of ␣love").wait_for()
    field.fill("no token at all")
    field.press("Enter")
    parts.locator("[role='alert']:not(:empty)").wait_for()
    room.locator(".inside .strip button").nth(3).click()
    room.locator(".headline", has_text="at position 3").wait_for()


def test_the_lens_goes_to_the_place_that_is_clicked(room: Any, inspected: Any) -> None:
    room.locator(".lenses").scroll_into_view_if_needed()
    cells = room.locator(".lens td button")
    cells.first.wait_for()
    expected = [place[0] for row in inspected["lens"]["probabilities"] for place in row]
    found = cells.evaluate_all("all => all.map(one => Number(one.dataset.value))")
    assert found == pytest.approx(expected, abs=NEAR)
    room.locator(".lens td button[data-place='3,5']").click()
    room.locator(".headline", has_text="at position 5").wait_for()
    room.wait_for_selector(".inside .stage.open[data-key='2']")


def test_a_long_text_is_summarised_and_says_so(page: Any) -> None:
    looked(page, "O Romeo, Romeo! wherefore art thou " * 15)
    page.locator(".picture", has_text="a point is the mean of").wait_for()
    page.locator(".lenses").scroll_into_view_if_needed()
    page.locator(".lenses", has_text="The last 64 of").wait_for()
    opened = open_head(page, "1.1")
    size = page.locator(".inside .strip button").count()
    assert size > 100
    assert f"48 of {size} tokens are shown" in opened.text_content()
    opened.get_by_role("button", name=f"Show all {size}").click()
    assert opened.locator(".bars tbody tr").count() == size


def test_what_is_switched_off_is_off_here_too(room: Any) -> None:
    room.get_by_role("tab", name="What if").click()
    room.locator(".board [data-part='2.3']").click()
    room.get_by_role("tab", name="Look inside").click()
    room.locator(".inside:not([aria-busy])").wait_for()
    room.locator(".plan-notice", has_text="all numbers are of that").wait_for()
    stage(room, "2").get_by_role("button", name="block 2").click()
    row = stage(room, "2").locator(".bars tr", has_text="head 2.3").first
    assert numbers(row)[-1] == 0


def test_an_empty_text_leads_to_the_room_to_write(page: Any) -> None:
    page.get_by_role("tab", name="Look inside").click()
    page.get_by_role("button", name="Write one").click()
    assert page.locator("#room-write").is_visible()
