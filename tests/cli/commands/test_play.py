"""`gpt2 play` as a shell sees it."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import servers
from helpers import Run, error_of

SILENT = {"DISPLAY": "", "WAYLAND_DISPLAY": "", "BROWSER": ""}


@contextmanager
def played(
    *options: str, env: dict[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], int, str]]:
    """The command with bard: its process, its port and the line that says it; killed in the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gpt2cli", "play", "-m", "bard", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | SILENT | (env or {}),
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline().decode()
        found = re.search(r"at http://127\.0\.0\.1:(\d+); Ctrl-C ends it$", line.strip())
        assert found is not None, line
        yield process, int(found[1]), line
    finally:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    return process.returncode, output, errors


def test_help_shows_examples_and_every_option(run_main: Run) -> None:
    text = run_main("play", "--help").stdout.decode()
    for word in ("--port", "--no-browser", "--adapter", "--model"):
        assert word in text
    assert "gpt2 play --model bard" in text


def test_one_line_says_where_the_page_is_until_ctrl_c() -> None:
    with played("--no-browser") as (process, port, _):
        page = servers.ask(port, "/")
        assert page.status == 200
        assert page.headers["content-type"].startswith("text/html")
        assert servers.ask(port, "/page/v1/model").json["name"] == "bard"
        assert servers.ask(port, "/", headers={"Host": "example.com"}).status == 403
        assert ended(process) == (0, b"", b"")


def test_ctrl_c_ends_it_while_it_warms_up() -> None:
    with played("--no-browser") as (process, _, _):
        time.sleep(1.6)
        assert ended(process) == (0, b"", b"")


def test_without_a_browser_it_says_what_to_open() -> None:
    with played() as (process, port, _):
        assert process.stderr is not None
        line = process.stderr.readline().decode()
        assert line == f"gpt2: no browser was found here; open http://127.0.0.1:{port}/\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows starts no shell script")
def test_it_opens_the_browser_that_is_there(tmp_path: Path) -> None:
    browser, opened = tmp_path / "browser", tmp_path / "opened"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}.new\nmv {opened}.new {opened}\n')
    browser.chmod(browser.stat().st_mode | stat.S_IXUSR)
    with played(env={"BROWSER": str(browser)}) as (_, port, _):
        servers.until(opened.exists)
        assert opened.read_text() == f"http://127.0.0.1:{port}/\n"


def test_a_port_that_is_taken_is_said_in_a_line(run_main: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_main("play", "-m", "bard", "--port", str(port), code=1)
    assert error_of(done) == f"gpt2: 127.0.0.1 --port {port} is taken; choose another port\n"


def test_serve_says_that_it_has_the_page() -> None:
    with servers.command() as server:
        address = f"http://127.0.0.1:{server.port}"
        assert f", with a page at {address}; " in server.lines[0]
        assert b"<html" in server.ask("/").body
