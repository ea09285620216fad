"""`gpt2 serve` as a shell sees it."""

from __future__ import annotations

import http.client
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import servers
from helpers import Run, error_of, needs_full_device

# A text that goes on for longer than any test.
ENDLESS: dict[str, Any] = {"max_tokens": 10**6, "overflow": "slide", "ignore_eos": True}
SHORT: dict[str, Any] = {"prompt": "a", "max_tokens": 1}


class Unix(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self._path)


def status_at(path: Path) -> int:
    connection = Unix(path)
    connection.request("GET", "/health")
    status = connection.getresponse().status
    connection.close()
    return status


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def is_refused(port: int) -> bool:
    """Whether nobody takes connections there."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) != 0


def ended(process: subprocess.Popen[bytes]) -> int:
    return process.wait(40)


def test_help_shows_examples_and_every_option(run_main: Run) -> None:
    text = run_main("serve", "--help").stdout.decode()
    for word in ("--host", "--port", "--uds", "--api-key-file", "--cors-origin", "--queue"):
        assert word in text
    assert "gpt2 serve --model bard" in text


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--host", "0.0.0.0"], "can be reached from elsewhere, so --api-key is needed"),
        (["--host", "::"], "so --api-key is needed"),
        (["--host", "no such host.", "--insecure"], "--host 'no such host.' is unknown"),
        (["--uds", "x", "--port", "1"], "--uds takes the place of host and port"),
        (["--api-key", ""], "--api-key is empty"),
        (["--cors-origin", "example.com"], "--cors-origin must be like https://example.com"),
        (["--port", "70000"], "--port"),
        (["--queue", "-1"], "--queue"),
        (["--max-sequences", "0"], "--max-sequences"),
        (["--workers", "0"], "--workers"),
    ],
)
def test_a_wrong_word_ends_it_before_anything_is_opened(
    run_main: Run, options: list[str], reason: str
) -> None:
    found = run_main("serve", "-m", "bard", *options, code=2)
    assert reason in " ".join(found.stderr.decode().split())
    assert b"Traceback" not in found.stderr


def test_a_key_file_must_hold_a_key(run_main: Run, tmp_path: Path) -> None:
    for text in ("", " \n"):
        (tmp_path / "key").write_text(text)
        done = run_main(
            "serve",
            "-m",
            "bard",
            "--host",
            "0.0.0.0",
            "--api-key-file",
            str(tmp_path / "key"),
            code=2,
        )
        assert "holds no key" in error_of(done)
    (tmp_path / "key").write_text("a\n")
    two = ["--api-key", "b", "--api-key-file", str(tmp_path / "key")]
    assert "two keys" in error_of(run_main("serve", "-m", "bard", *two, code=2))
    none = ["--api-key-file", str(tmp_path / "none")]
    assert "cannot read" in error_of(run_main("serve", "-m", "bard", *none, code=2))


def test_a_port_that_is_taken_is_said_before_a_model_is_read(
    run_main: Run, tiny_directory: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(tiny_directory, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"no weights")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_main("serve", "-m", str(broken), "--port", str(port), code=1)
    assert error_of(done) == f"gpt2: 127.0.0.1 --port {port} is taken; choose another port\n"


def test_a_model_that_cannot_be_read_ends_it(
    run_process: Run, letters: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(letters, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"no weights")
    done = run_process("serve", "-m", str(broken), "--port", "0", code=1)
    assert "model.safetensors" in error_of(done)


def test_what_is_served_and_how_to_ask_is_said_and_holds(tmp_path: Path) -> None:
    with servers.command() as server:
        first, second = server.lines[:2]
        assert first.startswith("gpt2: bard")
        assert first.endswith(f"at http://127.0.0.1:{server.port}; Ctrl-C ends it")
        assert second.startswith("gpt2: try: curl ")
        words = shlex.split(second.removeprefix("gpt2: try: "))
        if shutil.which("curl"):
            done = subprocess.run(
                [*words, "-s"], capture_output=True, timeout=60, check=True, cwd=tmp_path
            )
            assert json.loads(done.stdout)["usage"]["completion_tokens"] > 0
        found = servers.ask(server.port, "/v1/models", headers={"Host": "evil.example"})
        assert found.status == 403
        server.complete(**SHORT)
        servers.until(lambda: "POST /v1/completions 200, 1 + 1 tokens" in server.lines[-1])
        server.process.send_signal(signal.SIGINT)
        assert ended(server.process) == 0


def test_the_key_comes_from_a_file_or_the_environment(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from a file\n")
    for options, env, key in (
        (["--api-key-file", str(tmp_path / "key")], {"GPT2_API_KEY": "no"}, "from a file"),
        (["--host", "0.0.0.0"], {"GPT2_API_KEY": "from outside"}, "from outside"),
    ):
        with servers.command(*options, env=os.environ | env) as server:
            assert server.ask("/v1/models").status == 401
            assert server.ask("/v1/models", headers=bearer("no")).status == 401
            assert server.ask("/v1/models", headers=bearer(key)).status == 200
            assert server.lines[1].endswith('-H "Authorization: Bearer $GPT2_API_KEY"')
            assert key not in "".join(server.lines)


def test_a_host_that_others_reach_needs_a_key_or_a_word() -> None:
    with servers.command("--host", "0.0.0.0", "--insecure") as server:
        found = server.ask("/v1/models", headers={"Host": "any.example"})
        assert found.status == 200


def test_a_unix_socket_is_replaced_if_nobody_listens_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "a socket"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with servers.command("--uds", str(path)) as server:
        assert status_at(path) == 200
        assert path.stat().st_mode & 0o777 == 0o700
        if shutil.which("curl"):
            words = shlex.split(server.lines[1].removeprefix("gpt2: try: "))
            done = subprocess.run([*words, "-s"], capture_output=True, timeout=60, check=True)
            assert json.loads(done.stdout)["object"] == "text_completion"
        other = subprocess.run(
            [sys.executable, "-m", "gpt2cli", "serve", "-m", "bard", "--uds", str(path)],
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert other.returncode == 1
        assert "is taken by another server" in error_of(other)
        assert status_at(path) == 200
        server.process.terminate()
        assert ended(server.process) == 0
    assert not path.exists()


def test_a_file_is_never_replaced_by_a_socket(run_main: Run, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    done = run_main("serve", "-m", "bard", "--uds", str(path), code=2)
    assert "is no socket" in error_of(done)
    assert path.read_text() == "mine"
    long = tmp_path / ("x" * 200)
    assert "cannot listen at" in error_of(
        run_main("serve", "-m", "bard", "--uds", str(long), code=1)
    )


@pytest.mark.parametrize(
    "sig", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_lets_requests_end_and_begins_no_more(sig: signal.Signals) -> None:
    with servers.command() as server:
        body = {"prompt": "a", "max_tokens": 300, "overflow": "slide", "ignore_eos": True}
        with servers.begun(server.port, **body, stream=True) as connection:
            response = connection.getresponse()
            assert response.readline().startswith(b"data: ")
            server.process.send_signal(sig)
            servers.until(lambda: any("ending in 30 s" in line for line in server.lines))
            servers.until(lambda: is_refused(server.port))
            rest = response.read()
        assert rest.endswith(b"data: [DONE]\n\n")
        assert rest.count(b"data: {") == 299
        assert ended(server.process) == 0


def test_a_second_signal_ends_all_at_once() -> None:
    with servers.command() as server, servers.begun(server.port, prompt="a", **ENDLESS):
        servers.until(lambda: b"gpt2_running_texts 1.0" in server.ask("/metrics").body)
        server.process.terminate()
        servers.until(lambda: any("once more ends at once" in line for line in server.lines))
        server.process.terminate()
        assert ended(server.process) == 0
        assert "Traceback" not in "\n".join(server.lines)


def test_a_server_with_nothing_to_do_ends_at_once() -> None:
    with servers.command() as server:
        idle = http.client.HTTPConnection("127.0.0.1", server.port)
        idle.request("GET", "/health")
        idle.getresponse().read()
        server.process.terminate()
        assert ended(server.process) == 0
        idle.close()


def test_quiet_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with subprocess.Popen(
        [sys.executable, "-m", "gpt2cli", "serve", "-m", "bard", "-q", "--uds", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            servers.until(lambda: path.exists() and status_at(path) == 200, 60)
            process.terminate()
            assert process.communicate(timeout=40) == (b"", b"")
            assert process.returncode == 0
        finally:
            process.kill()


def test_the_log_can_be_json() -> None:
    with servers.command("--log-json") as server:
        server.ask("/v1/completions", SHORT, headers={"X-Request-Id": "mine"})
        server.ask("/none\x1b[31m".replace("\x1b", "%1b"))
        servers.until(lambda: len(server.lines) == 4)
        one, other = (json.loads(line) for line in server.lines[2:])
        assert (one["method"], one["path"], one["status"]) == ("POST", "/v1/completions", 200)
        assert (one["prompt_tokens"], one["completion_tokens"]) == (1, 1)
        assert (one["request_id"], one["client"]) == ("mine", "127.0.0.1")
        assert 0 < one["first_token_seconds"] <= one["seconds"]
        assert (other["status"], other["completion_tokens"]) == (404, None)


def test_a_log_shows_what_would_move_the_cursor(tmp_path: Path) -> None:
    with servers.command() as server:
        server.ask("/%1b[31m%0aGET%20/")
        servers.until(lambda: len(server.lines) == 3)
        assert "404" in server.lines[2]
        assert "\x1b" not in server.lines[2]


@needs_full_device
def test_a_full_disk_for_the_log_hurts_nobody(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with (
        open("/dev/full", "wb") as full,
        subprocess.Popen(
            [sys.executable, "-m", "gpt2cli", "serve", "-m", "bard", "--uds", str(path)],
            stdout=subprocess.DEVNULL,
            stderr=full,
        ) as process,
    ):
        try:
            servers.until(lambda: path.exists() and status_at(path) == 200, 60)
            connection = Unix(path)
            connection.request("POST", "/v1/completions", json.dumps(SHORT), servers.JSON)
            assert connection.getresponse().status == 200
            connection.close()
            process.terminate()
            assert process.wait(40) == 0
        finally:
            process.kill()


def test_without_its_libraries_it_says_what_to_install(
    run_main: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    find = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> Any:
        return None if name == "httptools" else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    done = run_main("serve", "-m", "bard", code=1)
    assert "serving needs httptools: pip install 'gpt2cli[serve]'" in error_of(done)
