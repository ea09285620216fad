"""Rows of a bulk run: prompts, settings, templates, seeds, errors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk_runs import write_rows

from gpt2cli import api
from gpt2cli.errors import UsageError
from gpt2cli.records import Input
from gpt2cli.serving.rows import Reader, Row, is_openai, row_seed


@pytest.fixture(scope="module")
def model() -> api.LoadedModel:
    return api.load("bard")


def rows_of(
    model: api.LoadedModel, file: Path, *, lines: bool = False, **options: Any
) -> list[Row]:
    source = Input(str(file), lines=lines)
    reader = Reader(source, model, **options)
    return [reader(index, record) for index, record in source.records()]


def test_a_row_has_its_prompt_and_its_own_settings(model: api.LoadedModel, tmp_path: Path) -> None:
    own = {
        "prompt": "é\n",
        "id": [1],
        "max_tokens": 5,
        "temperature": 1,
        "stop": "\n",
        "stop_token_ids": [5, 6],
        "seed": None,
        "ignore_eos": True,
        "top_k": 3.0,
        "bias": {" the": 2, "#5": "-inf"},
        "overflow": "error",
    }
    [row] = rows_of(model, write_rows(tmp_path / "in.jsonl", [own]))
    assert (row.index, row.fields, row.prompt, row.error) == (0, own, "é\n", None)
    the = model.tokenizer.one(" the")
    assert row.settings == {
        "max_tokens": 5,
        "temperature": 1.0,
        "stop": ("\n",),
        "stop_token_ids": (5, 6),
        "ignore_eos": True,
        "top_k": 3,
        "bias": {the: 2.0, 5: -math.inf},
        "overflow": "error",
    }
    model.configure(**{name: v for name, v in row.settings.items() if name != "overflow"})


def test_token_ids_are_a_prompt(model: api.LoadedModel, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "in.jsonl", [{"text": [5, 6]}, {"text": ["a"]}, {"text": []}])
    rows = rows_of(model, file, field="text")
    assert rows[0].prompt == [5, 6]
    assert all(row.error and "list of token ids" in row.error for row in rows[1:])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{nope", "not JSON"),
        ("[1]", "no JSON object"),
        ('{"prompt": NaN}', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"promt": "a"}', "no field 'prompt'; did you mean 'promt'"),
        ('{"prompt": null}', "must be text or a list"),
        ('{"prompt": 5}', "must be text or a list"),
        ('{"prompt": [true]}', "must be text or a list"),
        ('{"prompt": "\\ud800"}', "not valid Unicode"),
        ('{"prompt": "a", "max_tokens": "5"}', "max_tokens must be a whole number"),
        ('{"prompt": "a", "max_tokens": 2.5}', "max_tokens must be a whole number"),
        ('{"prompt": "a", "stop": [5]}', "stop must be text or a list of texts"),
        ('{"prompt": "a", "stop_token_ids": 5}', "stop_token_ids must be a list of token ids"),
        ('{"prompt": "a", "ignore_eos": 1}', "ignore_eos must be true or false"),
        ('{"prompt": "a", "bias": {"#99999": 1}}', "token ids go from 0"),
        ('{"prompt": "a", "bias": [1]}', "bias must be an object"),
        ('{"prompt": "a", "overflow": "x"}', "overflow must be slide or error"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(
    model: api.LoadedModel, tmp_path: Path, line: str, reason: str
) -> None:
    bad, good = rows_of(model, write_rows(tmp_path / "in.jsonl", [line, {"prompt": "a"}]))
    assert bad.error is not None
    assert reason in bad.error
    assert bad.request(1)["prompt"] is None
    assert (good.prompt, good.error) == ("a", None)


def test_bytes_that_are_not_utf8_cost_only_their_row(
    model: api.LoadedModel, tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_bytes(b'{"prompt": "\xff"}\n{"prompt": "a"}\n')
    bad, good = rows_of(model, tmp_path / "in.jsonl")
    assert bad.error == "it is not valid UTF-8 text (at byte 12)"
    assert good.error is None
    (tmp_path / "in.csv").write_bytes(b"prompt\n\xff\na\nb,c\n")
    bad, good, wide = rows_of(model, tmp_path / "in.csv")
    assert bad.error == "'prompt' is not valid Unicode text"
    assert good.prompt == "a"
    assert wide.error == "it has 2 cells, where there are 1 columns"


def test_each_line_is_a_prompt(model: api.LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(b'{"prompt": 1}\n\n  b \r\nc')
    rows = rows_of(model, tmp_path / "in.txt", lines=True)
    assert [row.prompt for row in rows] == ['{"prompt": 1}', "", "  b ", "c"]
    assert rows[2].fields == {"prompt": "  b "}


def test_cells_of_a_table_are_settings_in_their_types(
    model: api.LoadedModel, tmp_path: Path
) -> None:
    (tmp_path / "in.csv").write_text(
        "prompt,temperature,max_tokens,stop,seed,stop_token_ids\n"
        'a,0.5,7,5,,\nb,,,"[""x"", ""y""]",3,"[5, 6]"\nc,warm,,,,\n'
    )
    a, b, c = rows_of(model, tmp_path / "in.csv")
    assert a.settings == {"temperature": 0.5, "max_tokens": 7, "stop": ("5",)}
    assert b.settings == {"stop": ("x", "y"), "seed": 3, "stop_token_ids": (5, 6)}
    assert c.error == "temperature must be a number, not 'warm'"


def test_values_of_parquet_become_json(model: api.LoadedModel, tmp_path: Path) -> None:
    table = pa.table(
        {
            "prompt": ["a", None],
            "day": pa.array([0, 1], pa.date32()),
            "raw": [b"\xffx", b"y"],
            "score": [math.nan, 1.5],
            "nested": [{"x": [math.inf]}, {"x": [2.0]}],
            "seed": [5.0, None],
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    first, second = rows_of(model, tmp_path / "in.parquet")
    json.dumps(first.fields, allow_nan=False)
    assert (first.fields["day"], first.fields["score"]) == ("1970-01-01", None)
    assert first.settings == {"seed": 5}
    assert second.error is not None


def test_a_template_is_filled_from_fields(model: api.LoadedModel, tmp_path: Path) -> None:
    rows = [
        {"title": "T", "n": 1, "stop": "S"},
        {"title": "T"},
        {"title": None, "n": 2, "stop": ""},
    ]
    found = rows_of(
        model, write_rows(tmp_path / "in.jsonl", rows), template="{{{title}}}: {n} {stop}"
    )
    assert (found[0].prompt, found[0].settings) == ("{T}: 1 S", {})
    assert found[1].error == "it has nothing in the field 'n' of the template"
    assert found[2].error == "it has nothing in the field 'title' of the template"


@pytest.mark.parametrize("template", ["{", "no field", "{}", "{a!r}", "{a:>5}", "{a.b}", "{b}"])
def test_a_wrong_template_is_said_at_once(
    model: api.LoadedModel, tmp_path: Path, template: str
) -> None:
    file = write_rows(tmp_path / "in.jsonl", [{"a": "x"}])
    with pytest.raises(UsageError):
        rows_of(model, file, template=template)


def test_a_field_that_no_row_has_is_said_at_once(model: api.LoadedModel, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "in.jsonl", [{"text": "x"}])
    with pytest.raises(UsageError, match="no field 'txt'; did you mean 'text'"):
        rows_of(model, file, field="txt")
    (tmp_path / "in.csv").write_text("text,more\nx,y\n")
    with pytest.raises(UsageError, match="no field 'prompt'; it has text, more"):
        rows_of(model, tmp_path / "in.csv")


def test_the_seed_of_a_row_is_made_of_the_run_and_its_number() -> None:
    words = np.random.SeedSequence((7, 3)).generate_state(1, np.uint32)
    assert row_seed(7, 3) == int(words[0]) // 2
    seeds = [row_seed(seed, index) for seed in range(40) for index in range(40)]
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert len(set(seeds)) == len(seeds)
    assert Row(3, {}, "a").request(7) == {"prompt": "a", "seed": row_seed(7, 3)}
    assert Row(3, {}, "a", {"seed": 5}).request(7) == {"prompt": "a", "seed": 5}


def test_the_first_line_says_whether_lines_are_openais(tmp_path: Path) -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {}}
    assert is_openai(Input(str(write_rows(tmp_path / "a.jsonl", ["", line]))))
    assert not is_openai(Input(str(write_rows(tmp_path / "b.jsonl", [{"custom_id": "a"}]))))
    assert not is_openai(Input(str(write_rows(tmp_path / "c.jsonl", []))))
    assert not is_openai(Input(str(tmp_path / "a.jsonl"), lines=True))
