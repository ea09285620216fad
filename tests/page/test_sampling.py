"""The rules of sampling in the page against the library's, and their controls against the server.

The controls are opened on a state of their own, so that nothing here depends on the room's layout.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import gpt2cli
from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.sampling.rules import generator
from gpt2cli.sampling.sampler import Sampler, Stage
from gpt2cli.serving.http.page_answers import candidates, named
from gpt2cli.text.tokenizer import Tokenizer

pytestmark = pytest.mark.browser

TEXT = "Enter the king. The king is dead: long live the king, long live the"
BREAKERS = (b"\n", b":", b'"', b"*")
RULES: dict[str, tuple[float, ...]] = {
    "repetition_penalty": (0.8, 1.3, 2),
    "frequency_penalty": (-1, 0.5, 2),
    "presence_penalty": (-0.7, 1.5),
    "dry_multiplier": (0.4, 2),
    "no_repeat_ngram": (1, 2, 3),
    "temperature": (0, 0.3, 0.8, 1.7),
    "top_k": (1, 17, 400),
    "top_p": (0.05, 0.6, 0.95, 1),
    "min_p": (0, 0.001, 0.3),
    "typical_p": (0.2, 0.9, 1),
    "xtc_threshold": (0.01, 0.1, 0.5),
    "mirostat_tau": (1, 3, 6),
}
EXPLAIN = """async (cases) => {
  const { begin, explain } = await import("/page/sampling.js");
  return cases.map(({ next, sampling, tokens, promptLength, bias }) => {
    const start = begin(next);
    const amounts = new Map(bias.map(([id, amount]) => [id, amount ?? -Infinity]));
    const stages = explain(start, sampling, { tokens, promptLength }, amounts);
    const listed = ({ after, before, ...stage }) => ({ ...stage, after: [...after] });
    return { ids: start.tokens.map(({ id }) => id), stages: stages.map(listed) };
  });
}"""
OPEN = """async (text) => {
  const [{ Store }, { openControls }, api, { beginning }] = await Promise.all(
    ["state", "write/controls", "api", "keeping"].map((name) => import(`/page/${name}.js`)),
  );
  const model = await api.model();
  const { tokens } = await api.score(text);
  const store = new Store(await beginning(model));
  const { tree } = store.state;
  const branch = { ...tree.branches[tree.leaf], tokens };
  store.update(() => ({ tree: { ...tree, branches: { [branch.id]: branch } } }));
  const element = document.createElement("aside");
  element.addEventListener("take", ({ detail }) => (globalThis.taken = detail));
  document.querySelector("main").replaceChildren(element);
  openControls(element, { store, model });
  globalThis.own = { store, ids: tokens.map(({ id }) => id) };
}"""
DRAG = """(slider) => {
  const times = [];
  for (let i = 0; i <= 200; i += 1) {
    slider.value = String(0.2 + i / 200);
    const begin = performance.now();
    slider.dispatchEvent(new Event("input", { bubbles: true }));
    times.push(performance.now() - begin);
  }
  slider.dispatchEvent(new Event("change", { bubbles: true }));
  return times.sort((a, b) => a - b);
}"""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return gpt2cli.load("bard").tokenizer


@pytest.fixture
def controls(page: Any) -> Any:
    page.evaluate(OPEN, TEXT)
    settled(page)
    return page


def settled(page: Any) -> None:
    """Wait until the candidates are those of the present text and settings."""
    page.wait_for_selector(".candidates:not([aria-busy]) .by-rule tr >> nth=1", state="attached")


@dataclass(frozen=True)
class Case:
    """Logits, settings and a text, of which the page and the library say what rules do."""

    logits: Any
    config: Mapping[str, float]
    ids: list[int]
    prompt_length: int
    bias: dict[int, float] = field(default_factory=dict)

    def as_json(self, tokenizer: Tokenizer) -> dict[str, Any]:
        listed = [*self.ids, *self.bias]
        amounts = [[i, None if x == -np.inf else x] for i, x in self.bias.items()]
        return {
            "next": candidates(self.logits, 1000, listed, tokenizer),
            "sampling": dict(self.config),
            "tokens": [named(i, tokenizer) for i in self.ids],
            "promptLength": self.prompt_length,
            "bias": amounts,
        }

    def stages(self, tokenizer: Tokenizer) -> list[Stage]:
        every = enumerate(tokenizer.token_bytes())
        breakers = {i for i, token in every if any(b in token for b in BREAKERS)}
        config = SamplingConfig(**self.config)  # type: ignore[arg-type]
        sampler = Sampler(
            config, generator(0, 0), self.prompt_length, bias=self.bias, breakers=breakers
        )
        return sampler.explain(self.logits[None], self.ids, len(self.logits))


def case(random: np.random.Generator, size: int, config: Mapping[str, float]) -> Case:
    """A text that repeats itself, and logits with ties in every other case."""
    logits = random.normal(0, random.choice([1, 3, 6]), size)
    if random.random() < 0.5:
        logits = np.round(logits * 4) / 4
    ids = random.integers(200, 220, random.integers(1, 60)).tolist()
    bias = {201: -np.inf, 207: 2.5, 300: -1.5} if random.random() < 0.3 else {}
    prompt = int(random.integers(0, len(ids) + 1))
    return Case(logits.astype(np.float32), checked(config), ids, prompt, bias)


def checked(config: Mapping[str, float]) -> dict[str, float]:
    """With what belongs to it, and without what mirostat takes the place of."""
    found = dict(config)
    if "xtc_threshold" in found:
        found["xtc_probability"] = 1.0  # always acts, as the page shows it
    if "mirostat_tau" in found:
        for name in ("top_k", "top_p", "min_p", "typical_p", "xtc_probability"):
            found.pop(name, None)
    return found


def alone() -> list[dict[str, float]]:
    return [{name: value} for name, values in RULES.items() for value in values]


def together(random: np.random.Generator, count: int) -> list[dict[str, float]]:
    return [
        {name: random.choice(values).item() for name, values in RULES.items() if chosen(random)}
        for _ in range(count)
    ]


def chosen(random: np.random.Generator) -> bool:
    return bool(random.random() < 0.5)


def explained(page: Any, cases: list[Case], tokenizer: Tokenizer) -> list[tuple[Any, Any]]:
    """What the page says of each, and what the library says."""
    told = page.evaluate(EXPLAIN, [one.as_json(tokenizer) for one in cases])
    return list(zip(told, [one.stages(tokenizer) for one in cases], strict=True))


def after_of(told: Mapping[str, Any], number: int, stage: Stage) -> tuple[Any, Any]:
    """Probabilities of the tokens that the page knows one by one, by it and by the library."""
    known = {i: after for i, _, after in stage.top}
    return np.array(told["stages"][number]["after"]), np.array([known[i] for i in told["ids"]])


@pytest.mark.parametrize("seed", range(3))
def test_each_rule_alone_does_what_the_library_does(
    page: Any, tokenizer: Tokenizer, seed: int
) -> None:
    random = np.random.default_rng(seed)
    cases = [case(random, 700, config) for config in alone()]
    agree_exactly(explained(page, cases, tokenizer))


@pytest.mark.parametrize("seed", range(3))
def test_rules_together_do_what_the_library_does(
    page: Any, tokenizer: Tokenizer, seed: int
) -> None:
    random = np.random.default_rng(100 + seed)
    cases = [case(random, 900, config) for config in together(random, 60)]
    agree_exactly(explained(page, cases, tokenizer))


def test_where_a_rule_bans_every_token_none_is_left(page: Any, tokenizer: Tokenizer) -> None:
    config = {"no_repeat_ngram": 1, "top_p": 0.9, "xtc_probability": 1.0, "typical_p": 0.5}
    one = Case(np.zeros(40, np.float32), config, list(range(40)), 0)
    agree_exactly(explained(page, [one], tokenizer))


def agree_exactly(found: list[tuple[Any, Any]]) -> None:
    for told, stages in found:
        assert [one["rule"] for one in told["stages"]] == [stage.rule for stage in stages]
        assert [one["candidates"] for one in told["stages"]] == [s.candidates for s in stages]
        assert not any(one["rough"] for one in told["stages"])
        for number, stage in enumerate(stages):
            mine, theirs = after_of(told, number, stage)
            np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=0, err_msg=stage.rule)


def test_of_a_larger_vocabulary_the_page_is_exact_or_says_that_it_is_not(
    page: Any, tokenizer: Tokenizer
) -> None:
    random = np.random.default_rng(7)
    cases = [case(random, 2048, config) for config in alone() * 2 + together(random, 60)]
    sharp = rough = 0
    for told, stages in explained(page, cases, tokenizer):
        for number, stage in enumerate(stages):
            one = told["stages"][number]
            assert one["rule"] == stage.rule
            if one["rough"]:
                rough += 1
                assert abs(one["candidates"] - stage.candidates) < 0.1 * 2048, stage.rule
                break  # what follows from it is about right too
            sharp += 1
            assert one["candidates"] == stage.candidates, stage.rule
            mine, theirs = after_of(told, number, stage)
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=0, err_msg=stage.rule)
    assert rough
    assert sharp > 10 * rough  # what is not known is the exception


def test_a_slider_shows_what_the_server_says_without_asking_it(controls: Any, server: Any) -> None:
    asked: list[str] = []
    controls.on("request", lambda request: asked.append(request.url))
    for field_name, value in (("top_k", 40), ("temperature", 0.63), ("repetition_penalty", 1.31)):
        switch(controls, field_name, on=True)
        number(controls, field_name).fill(str(value))
    slider = controls.locator("[data-field=top_p] input[type=range]")
    slider.focus()
    for _ in range(7):
        slider.press("ArrowLeft")
    assert shown_stages(controls) == server_stages(controls, server)
    assert not [url for url in asked if "/page/v1/" in url]


def test_candidates_that_a_rule_removes_say_which(controls: Any) -> None:
    switch(controls, "top_k")
    number(controls, "top_k").fill("3")
    rows = controls.locator(".choices tbody tr:visible")
    said = [row.locator("td").last.text_content() for row in rows.all()]
    assert len([one for one in said if one.endswith("%")]) <= 3
    assert "out: top-k" in said


def test_a_click_on_a_candidate_offers_its_token(controls: Any) -> None:
    button = controls.locator(".choices button").first
    label = button.get_attribute("aria-label")
    button.click()
    taken = controls.evaluate("() => globalThis.taken")
    assert isinstance(taken["id"], int)
    assert taken["text"].strip() in label


def test_a_drag_is_undone_in_one_step_and_takes_a_frame_at_most(controls: Any) -> None:
    slider = controls.locator("[data-field=temperature] input[type=range]")
    before = number(controls, "temperature").input_value()
    times = slider.evaluate(DRAG)
    assert number(controls, "temperature").input_value() == "1.2"
    assert times[len(times) // 2] <= 16  # milliseconds
    controls.evaluate("() => own.store.undo()")
    assert number(controls, "temperature").input_value() == before


def test_mirostat_and_what_it_replaces_are_never_on_together(controls: Any) -> None:
    for name in ("top_k", "min_p"):
        switch(controls, name)
    controls.locator("summary", has_text="among the likely").click()
    switch(controls, "mirostat_tau")
    assert not controls.locator("[data-field=top_k] [role=switch]").is_checked()
    assert not controls.locator("[data-field=min_p] [role=switch]").is_checked()
    assert "off" in controls.locator("#status").text_content()
    switch(controls, "top_p")
    assert not controls.locator("[data-field=mirostat_tau] [role=switch]").is_checked()


def test_what_the_server_would_refuse_is_said_at_the_field_and_not_set(controls: Any) -> None:
    top_p = number(controls, "top_p")
    switch(controls, "top_p", on=True)
    top_p.fill("0.5")
    top_p.fill("1.5")
    assert top_p.get_attribute("aria-invalid") == "true"
    assert controls.locator("[data-field=top_p] .wrong").is_visible()
    assert controls.evaluate("() => own.store.state.settings.sampling.top_p") == 0.5
    top_p.blur()
    assert top_p.input_value() == "0.5"


def test_a_constraint_shows_its_stage_and_a_wrong_one_what_is_wrong(
    controls: Any, watched: Any
) -> None:
    watched.forgive("400")
    controls.locator("#constraint").select_option("regex")
    controls.locator("#constraint-value").fill("(")
    controls.wait_for_selector("#constraint-wrong:not(:empty)")
    assert controls.locator("#constraint-value").get_attribute("aria-invalid") == "true"
    controls.locator("#constraint-value").fill(" (king|queen)")
    controls.wait_for_selector(".by-rule th:text-is('constraint')", state="attached")
    assert not controls.locator("#constraint-wrong").text_content()


def test_the_models_own_settings_come_back(controls: Any) -> None:
    own = controls.get_by_role("button", name="Back to the model's own")
    assert own.is_disabled()
    before = shown_stages(controls)
    switch(controls, "repetition_penalty")
    assert shown_stages(controls) != before
    own.click()
    assert shown_stages(controls) == before


def test_stop_texts_and_seed_are_read_as_they_are_explained(controls: Any) -> None:
    controls.locator("#stop").fill("\\n\\n\nExeunt\n")
    controls.locator("#seed").fill("1234")
    settings = "() => own.store.state.settings"
    assert controls.evaluate(settings)["stop"] == ["\n\n", "Exeunt"]
    assert controls.evaluate(settings)["seed"] == 1234
    controls.locator("#seed").fill("12e4")
    assert controls.locator("#seed").get_attribute("aria-invalid") == "true"
    assert controls.evaluate(settings)["seed"] == 1234
    controls.locator("#seed").fill("")
    assert controls.evaluate(settings)["seed"] is None


def switch(page: Any, name: str, *, on: bool | None = None) -> None:
    """Turn a rule on or off, in a group that may be closed."""
    one = page.locator(f"[data-field={name}] [role=switch]")
    if on is None or one.is_checked() != on:
        one.evaluate("(element) => element.click()")


def number(page: Any, name: str) -> Any:
    return page.locator(f"[data-field={name}] input[type=number]")


def shown_stages(page: Any) -> list[tuple[str, str]]:
    """Rules and how many tokens they leave, as the table has them."""
    rows = page.locator(".by-rule tbody tr").all()
    return [(r.locator("th").text_content(), r.locator("td").text_content()) for r in rows]


def server_stages(page: Any, server: Any) -> list[tuple[str, str]]:
    settings = page.evaluate("() => ({...own.store.state.settings.sampling, prompt: own.ids})")
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}/page/v1/stages",
        json.dumps(settings).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        stages = json.load(answer)["stages"]
    return [(one["rule"], f"{one['candidates']:,}") for one in stages]
