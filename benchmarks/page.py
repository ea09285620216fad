"""Measure the page of `gpt2 play` in Chromium: when it can be used, and how fast it answers.

    python benchmarks/page.py --model DIRECTORY [--rounds 5] [--precision fp32]
                              [--parts start inside slider frames branches]

The model is a checkpoint with OpenAI's sizes and vocabulary; random weights will do. Needs
Chromium and Playwright (`pip install -e '.[dev]'`). Browser, server and this program share the
processor, and without a GPU the browser draws with it, too. Times of the page are by its own clock.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY / "tests"))

import browsers  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PROSE = (
    "The lighthouse keeper wrote down every ship that passed, its colours and the hour, and on "
    "quiet evenings he read the older pages aloud, as if someone in the dark were listening. "
)
# Until the picture of a token is drawn, from a click on an element.
CLICK = """
(element) => new Promise((resolve) => {
  const body = document.querySelector(".inside");
  const begin = performance.now();
  const watch = new MutationObserver(() => {
    if (body.hasAttribute("aria-busy")) return;
    watch.disconnect();
    requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - begin)));
  });
  watch.observe(body, { attributes: true, attributeFilter: ["aria-busy"] });
  element.click();
})
"""
# Until the candidates have changed, from a step of a slider; with what drawing them takes.
SLIDE = """
([slider, share]) => new Promise((resolve) => {
  const table = document.querySelector(".candidates");
  const begin = performance.now();
  const watch = new MutationObserver(() => {
    watch.disconnect();
    table.getBoundingClientRect();  // lays the new rows out
    resolve(performance.now() - begin);
  });
  watch.observe(table, { childList: true, characterData: true, subtree: true, attributes: true });
  slider.value = Number(slider.min) + share * (Number(slider.max) - Number(slider.min));
  slider.dispatchEvent(new Event("input", { bubbles: true }));
})
"""
RECORD = """
() => {
  window.frames_ = [];
  let last = performance.now();
  const tick = (now) => {
    if (!window.frames_) return;
    window.frames_.push(now - last);
    last = now;
    requestAnimationFrame(tick);
  };
  requestAnimationFrame(tick);
}
"""
STOP = "() => { const found = window.frames_; window.frames_ = null; return found.slice(1); }"
PATIENCE = 180.0  # seconds
LENGTH = 64  # tokens of the texts that are written, and of the one that is looked into


def show(name: str, found: list[float], aim: str, best: str = "max") -> None:
    """A row of the table: the median, the worst, how many."""
    worst = max(found) if best == "max" else min(found)
    row = f"{statistics.median(found):,.1f} | {worst:,.1f} | {len(found)} | {aim}"
    print(f"| {name} | {row} |", flush=True)


@contextmanager
def playing(*options: str) -> Iterator[str]:
    """`gpt2 play`, as soon as it says its address. → the URL"""
    command = [sys.executable, "-m", "gpt2cli", "play", "--no-browser", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"http://[\d.:]+", line):
                yield f"{found[0]}/"
                break
        else:
            sys.exit("gpt2 play has ended")
    finally:
        process.kill()
        process.wait()


def opened(browser: Browser, url: str) -> Page:
    """The page in a context of its own, once one can write."""
    page = browsers.opened(browser, url, browsers.Watched())
    page.get_by_role("textbox", name="Text", exact=True).wait_for()
    return page


def prose(page: Page, tokens: int) -> str:
    """A text of so many tokens."""
    ask = "([path, body]) => fetch(path, body).then((answer) => answer.json())"

    def post(path: str, **body: object) -> Any:
        sent = {"method": "POST", "headers": {"Content-Type": "application/json"}}
        return page.evaluate(ask, [path, {**sent, "body": json.dumps(body)}])

    ids = post("/tokenize", prompt=PROSE * (tokens // 20))["tokens"][:tokens]
    return str(post("/detokenize", tokens=ids)["prompt"])


def write(page: Page, text: str) -> None:
    """Put a text into the editor, and wait until it has its colours."""
    page.get_by_role("textbox", name="Text", exact=True).fill(text)
    browsers.settled(page, PATIENCE)


def enter(page: Page, room: str) -> None:
    """Open a room, and wait for its answers."""
    page.locator("#rooms").get_by_role("tab", name=room).click()
    browsers.settled(page, PATIENCE)


def start(browser: Browser, options: list[str], rounds: int) -> None:
    """From the command to a page in which one can write; the browser is there already."""
    found = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        with playing(*options) as url:
            page = opened(browser, url)
            found.append(1000 * (time.perf_counter() - begin))
            page.context.close()
    show("gpt2 play to a page that can be used, ms", found[1:], "≤ 1,500")


def inside(page: Page, rounds: int) -> None:
    """From a click on a token of a text to the picture of what happens to it."""
    write(page, prose(page, LENGTH))
    enter(page, "Look inside")
    tokens = page.locator(".strip button")
    count = tokens.count()
    found = []
    for i in range(2 * rounds):
        found.append(tokens.nth((17 * i + 5) % (count - 1)).evaluate(CLICK))
        browsers.settled(page, PATIENCE)
    show(f"inside of a text of {count} tokens, click to picture, ms", found, "≤ 300")
    enter(page, "Write")


def slider(page: Page, rounds: int) -> None:
    """From a step of a slider to the candidates of the next token."""
    write(page, prose(page, LENGTH))
    for name in ("Temperature", "Top-p"):
        page.get_by_role("switch", name=name).check()
        handle = page.get_by_role("slider", name=name).element_handle()
        found = []
        for i in range(10 * rounds):
            found.append(page.evaluate(SLIDE, [handle, 0.2 + 0.6 * (i * 7 % 10) / 10]))
            page.wait_for_timeout(50)
        show(f"{name.lower()}: slider to candidates, ms", found, "≤ 16")


def frames(page: Page, rounds: int) -> None:
    """Between two pictures of the screen, while someone types in a long text and scrolls it."""
    write(page, prose(page, 1000))
    text = page.get_by_role("textbox", name="Text", exact=True)
    text.press("Control+Home")
    page.evaluate(RECORD)
    for _ in range(rounds):
        text.press_sequentially("and then again ", delay=90)
        page.wait_for_timeout(2000)  # in which the new tokens get their colours
    typed = page.evaluate(STOP)
    browsers.settled(page, PATIENCE)
    count = page.locator(".backdrop span").count()
    page.mouse.move(400, 400)
    page.evaluate(RECORD)
    for i in range(20 * rounds):
        page.mouse.wheel(0, 240 if i % 20 < 10 else -240)
        page.wait_for_timeout(30)
    scrolled = page.evaluate(STOP)
    show(f"{count} coloured tokens, typing: between frames, ms", typed, "none over 50")
    show(f"{count} coloured tokens, scrolling: between frames, ms", scrolled, "none over 50")
    for name, found in (("typing", typed), ("scrolling", scrolled)):
        print(f"  over 50 ms while {name}: {sum(x > 50 for x in found)} of {len(found)}")


def branches(page: Page, rounds: int) -> None:
    """Tokens per second of one continuation, and of sixteen at once, as the page gets them."""
    page.get_by_label("Length, number", exact=True).fill(str(LENGTH))
    rates: dict[int, list[float]] = {1: [], 16: []}
    for _ in range(rounds):
        for n in rates:
            write(page, prose(page, LENGTH))
            page.get_by_label("Continuations, number", exact=True).fill(str(n))
            begin = time.perf_counter()
            page.get_by_role("button", name="Continue").click()
            page.get_by_role("status").filter(has_text="tokens written").wait_for(timeout=120_000)
            seconds = time.perf_counter() - begin
            said = page.get_by_role("status").text_content() or ""
            rates[n].append(int(re.findall(r"\d+", said)[0]) / seconds)
    for n, found in rates.items():
        show(f"{n} at once, tokens/s", found, "", "min")
    ratios = [many / one for one, many in zip(*rates.values(), strict=True)]
    show("16 branches ÷ one", ratios, "≥ 5", "min")


def main() -> None:
    """Print a table of what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parts = {"inside": inside, "slider": slider, "frames": frames, "branches": branches}
    parser.add_argument("--model", required=True)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", nargs="+", default=["start", *parts], choices=["start", *parts])
    chosen = parser.parse_args()
    if why := browsers.missing():
        sys.exit(why)
    options = ["-m", chosen.model, "--precision", chosen.precision]
    print("| | median | worst | measured | asked |\n|---|---|---|---|---|")
    with browsers.launched() as browser:
        if "start" in chosen.parts:
            start(browser, options, chosen.rounds)
        with playing(*options) as url:
            for name in (name for name in parts if name in chosen.parts):
                page = opened(browser, url)
                parts[name](page, chosen.rounds)
                page.context.close()


if __name__ == "__main__":
    main()
