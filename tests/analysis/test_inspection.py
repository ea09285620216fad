"""What is seen within a model: windows and sums."""

from __future__ import annotations

import pytest
import torch
from helpers import PROMPT

from gpt2cli.analysis import effects, inspection
from gpt2cli.analysis.inspection import Inspection
from gpt2cli.config.interventions import Interventions
from gpt2cli.model import interventions
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.model.trace import trace
from gpt2cli.text.tokenizer import Tokenizer


def test_a_window_keeps_the_numbers_and_says_what_went_before(
    tiny_model: GPT2, tiny_tokenizer: Tokenizer, tiny_inspection: Inspection
) -> None:
    ids = tiny_tokenizer.encode(PROMPT)[:32]
    part = inspection.inspect(tiny_model, tiny_tokenizer, ids, window=5)
    assert (part.first, part.ids) == (27, ids[-5:])
    assert part.target == tiny_inspection.target
    assert (part.attention == tiny_inspection.attention[..., -5:, -5:]).all()
    assert part.attention.sum(-1) + part.attention_before == pytest.approx(1, abs=1e-5)
    assert not tiny_inspection.attention_before.any()
    assert (part.norms.mean_in == tiny_inspection.norms.mean_in[:, -5:]).all()


def test_parts_are_sorted_and_add_up(tiny_inspection: Inspection) -> None:
    parts = tiny_inspection.contributions.parts()
    assert len(parts) == 3 + 2 * (3 + 2)
    assert sum(parts.values()) == pytest.approx(tiny_inspection.target.logit, abs=1e-4)
    sizes = [abs(value) for value in parts.values()]
    assert sizes == sorted(sizes, reverse=True)


def test_another_token_is_taken_apart_beside_the_target(
    tiny_model: GPT2, tiny_tokenizer: Tokenizer, tiny_inspection: Inspection
) -> None:
    ids = tiny_tokenizer.encode(PROMPT)[:32]
    other = tiny_inspection.next[3].id
    found = inspection.inspect(tiny_model, tiny_tokenizer, ids, versus=other)
    alone = inspection.inspect(tiny_model, tiny_tokenizer, ids, token=other)
    assert found.versus is not None
    assert found.target == tiny_inspection.target
    assert found.versus.target == alone.target == tiny_inspection.next[3]
    assert found.versus.contributions.parts() == alone.contributions.parts()
    rows = found.as_dict(["neurons"])
    assert rows["versus"]["heads"] == alone.as_dict(["contributions"])["contributions"]["heads"]
    assert {len(layer) for layer in rows["neurons"]} == {inspection.NEURONS}
    assert set(rows["neurons"][0][0]) == {"index", "activation", "logit", "versus"}


@torch.inference_mode()
def test_embeddings_have_the_lengths_of_their_rows(
    tiny_model: GPT2, tiny_tokenizer: Tokenizer, tiny_inspection: Inspection
) -> None:
    ids = tiny_tokenizer.encode(PROMPT)[:32]
    token = tiny_model.token_embedding.weight[ids[-1]].norm().item()
    place = tiny_model.position_embedding.weight[len(ids) - 1].norm().item()
    assert tiny_inspection.embedding.token == pytest.approx(token, abs=1e-5)
    assert tiny_inspection.embedding.position == pytest.approx(place, abs=1e-5)


def test_the_lens_does_not_depend_on_its_pieces(
    tiny_model: GPT2, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = tiny_tokenizer.encode(PROMPT)[:32]
    stream = trace(tiny_model, ids, 32).stream[::2]
    whole, pieces = inspection.lens(tiny_model, tiny_tokenizer, stream), []
    monkeypatch.setattr(inspection, "_ROWS", 7)
    cut = inspection.lens(tiny_model, tiny_tokenizer, stream, advance=pieces.append)
    assert len(pieces) == -(-3 * 32 // 7)
    assert cut.texts == whole.texts
    assert cut.probabilities == pytest.approx(whole.probabilities, abs=1e-6)


def test_effects_of_known_predictions_are_those_of_edits(
    tiny_model: GPT2, tiny_tokenizer: Tokenizer
) -> None:
    ids = tiny_tokenizer.encode(PROMPT)[:32]
    plan = Interventions.of(["1.2", "mlp.0"])
    edits = interventions.edits(tiny_model, plan, tiny_tokenizer)
    expected = effects.effect(tiny_model, tiny_tokenizer, ids, edits, token=5, top=4)
    logits = [
        inspection.final_logits(tiny_model, tiny_tokenizer, trace(tiny_model, ids, 1, one))
        for one in (None, edits)
    ]
    found = effects.compare(tiny_tokenizer, *logits, token=5, top=4)
    assert found.kl == pytest.approx(expected.kl, abs=1e-5)
    assert [token.id for token in found.tokens] == [token.id for token in expected.tokens]
    for ours, reference in zip(found.tokens, expected.tokens, strict=True):
        assert ours.before.rank == reference.before.rank
        assert ours.after.probability == pytest.approx(reference.after.probability, abs=1e-5)
