"""The room "What if" against the library: what is switched off, steered, patched, and written."""

from __future__ import annotations

import re
from typing import Any

import browsers
import pytest
import servers
from browsers import Watched

import gpt2cli
from gpt2cli import Interventions
from gpt2cli.analysis import effects, heads, patching

pytestmark = pytest.mark.browser

TEXT = "O Romeo, Romeo! wherefore art thou"
REFERENCE = "Good morrow, cousin. Is the day so young?"
CLEAN, CORRUPTED = "I told the woman that", "I told the man that"
UNDO = "Control+z"


@pytest.fixture(scope="module")
def bard() -> gpt2cli.LoadedModel:
    return gpt2cli.load("bard")


@pytest.fixture
def room(page: Any) -> Any:
    return begun(page)


def begun(page: Any) -> Any:
    """The page in the room, with a text."""
    page.get_by_role("tab", name="What if").click()
    page.locator("#room-whatif").get_by_label("Text", exact=True).fill(TEXT)
    page.get_by_role("button", name="Begin", exact=True).click()
    settled(page)
    return page


def settled(page: Any) -> None:
    """Wait until the predictions are those of the present plan."""
    page.wait_for_selector(".predictions[aria-busy=false] tbody tr")


def part(page: Any, name: str) -> Any:
    return page.locator(f".board [data-part='{name}']")


def shown(page: Any) -> list[tuple[str, float, float, str]]:
    """Token, probability before and after, and ranks of each row."""
    settled(page)
    found = []
    for row in page.locator(".predictions tbody tr").all():
        before, after = row.locator("[data-value]").all()
        values = (float(one.get_attribute("data-value")) for one in (before, after))
        cells = (
            row.locator("th").text_content(),
            row.locator("td").last.text_content().rstrip(" ↑↓="),
        )
        found.append((cells[0], *values, cells[1]))
    return found


def assert_is_effect(page: Any, model: gpt2cli.LoadedModel, **plan: Any) -> effects.Effect:
    """The table has what `analysis.effects` finds. → that"""
    network, tokenizer = model.network(), model.tokenizer
    edits = model.under(Interventions.of(**plan)).edits(network)
    found = effects.effect(network, tokenizer, model.encode(TEXT), edits)
    rows = shown(page)
    assert len(rows) == min(12, len(found.tokens))
    for (token, before, after, ranks), moved in zip(rows, found.tokens, strict=False):
        assert token == visible(moved.text)
        assert before == pytest.approx(moved.before.probability, rel=1e-4)
        assert after == pytest.approx(moved.after.probability, rel=1e-4)
        assert ranks == f"{moved.before.rank} → {moved.after.rank}"
    assert f"{found.kl:.3f} bits" in page.locator(".predictions .sentence").text_content()
    return found


def visible(text: str) -> str:
    return text.replace(" ", "␣").replace("\n", "⏎")


def test_without_changes_the_room_says_so_and_shows_one_prediction(room: Any) -> None:
    assert room.get_by_text("Nothing is switched off").is_visible()
    assert room.get_by_role("button", name="All back on").last.is_disabled()
    assert all(before == after for _, before, after, _ in shown(room))


def test_a_head_switched_off_changes_the_prediction_as_the_library_says(
    room: Any, bard: gpt2cli.LoadedModel
) -> None:
    part(room, "2.3").click()
    found = assert_is_effect(room, bard, ablate=["2.3"])
    assert found.kl > 0.5
    assert room.get_by_role("heading", name="Head 2.3 is off").is_visible()


def test_whole_parts_and_positions_are_switched_off_together(
    room: Any, bard: gpt2cli.LoadedModel
) -> None:
    names = ["attention.1", "mlp.0", "layer.3", "position.2"]
    for name in names[:3]:
        part(room, name).click()
    room.get_by_role("button", name="position 2,").click()
    assert_is_effect(room, bard, ablate=names)
    assert part(room, "1.0").get_attribute("data-state") == "covered"


