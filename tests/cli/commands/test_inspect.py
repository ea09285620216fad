"""`gpt2 inspect` as a shell sees it: text, JSON, files."""

from __future__ import annotations

import json
import math
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import BARD_SIZE, Run, needs_full_device
from transformers import GPT2LMHeadModel

from gpt2cli.api import load
from gpt2cli.cli.commands.inspect import SECTIONS

LAYERS, HEADS = BARD_SIZE.n_layers, BARD_SIZE.n_heads


def test_json_holds_what_transformers_computes(run_main: Run, tiny_directory: Path) -> None:
    done = run_main("inspect", "The quick", "-m", str(tiny_directory), "--token", "q", "--json")
    assert done.stderr == b""
    data = json.loads(done.stdout)
    assert set(SECTIONS) < set(data)
    theirs = GPT2LMHeadModel.from_pretrained(tiny_directory, attn_implementation="eager").eval()
    ids = [token["id"] for token in data["tokens"]]
    assert "".join(token["text"] for token in data["tokens"]) == data["prompt"] == "The quick"
    with torch.no_grad():
        output = theirs(torch.tensor([ids]), output_attentions=True, output_hidden_states=True)
        logits = output.logits[0, -1]
        after = theirs.transformer.ln_f(output.hidden_states[1][0])
        lens = theirs.lm_head(after).softmax(-1).sort(descending=True)
    best = logits.argsort(descending=True).tolist()
    assert [choice["id"] for choice in data["next"]] == best[:10]
    target = data["target"]
    assert target["text"] == "q"
    assert target["rank"] == 1 + best.index(target["id"])
    assert target["logit"] == pytest.approx(logits[target["id"]].item(), abs=1e-4)
    assert target["probability"] == pytest.approx(logits.softmax(-1)[target["id"]].item(), 1e-3)
    for layer, attention in enumerate(output.attentions):
        for head, theirs_weights in enumerate(attention[0].tolist()):
            for ours, reference in zip(data["attention"][layer][head], theirs_weights, strict=True):
                assert ours == pytest.approx(reference, abs=2e-5)
    lengths = [state[0].norm(dim=-1).tolist() for state in output.hidden_states[:-1]]
    assert data["activations"]["stream"][0] == pytest.approx(lengths[0], rel=1e-4)
    assert data["activations"]["stream"][1] == pytest.approx(lengths[1], rel=1e-4)
    for t, place in enumerate(data["lens"]["probabilities"][1]):
        assert place == pytest.approx(lens.values[t, :3].tolist(), rel=1e-3)
        assert data["lens"]["ids"][1][t] == lens.indices[t, :3].tolist()
    assert data["lens"]["target_rank"][-1] == target["rank"]
    assert data["lens"]["target_probability"][-1] == pytest.approx(target["probability"], rel=1e-4)


# On paper.


def test_the_overview_is_short_and_right(run_main: Run) -> None:
    done = run_main("inspect", "ROMEO:", "-m", "bard")
    assert done.stderr == b""
    text = done.stdout.decode()
    assert "Attention" not in text
    assert len(text.splitlines()) < 60
    data = json.loads(
        run_main("inspect", "ROMEO:", "-m", "bard", "--json", "--show", "next").stdout
    )
    assert set(data) == set(load("bard").facts()) | {"prompt", "first", "tokens", "target", "next"}
    assert data["target"] == data["next"][0]
    assert data["target"]["text"] == "\n"  # what follows a speaker's name
    line = next(line for line in text.splitlines() if line.startswith("↵"))
    assert f"{data['target']['probability']:.2%}" in line
    assert f"{data['target']['logit']:.3f}" in line


def test_untrusted_text_is_shown_as_it_is(run_main: Run) -> None:
    done = run_main("inspect", "[red]a[/red]:smile:\x1b[2J", "-m", "bard", "--show", "all")
    assert b"\x1b" not in done.stdout
    assert b":smile" not in done.stdout.replace(b"smile", b"")
    assert "␛".encode() in done.stdout


def test_what_speaks_for_one_token_rather_than_another_adds_up_to_the_difference(
    run_main: Run,
) -> None:
    command = ("inspect", "O Romeo, Romeo! wherefore art thou", "-m", "bard", "--versus", "!")
    show = ("--show", "contributions,neurons,embedding")
    data = json.loads(run_main(*command, "--json", *show).stdout)
    other = data["versus"]
    assert (data["target"]["text"], other["target"]["text"]) == ("?", "!")
    alone = run_main(*command[:-2], "--token", "!", "--json", *show).stdout
    split = json.loads(alone)["contributions"]
    assert {name: other[name] for name in split} == split
    lines = run_main(*command, *show).stdout.decode().splitlines()
    difference = data["target"]["logit"] - other["target"]["logit"]
    assert any(f"logit of ? less that of !, {difference:.3f}" in line for line in lines)
    head = data["contributions"]["heads"][3][2] - other["heads"][3][2]
    neuron = data["neurons"][0][0]
    adds = neuron["logit"] - neuron["versus"]
    for start, end in (
        ("together, the difference", f"{difference:+.3f}"),
        ("head 3.2", f"{head:+.3f}"),
        (f"0      {neuron['index']:,}", f"{adds:+.3f}"),
        ("position 12", f"{data['embedding']['position']:.3f}"),
    ):
        assert [line for line in lines if line.startswith(start) and line.endswith(end)]


