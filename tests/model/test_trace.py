"""What `gpt2 inspect` measures, against transformers' hidden states and attentions."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import random_model
from transformers import GPT2LMHeadModel

from gpt2cli.config.model import ModelConfig
from gpt2cli.model import trace
from gpt2cli.model.edits import Edits
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.model.trace import Trace
from gpt2cli.weights import checkpoint

IDS = torch.randint(0, 300, (20,), generator=torch.Generator().manual_seed(1)).tolist()
N = 7  # tokens of which details are kept


@pytest.fixture(scope="module", params=[True, False], ids=["qkv bias", "no qkv bias"])
def model(tiny_config: ModelConfig, request: pytest.FixtureRequest) -> GPT2:
    return random_model(replace(tiny_config, qkv_bias=request.param))


@pytest.fixture(scope="module")
def theirs(model: GPT2, tmp_path_factory: pytest.TempPathFactory) -> GPT2LMHeadModel:
    directory = tmp_path_factory.mktemp("theirs")
    checkpoint.save(model, directory, end_of_text=0, dtype=torch.float32)
    return GPT2LMHeadModel.from_pretrained(directory, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def seen(theirs: GPT2LMHeadModel) -> tuple[Any, dict[str, torch.Tensor]]:
    """Outputs of transformers, and what goes in and out of each of its modules."""
    passed: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Any:
        def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor], output: Any) -> None:
            passed[name + " in"] = inputs[0][0]
            passed[name + " out"] = (output[0] if isinstance(output, tuple) else output)[0]

        return hook

    hooks = [
        module.register_forward_hook(watch(name))
        for name, module in theirs.transformer.named_modules()
        if name.endswith(("ln_1", "ln_2", "ln_f", "attn", "c_proj", "mlp", "wte", "wpe"))
    ]
    with torch.inference_mode():
        output = theirs(torch.tensor([IDS]), output_attentions=True, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    return output, passed


@pytest.fixture(scope="module")
def traced(model: GPT2) -> Trace:
    return trace.trace(model, IDS, N)


def close(ours: Any, reference: Any) -> bool:
    return bool(np.allclose(np.asarray(ours), np.asarray(reference), atol=2e-5, rtol=1e-4))


def test_the_stream_is_transformers_hidden_states(traced: Trace, seen: Any) -> None:
    output, passed = seen
    # Their last state is the one after ln_f.
    for layer, state in enumerate(output.hidden_states[:-1]):
        assert close(traced.stream[2 * layer], state[0, -N:])
    assert close(traced.stream[1], passed["h.0.ln_2 in"][-N:])
    assert close(traced.stream[-1], passed["ln_f in"][-N:])


def test_what_is_added_is_what_their_attention_and_mlp_return(traced: Trace, seen: Any) -> None:
    for layer in range(2):
        assert close(traced.added[2 * layer], seen[1][f"h.{layer}.attn out"][-N:])
        assert close(traced.added[2 * layer + 1], seen[1][f"h.{layer}.mlp out"][-N:])


def test_attention_is_that_of_transformers_and_rows_sum_to_one(traced: Trace, seen: Any) -> None:
    assert traced.attention.shape == (2, 3, N, len(IDS))
    for layer, attention in enumerate(seen[0].attentions):
        assert close(traced.attention[layer], attention[0, :, -N:])
    assert close(traced.attention.sum(-1), np.ones((2, 3, N)))


def test_heads_add_up_to_the_attention_of_their_layer(model: GPT2, traced: Trace) -> None:
    heads = trace.writers(model, traced).heads
    for layer, block in enumerate(model.blocks):
        total = heads[layer].sum(0) + block.attention.out.bias
        assert close(total, traced.added[2 * layer, -1])


@torch.inference_mode()
def test_a_head_adds_what_is_lost_without_it(
    theirs: GPT2LMHeadModel, model: GPT2, traced: Trace, seen: Any
) -> None:
    heads = trace.writers(model, traced).heads
    before_output = seen[1]["h.1.attn.c_proj in"][-1]  # heads side by side
    c_proj = theirs.transformer.h[1].attn.c_proj
    for head in range(3):
        without = before_output.clone()
        without[8 * head : 8 * head + 8] = 0
        assert close(heads[1, head], c_proj(before_output) - c_proj(without))


@torch.inference_mode()
def test_the_lens_is_their_final_norm_and_head_after_each_layer(
    model: GPT2, theirs: GPT2LMHeadModel, traced: Trace, seen: Any
) -> None:
    for layer in range(2):
        state = seen[0].hidden_states[layer][0, -N:]
        expected = theirs.lm_head(theirs.transformer.ln_f(state))
        assert close(trace.lens(model, traced.stream[2 * layer]), expected)
    assert close(trace.lens(model, traced.stream[-1]), seen[0].logits[0, -N:])


def test_norm_statistics_are_those_of_what_passes_their_norms(
    model: GPT2, theirs: GPT2LMHeadModel, traced: Trace, seen: Any
) -> None:
    statistics = trace.norm_statistics(model, traced)
    names = ["h.0.ln_1", "h.0.ln_2", "h.1.ln_1", "h.1.ln_2", "ln_f"]
    for i, name in enumerate(names):
        x, y = (seen[1][f"{name} {side}"][-N:].double().numpy() for side in ("in", "out"))
        norm = theirs.transformer.get_submodule(name)
        normalised = (y - norm.bias.detach().numpy()) / norm.weight.detach().numpy()
        for array, suffix in ((x, "in"), (normalised, "normalised"), (y, "out")):
            assert close(getattr(statistics, f"mean_{suffix}")[i], array.mean(-1))
            assert close(getattr(statistics, f"variance_{suffix}")[i], array.var(-1))
    assert np.allclose(statistics.mean_normalised, 0, atol=1e-6)
    assert np.allclose(statistics.variance_normalised, 1, atol=1e-3)


def test_contributions_add_up_to_the_logit(model: GPT2, traced: Trace, seen: Any) -> None:
    for token in (0, 17, 299):
        split = trace.contributions(model, traced, token)
        assert split.total == pytest.approx(seen[0].logits[0, -1, token].item(), abs=1e-4)


@torch.inference_mode()
def test_a_contribution_is_what_the_logit_loses_without_it_at_the_same_scale(
    theirs: GPT2LMHeadModel, model: GPT2, traced: Trace, seen: Any
) -> None:
    token, x = 17, seen[1]["ln_f in"][-1].double()
    norm = copy.deepcopy(theirs.transformer.ln_f).double()
    sigma = torch.sqrt(x.var(correction=0) + norm.eps)

    def logit(stream: torch.Tensor) -> float:
        normed = (stream - stream.mean()) / sigma * norm.weight + norm.bias
        return float(normed @ theirs.lm_head.weight[token].double())

    def share(part: torch.Tensor) -> float:
        return logit(x) - logit(x - part.double())

    split = trace.contributions(model, traced, token)
    passed = seen[1]
    assert split.token_embedding == pytest.approx(share(passed["wte out"][-1]), abs=1e-5)
    assert split.position_embedding == pytest.approx(share(passed["wpe out"][-1]), abs=1e-5)
    for layer in range(2):
        mlp = share(passed[f"h.{layer}.mlp out"][-1])
        assert split.feed_forward[layer] == pytest.approx(mlp, abs=1e-5)
        attention = split.heads[layer].sum() + split.attention_bias[layer]
        assert attention == pytest.approx(share(passed[f"h.{layer}.attn out"][-1]), abs=1e-5)
    assert split.final_shift == pytest.approx(logit(torch.full_like(x, 3.0)), abs=1e-5)


@torch.inference_mode()
def test_neurons_are_those_of_their_mlp_and_add_up_to_what_it_adds(
    theirs: GPT2LMHeadModel, model: GPT2, traced: Trace, seen: Any
) -> None:
    token, inner = 17, 4 * model.config.emb_dim
    every = trace.neurons(model, traced, token, inner)
    split = trace.contributions(model, traced, token)
    towards = trace.direction(model, traced, token)
    for layer, block in enumerate(theirs.transformer.h):
        activations = seen[1][f"h.{layer}.mlp.c_proj in"][-1]
        assert close(every.activation[layer], activations[every.index[layer]])
        sizes = np.abs(every.activation[layer])
        assert (sizes[:-1] >= sizes[1:]).all()
        bias = float(block.mlp.c_proj.bias @ towards)
        total = float(every.logit[layer].sum()) + bias
        assert total == pytest.approx(split.feed_forward[layer], abs=1e-4)
        strongest = int(every.index[layer, 0])
        without = activations.clone()
        without[strongest] = 0
        lost = block.mlp.c_proj(activations) - block.mlp.c_proj(without)
        assert every.logit[layer, 0] == pytest.approx(float(lost @ towards), abs=1e-4)
    few = trace.neurons(model, traced, token, 3)
    assert (few.index == every.index[:, :3]).all()


def test_what_an_edit_replaces_comes_of_no_neuron_and_no_head(model: GPT2) -> None:
    zero: Any = [lambda x, positions: x * 0 + 0.5]
    edits = Edits({("feed_forward", 0): zero, ("attention", 1): zero})
    changed = trace.trace(model, IDS, 1, edits)
    neurons = trace.neurons(model, changed, 17, 4)
    assert not neurons.logit[0].any()
    assert neurons.logit[1].all()
    split = trace.contributions(model, changed, 17)
    assert not split.heads[1].any()
    assert split.total == pytest.approx(
        float(trace.lens(model, changed.stream[-1])[0, 17]), abs=1e-4
    )


def test_one_token_of_a_trace_is_the_end_of_a_shorter_text(model: GPT2) -> None:
    every = trace.trace(model, IDS, len(IDS))
    for position in (0, 7, len(IDS) - 1):
        part, alone = every.at(position), trace.trace(model, IDS[: position + 1], 1)
        assert part.ids == alone.ids == tuple(IDS[: position + 1])
        for name in ("stream", "added", "attention", "mixed", "steered"):
            assert close(getattr(part, name), getattr(alone, name))
        ours, theirs = (trace.contributions(model, t, 17).parts() for t in (part, alone))
        assert ours == pytest.approx(theirs, abs=1e-4)
    with pytest.raises(ValueError, match="position 3"):
        trace.trace(model, IDS, N).at(3)


def test_a_pass_can_be_ended_after_each_layer(model: GPT2) -> None:
    done: list[int] = []

    def stop(count: int) -> None:
        done.append(count)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trace.trace(model, IDS, N, advance=stop)
    assert done == [1]


def test_no_tokens_and_too_many_are_refused(model: GPT2) -> None:
    for ids in ([], [1] * 33):
        with pytest.raises(ValueError, match=f"{len(ids)} tokens"):
            trace.trace(model, ids, N)
