"""The page of `gpt2 inspect`, as text and in a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import PROMPT

from gpt2cli.analysis.inspection import Inspection
from gpt2cli.cli.commands.inspect import SECTIONS
from gpt2cli.cli.render.pages import inspection as page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def web_page(tiny_inspection: Inspection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_bytes(page.render("<tiny>", PROMPT, tiny_inspection.as_dict(SECTIONS)))
    return path


def test_the_page_needs_nothing_else_and_escapes_all_text(web_page: Path) -> None:
    text = web_page.read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=|https?://|@import|url\(""", text)
    assert text.count("<script") == text.count("</script>") == 2
    assert "<b>" not in text
    assert f"<title>&lt;tiny&gt;: “{html.escape(PROMPT)}”</title>" in text
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    shown = "".join(token["text"] for token in data["tokens"])
    assert shown == PROMPT[: len(shown)]
    assert len(data["tokens"]) == 32


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_the_page_in_a_browser_shows_what_a_token_attends_to(
    web_page: Path, tiny_inspection: Inspection, tmp_path: Path
) -> None:
    assert CHROMIUM is not None
    switches = "headless no-sandbox disable-gpu disable-quic no-first-run disable-sync"
    switches += " disable-background-networking disable-component-update dump-dom"
    done = subprocess.run(
        [
            CHROMIUM,
            *(f"--{switch}" for switch in switches.split()),
            f"--user-data-dir={tmp_path / 'profile'}",
            f"file://{web_page}#layer=1&head=2&token=20",
        ],
        capture_output=True,
        timeout=60,
        check=True,
    )
    dom = done.stdout.decode()
    shown = dom.split('<div id="text"')[1].split("</div>")[0]
    spans = re.findall(r'<span([^>]*data-weight="([\d.]+)"[^>]*)>(.*?)</span>', shown, re.DOTALL)
    assert [html.unescape(text) for _, _, text in spans] == tiny_inspection.texts
    assert [float(weight) for _, weight, _ in spans] == pytest.approx(
        tiny_inspection.attention[1, 2, 20].tolist(), abs=6e-4
    )
    assert 'class="from heat"' in spans[20][0]
    assert 'data-tip="20 ' in spans[20][0]
    assert [span[0].count('tabindex="0"') for span in spans] == [1] + [0] * 31  # one stop
    for table, rows in (("map", 33), ("next", 11), ("lens", 4), ("parts", 3), ("norms", 6)):
        content = dom.split(f'<table id="{table}"')[1].split("</table>")[0]
        assert content.count("<tr") == rows, table