# Sections, choices and what is wrong with them.


def test_sections_are_shown_in_the_order_asked_for(run_main: Run) -> None:
    done = run_main("inspect", "x", "-m", "bard", "--show", "norms, next", "--layer", "0")
    text = done.stdout.decode()
    places = [text.index(title) for title in ("Layer norms", "most probable", "layer 0, the mean")]
    assert places == sorted(places)
    assert "Logit lens" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layer", str(LAYERS)], f"layer must be 0 to {LAYERS - 1}, not {LAYERS}"),
        (["--layer", "-1"], f"layer must be 0 to {LAYERS - 1}, not -1"),
        (["--head", str(HEADS)], f"head must be 0 to {HEADS - 1}, not {HEADS}"),
        (["--head", "1", "--all-heads"], "--head and --all-heads exclude each other"),
        (["--show", "lense"], "unknown section 'lense'"),
        (["--show", "lense"], "did you mean 'lens'?"),
        (["--token", "mind that"], "tokens, not one: "),
        (["--token", ""], "'' is 0 tokens, not one"),
        (["--html", "/nowhere/page.html"], "cannot write /nowhere/page.html"),
        (["--png", "/"], "cannot write /: it is a directory"),
        (["--device", "gpu"], "unknown device 'gpu'"),
        (["-f", "missing.txt"], "cannot read missing.txt"),
    ],
)
def test_wrong_use_is_one_sentence(run_main: Run, arguments: list[str], message: str) -> None:
    done = run_main("inspect", "x", "-m", "bard", *arguments, code=2)
    assert done.stdout == b""
    assert message in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1


def test_a_long_prompt_is_cut_with_the_usual_notice(run_main: Run, tiny_directory: Path) -> None:
    arguments = ("-m", str(tiny_directory), "--json", "--last", "4")
    done = run_main("inspect", *arguments, stdin=b"0 1 2 3 4 5 6 " * 20)
    assert b"tokens are dropped" in done.stderr
    data = json.loads(done.stdout)
    assert (data["first"], len(data["tokens"])) == (20, 4)


# Interventions.


