"""How a server ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from contextlib import suppress
from http.client import HTTPException

import pytest
from servers import ask

SLOW = """
import sys, time
from gpt2cli.cli import main
from gpt2cli.serving.http.service import Service

def prepare(*_):
    print("preparing", file=sys.stderr, flush=True)
    time.sleep(60)

Service.prepare = prepare
sys.argv = ["gpt2", "serve", "-m", "bard", "--port", "0"]
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_second_signal_ends_at_once_also_while_a_request_is_prepared() -> None:
    server = subprocess.Popen([sys.executable, "-c", SLOW], stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        port = int(server.stderr.readline().rpartition("; Ctrl-C")[0].rpartition(":")[2])
        body = {"prompt": "a", "regex": "b+"}  # constraints are prepared in a thread
        threading.Thread(target=_ask, args=(port, body), daemon=True).start()
        assert any(line == "preparing\n" for line in server.stderr)
        server.send_signal(signal.SIGTERM)
        assert any("once more ends at once" in line for line in server.stderr)
        server.send_signal(signal.SIGTERM)
        assert server.wait(5) == 0
    finally:
        server.kill()
        server.wait()


def _ask(port: int, body: dict[str, str]) -> None:
    with suppress(OSError, HTTPException):  # whichever way the connection ends
        ask(port, "/v1/completions", body)