def test_a_mean_is_taken_over_the_reference_that_is_given(
    room: Any, bard: gpt2cli.LoadedModel
) -> None:
    part(room, "2.3").click()
    room.get_by_label("its mean").check()
    assert room.get_by_label("Text of which the mean").input_value() == TEXT
    assert_is_effect(room, bard, ablate=["2.3"], ablate_with="mean", reference=TEXT)
    room.get_by_label("Text of which the mean").fill(REFERENCE)
    assert_is_effect(room, bard, ablate=["2.3"], ablate_with="mean", reference=REFERENCE)


def test_steering_has_a_strength_that_may_be_negative(room: Any, bard: gpt2cli.LoadedModel) -> None:
    room.get_by_role("tab", name="Steer").click()
    room.get_by_label("Towards").fill(" art")
    room.get_by_label("Into layer").select_option("3")
    room.get_by_role("button", name="Steer", exact=True).click()
    last = len(bard.encode(TEXT)) - 1
    steering = {"towards": " art", "away": " you", "layer": 3, "strength": 1.0, "first": last}
    assert_is_effect(room, bard, steer=[steering])
    room.get_by_role("slider", name="Strength").fill("-2.5")
    room.get_by_label("From position").fill("2")
    assert_is_effect(room, bard, steer=[steering | {"strength": -2.5, "first": 2}])
    room.get_by_role("button", name="Remove").click()
    assert room.get_by_text("Nothing is switched off").is_visible()


def test_the_text_goes_on_as_it_would_with_and_without_the_plan(
    room: Any, bard: gpt2cli.LoadedModel
) -> None:
    part(room, "2.3").click()
    room.get_by_role("button", name="Write under it").click()
    verdict = room.get_by_text("Same settings, same seed")
    seed = int(re.findall(r"seed \((\d+)\)", verdict.text_content(timeout=30_000))[0])
    models = bard, bard.under(Interventions.of(ablate=["2.3"]))
    for side, model in zip(("plain", "changed"), models, strict=True):
        written = room.locator(f".written[data-side={side}]").text_content().replace("◆", "")
        assert written == model.generate(TEXT, max_tokens=60, seed=seed).text
    assert room.get_by_role("img", name="from here on different").count() == 2


def test_a_text_that_is_taken_is_a_branch_that_undo_takes_back(room: Any) -> None:
    part(room, "2.3").click()
    room.get_by_role("button", name="Write under it").click()
    room.get_by_text("Same settings, same seed").wait_for()
    tokens = room.locator(".positions button")
    before = tokens.count()
    room.get_by_role("button", name="Take it into the text").last.click()
    tokens.nth(before).wait_for()
    room.keyboard.press(UNDO)
    tokens.nth(before).wait_for(state="detached")
    assert tokens.count() == before


def test_switches_work_by_keyboard_alone_and_are_undone(page: Any) -> None:
    page.get_by_role("tab", name="Write").focus()
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    room = page.locator("#room-whatif")
    for _ in range(12):
        page.keyboard.press("Tab")
        if room.get_by_label("Text", exact=True).evaluate("e => e === document.activeElement"):
            break
    page.keyboard.press("Enter")
    settled(page)
    page.get_by_role("tab", name="Switch off").focus()
    page.keyboard.press("Tab")
    for key in ("ArrowDown", "ArrowDown", *["ArrowRight"] * 6, "Space"):
        page.keyboard.press(key)
    assert part(page, "2.3").get_attribute("aria-pressed") == "true"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    assert room.get_by_role("heading", name="2 heads are off").is_visible()
    page.keyboard.press(UNDO)
    assert room.get_by_role("heading", name="Head 2.3 is off").is_visible()
    page.keyboard.press("Control+Shift+z")
    room.get_by_role("button", name="All back on").click()
    assert part(page, "2.3").get_attribute("aria-pressed") == "false"


def test_nobody_writes_under_a_plan_unawares(room: Any) -> None:
    part(room, "2.3").click()
    part(room, "1.0").click()
    room.get_by_role("tab", name="Write").click()
    notice = room.get_by_role("complementary", name="The model is changed")
    assert "2 heads are off" in notice.text_content()
    notice.get_by_role("button", name="All back on").click()
    assert notice.is_hidden()


def cells(page: Any, name: str) -> list[float]:
    """All numbers of a map, row by row."""
    found = page.locator(f"[data-map={name}] .cells [data-value]").all()
    return [float(cell.get_attribute("data-value")) for cell in found]