def test_what_is_switched_off_is_told_before_and_after(run_main: Run, tiny_directory: Path) -> None:
    command = ("inspect", "The quick", "-m", str(tiny_directory), "--json", "--top", "3")
    before = json.loads(run_main(*command).stdout)
    arguments = ("--ablate", "1.2", "--ablate", "mlp.0")
    after = json.loads(run_main(*command, *arguments).stdout)
    assert "effect" not in before
    assert after["interventions"]["ablate"] == ["1.2", "mlp.0"]
    ids = torch.tensor([[token["id"] for token in before["tokens"]]])
    theirs = GPT2LMHeadModel.from_pretrained(tiny_directory).eval()

    def zeros(module: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        inputs[0][..., 16:] = 0
        return inputs

    with torch.no_grad():
        plain = theirs(ids).logits[0, -1].double()
        theirs.transformer.h[1].attn.c_proj.register_forward_pre_hook(zeros)
        theirs.transformer.h[0].mlp.register_forward_hook(lambda *given: given[2] * 0)
        changed = theirs(ids).logits[0, -1].double()
    listed = {*plain.topk(3).indices.tolist(), *changed.topk(3).indices.tolist()}
    assert {token["id"] for token in after["effect"]["tokens"]} == listed
    for token in after["effect"]["tokens"]:
        for when, logits in (("before", plain), ("after", changed)):
            stands = token[when]
            assert stands["logit"] == pytest.approx(logits[token["id"]].item(), abs=1e-4)
            p = logits.softmax(-1)[token["id"]].item()
            assert stands["probability"] == pytest.approx(p, rel=1e-3)
            assert stands["rank"] == 1 + int((logits > logits[token["id"]]).sum())
    p, q = plain.log_softmax(-1), changed.log_softmax(-1)
    kl = torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum").item()
    assert after["effect"]["kl"] == pytest.approx(kl / math.log(2), rel=1e-3)
    # All else is that of the changed model.
    assert after["next"][0]["id"] == changed.argmax().item()
    assert after["contributions"]["heads"][1][2] == after["contributions"]["feed_forward"][0] == 0


def test_the_table_shows_both_sides_and_a_page_too(run_main: Run, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    command = ("inspect", "O Romeo, Romeo! wherefore art thou", "-m", "bard")
    mean = (*command, "--ablate", "2.3", "--ablate-with", "mean")
    text = run_main(*mean, "--show", "next").stdout.decode()
    assert re.search(r"^token +before +after +logit before +logit after$", text, re.MULTILINE)
    assert re.search(r"^\? .* 43\.\d+% +15\.\d+% ", text, re.MULTILINE)
    run_main(*mean, "--html", str(page))
    held = json.loads(page.read_text().split('id="data">')[1].split("</script>")[0])
    assert held["effect"]["tokens"][0]["label"] == "?"
    assert "bard without 2.3" in page.read_text()


def test_means_are_over_the_prompt_or_a_file(run_main: Run, tmp_path: Path) -> None:
    same, other = tmp_path / "same", tmp_path / "other"
    same.write_text("ROMEO: But soft")
    other.write_text("It is the east, and Juliet is the sun.")
    command = ("inspect", "ROMEO: But soft", "-m", "bard", "--ablate", "mlp.2", "--json")
    found = {}
    for name, more in {
        "": (),
        "same": ("--reference", str(same)),
        "other": ("--reference", str(other)),
    }.items():
        done = run_main(*command, "--ablate-with", "mean", "--show", "next", *more)
        found[name] = json.loads(done.stdout)["effect"]
    assert found[""] == found["same"] != found["other"]


def test_steering_moves_what_is_predicted(run_main: Run) -> None:
    command = ("inspect", "I", "-m", "bard", "--show", "next,contributions", "--json")
    steer = ("--steer", " love", "--steer-away", " hate", "--steer-layer", "3")
    data = json.loads(
        run_main(*command, *steer, "--steer-strength", "0.5", "--token", " love").stdout
    )
    assert data["interventions"]["steer"] == [
        {"towards": " love", "away": " hate", "layer": 3, "strength": 0.5, "first": 0}
    ]
    assert data["contributions"]["steering"] != 0
    assert data["effect"]["kl"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ablate", "4.0"], "there is no head 4.0: layers are 0 to 3"),
        (["--ablate", "0.4"], "there is no head 0.4: the heads of a layer are 0 to 3"),
        (["--ablate", "position.1"], "there is no position.1: the text has 1 token"),
        (["--ablate", "head.1"], "cannot ablate 'head.1': give a head as 5.6"),
        (["--ablate-with", "mean"], "--ablate-with needs --ablate"),
        (["--ablate", "0.0", "--ablate-with", "x"], "--ablate-with must be zero or mean, not 'x'"),
        (["--ablate", "0.0", "--reference", "x"], "--reference needs --ablate-with mean"),
        (["--steer", "a"], "--steer needs --steer-away"),
        (["--steer-layer", "1"], "--steer-layer needs --steer"),
        (["--steer", "a", "--steer-away", "b", "--steer-layer", "4"], "cannot steer in layer 4"),
    ],
)
def test_wrong_interventions_are_told_in_one_sentence(
    run_main: Run, arguments: list[str], message: str
) -> None:
    done = run_main("inspect", "x", "-m", "bard", *arguments, code=2)
    assert message in done.stderr.decode()
    assert (done.stdout, done.stderr.count(b"\n")) == (b"", 1)


# Files.


def test_files_are_written_whole_or_not_at_all(run_main: Run, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    done = run_main("inspect", "ROMEO:", "-m", "bard", "--html", str(path))
    assert (done.stdout, done.stderr) == (b"", b"")
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["page.html"]
    assert path.read_bytes().startswith(b"<!doctype html>")
    piped = run_main("inspect", "ROMEO:", "-m", "bard", "--html", "/dev/stdout")
    assert piped.stdout == path.read_bytes()


@needs_full_device
def test_a_full_disk_is_told(run_main: Run) -> None:
    full = run_main("inspect", "ROMEO:", "-m", "bard", "--html", "/dev/full", code=1)
    assert full.stderr == b"gpt2: cannot write /dev/full: No space left on device\n"


@pytest.mark.parametrize("option", [["--layer", "1"], ["--head", "0"], ["--all-heads"]])
def test_a_picture_shows_attention_where_an_option_asks_for_it(
    run_main: Run, tmp_path: Path, option: list[str]
) -> None:
    pytest.importorskip("matplotlib")
    heights = []
    for more in ([], option):
        path = tmp_path / "x.png"
        done = run_main("inspect", "ROMEO:", "-m", "bard", "--png", str(path), *more)
        assert (done.stdout, done.stderr) == (b"", b"")
        heights.append(struct.unpack(">I", path.read_bytes()[20:24])[0])
    assert heights[1] - heights[0] >= 3 * 120


def test_without_matplotlib_a_sentence_tells_how_to_get_it(tmp_path: Path) -> None:
    script = (
        "import importlib.util as u, sys; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'matplotlib' else find(name, *a)\n"
        "from gpt2cli.cli import main; sys.argv = ['gpt2', *sys.argv[1:]]; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "inspect", "x", "-m", "bard", "--png", str(tmp_path / "x")],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        b"gpt2: --png needs matplotlib; install it with: pip install 'gpt2cli[plot]'\n"
    )
