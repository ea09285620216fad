"""A decoder under interventions: what it says with a cache is what the model says without one.

Expected logits come from the model reading each text afresh, under the same interventions, which
`tests/model/test_interventions.py` holds to transformers.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import needs_engine

import gpt2cli
from gpt2cli import Interventions, LoadedModel
from gpt2cli.arrays import NDArray
from gpt2cli.decoders.pages import PAGE, Chunk
from gpt2cli.decoders.torch_decoder import TorchDecoder
from gpt2cli.errors import UsageError
from gpt2cli.model import interventions
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.text.window import slide

STEER = {"towards": "fox jumps", "away": "dog", "layer": 1, "strength": 3.0}
PLANS = {
    "heads and mlp": Interventions.of(["0.1", "1.2", "mlp.0"]),
    "means": Interventions.of(["1.0", "attention.0"], "mean", "The quick brown fox"),
    "hidden": Interventions.of(["position.0", "position.3"]),
    "steered": Interventions.of(steer=[STEER]),
    "all": Interventions.of(["1.1", "position.2"], steer=[STEER | {"first": 7}]),
}
Read = Callable[[list[int]], NDArray]


@pytest.fixture(params=PLANS.values(), ids=PLANS)
def plan(request: pytest.FixtureRequest) -> Interventions:
    found: Interventions = request.param
    return found


def afresh(model: GPT2, tokenizer: Tokenizer, plan: Interventions) -> Read:
    """The logits after a text (V,), without a cache."""
    edits = interventions.edits(model, plan, tokenizer)

    def read(ids: list[int]) -> NDArray:
        with torch.inference_mode():
            logits: NDArray = model(torch.tensor([ids]), edits=edits)[0, -1].numpy()
        return logits

    return read


def near(found: Any, expected: list[NDArray]) -> bool:
    return np.allclose(np.asarray(found), np.stack(expected), atol=1e-4)


def test_chunks_steps_and_forks_say_what_reading_afresh_says(
    tiny_model: GPT2, tiny_tokenizer: Tokenizer, plan: Interventions
) -> None:
    read = afresh(tiny_model, tiny_tokenizer, plan)
    edits = interventions.edits(tiny_model, plan, tiny_tokenizer)
    decoder = TorchDecoder(tiny_model, 6 * PAGE, edits=edits)
    a, b = torch.randint(0, 300, (2, 32), generator=torch.Generator().manual_seed(3)).tolist()
    one, two = decoder.open(), decoder.open()
    # Prompts of two lengths, one of them in two chunks; then a step of each, side by side.
    assert near(decoder.read([Chunk(one, 0, a[:6])]), [read(a[:6])])
    found = decoder.read([Chunk(one, 6, a[6:20]), Chunk(two, 0, b[:9])])
    assert near(found, [read(a[:20]), read(b[:9])])
    found = decoder.read([Chunk(one, 20, a[20:21]), Chunk(two, 9, b[9:10])])
    assert near(found, [read(a[:21]), read(b[:10])])
    # A fork that goes on otherwise, and a chunk whose every token is asked about.
    three = decoder.fork(one)
    found = decoder.read([Chunk(three, 21, b[:4], every=True)])
    assert near(found, [read(a[:21] + b[:n]) for n in (1, 2, 3, 4)])
    # Back to an earlier place.
    assert near(decoder.read([Chunk(two, 4, a[4:9])]), [read(b[:4] + a[4:9])])


@pytest.fixture(scope="module")
def opened(tiny_directory: Path) -> LoadedModel:
    return gpt2cli.load(str(tiny_directory), device="cpu", precision="fp32")


def test_a_text_is_the_one_that_reading_afresh_gives(
    opened: LoadedModel, tiny_model: GPT2, plan: Interventions
) -> None:
    read = afresh(tiny_model, opened.tokenizer, plan)
    ids = opened.encode("The quick brown")
    text: list[int] = []
    for _ in range(12):
        text.append(int(read(ids + text).argmax()))
    found = opened.under(plan).generate("The quick brown", temperature=0, max_tokens=12)
    assert found.token_ids == text
    assert text != opened.generate("The quick brown", temperature=0, max_tokens=12).token_ids


def test_a_full_context_slides_under_interventions_too(
    opened: LoadedModel, tiny_model: GPT2
) -> None:
    plan = PLANS["means"]
    read = afresh(tiny_model, opened.tokenizer, plan)
    window = opened.encode("The quick brown fox jumps over")
    text: list[int] = []
    for _ in range(40):
        if len(window) > 32:
            window = slide(window, 32)
        text.append(int(read(window).argmax()))
        window = [*window, text[-1]]
    settings = {"temperature": 0, "max_tokens": 40, "ignore_eos": True}
    found = opened.under(plan).generate("The quick brown fox jumps over", **settings)
    assert found.token_ids == text


def test_many_texts_are_those_written_alone(opened: LoadedModel, plan: Interventions) -> None:
    changed = opened.under(plan)
    prompts = ["The quick brown", "The", "ROMEO: But soft", "The quick fox", "1234 567."]
    settings: dict[str, Any] = {"max_tokens": 8, "seed": 5, "ignore_eos": True}
    alone = [changed.generate(prompt, **settings).token_ids for prompt in prompts]
    with opened.under(plan) as fresh:
        together = [found.token_ids for found in fresh.complete(prompts, **settings)]
    assert together == alone
    samples = changed.generate("The", samples=3, **settings).samples
    assert samples[0].token_ids == alone[1]


def test_a_text_is_scored_under_interventions_too(
    opened: LoadedModel, tiny_model: GPT2, plan: Interventions
) -> None:
    ids = opened.encode("The quick brown fox jumps")
    edits = interventions.edits(tiny_model, plan, opened.tokenizer)
    with torch.inference_mode():
        logits = tiny_model(torch.tensor([ids]), edits=edits)[0]
    bits = -logits.double().log_softmax(-1)[range(len(ids) - 1), ids[1:]].numpy() / np.log(2)
    score = opened.under(plan).score("The quick brown fox jumps")
    np.testing.assert_allclose(score.bits[1:], bits, atol=1e-4)


def test_what_runs_is_told(opened: LoadedModel) -> None:
    changed = opened.under(PLANS["all"])
    facts = changed.facts()
    assert facts["engine"] == "PyTorch"
    assert Interventions.of(**facts["interventions"]) == PLANS["all"]
    assert changed.title.endswith("without 1.1, position.2 and steered in layer 1")
    assert pickle.loads(pickle.dumps(changed)).facts() == facts
    assert "interventions" not in opened.facts()
    assert "interventions" not in changed.under(Interventions()).facts()


def test_what_a_model_has_not_is_refused_before_weights_are_read(opened: LoadedModel) -> None:
    with pytest.raises(UsageError, match=r"there is no head 2\.0: layers are 0 to 1"):
        opened.under(Interventions.of(["2.0"]))


@needs_engine
def test_quantized_weights_have_no_inside_to_change(tiny_directory: Path) -> None:
    quantized = gpt2cli.load(str(tiny_directory), precision="int8")
    with pytest.raises(UsageError, match="no precision int8"):
        quantized.under(PLANS["hidden"])