def test_maps_of_patching_are_those_of_the_library(room: Any, bard: gpt2cli.LoadedModel) -> None:
    room.get_by_role("tab", name="Patch").click()
    room.get_by_role("button", name="Patch", exact=True).click()
    room.locator("[data-map=heads]").wait_for()
    prompts = [bard.encode(text) for text in (CLEAN, CORRUPTED)]
    answer, versus = (bard.encode(word)[0] for word in (" she", " he"))
    found = patching.patch(bard.network(), bard.tokenizer, *prompts, answer=answer, versus=versus)
    assert found.heads is not None
    assert cells(room, "heads") == pytest.approx(found.heads.ravel().tolist(), abs=1e-4)
    for name in ("stream", "attention", "mlp"):
        differing = getattr(found, name)[:, 3:].T.ravel().tolist()
        assert cells(room, name) == pytest.approx(differing, abs=1e-4)
    room.locator("[data-map=heads] .cells button").nth(8).click()
    assert "Head 2.0 restores 57.6%" in room.locator(".reading").text_content()


def test_prompts_that_cannot_be_compared_are_refused_before_they_are_asked_for(room: Any) -> None:
    room.get_by_role("tab", name="Patch").click()
    run = room.get_by_role("button", name="Patch", exact=True)
    room.get_by_label("Clean prompt").fill("I told the old woman that")
    room.get_by_text("the clean one has 6, the corrupted one 5").wait_for()
    assert run.is_disabled()
    room.get_by_label("Clean prompt").fill(CORRUPTED)
    room.get_by_text("Both prompts are the same").wait_for()
    room.get_by_label("Clean prompt").fill(CLEAN)
    room.get_by_label("Answer to the clean one").fill(" Coriolanus")
    room.get_by_text("An answer is one token, and this is").wait_for()
    assert run.is_disabled()


def test_heads_by_kind_are_scored_and_switched_off(room: Any, bard: gpt2cli.LoadedModel) -> None:
    room.get_by_role("tab", name="Heads").click()
    room.get_by_label("Previous-token heads").check()
    room.locator(".heads .cells").wait_for()
    values = room.locator(".heads .cells [data-value]").all()
    found = heads.score_heads(bard.network(), bard.tokenizer)
    expected = found.previous.ravel().tolist()
    assert [float(v.get_attribute("data-value")) for v in values] == pytest.approx(
        expected, abs=1e-5
    )
    first = room.locator(".heads .bars tbody tr").first
    assert first.locator("th").text_content() == next(iter(found.of_kind("previous", 0)))
    first.get_by_role("button").click()
    assert_is_effect(room, bard, ablate=[first.locator("th").text_content()])


def test_a_model_that_cannot_be_changed_says_what_to_do(open_page: Any) -> None:
    with servers.command("--precision", "int8") as quantized:
        page = begun(open_page(quantized))
        assert page.get_by_text("Start the server with --precision fp32").is_visible()
        assert part(page, "2.3").is_disabled()
        page.get_by_role("tab", name="Heads").click()
        page.locator(".heads .cells").wait_for()


def altered(route: Any, size: tuple[int, int] | None = None, **fields: Any) -> None:
    """The server's model with other fields."""
    model = route.fetch().json() | fields
    if size:
        model["config"] |= {"n_layers": size[0], "n_heads": size[1]}
    route.fulfill(json=model)


def test_the_board_of_the_largest_model_stays_within_a_narrow_window(
    open_page: Any, watched: Watched
) -> None:
    watched.forgive("status of 400")  # bard has no such head
    page = open_page(size=(360, 740), ready=False)
    page.route("**/page/v1/model", lambda route: altered(route, size=(48, 25)))
    page.reload()
    page.wait_for_selector(browsers.READY)
    begun(page)
    part(page, "0.0").focus()
    for key in ("End", "Space"):
        page.keyboard.press(key)
    assert part(page, "47.24").get_attribute("aria-pressed") == "true"
    box = part(page, "47.24").bounding_box()
    assert 0 <= box["x"] < 360
    assert 0 <= box["y"] < 740
    assert page.evaluate("document.documentElement.scrollWidth") == 360
