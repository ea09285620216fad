"""Several processes that serve one address, as the command begins them."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from helpers import needs_engine
from hub_server import HubServer
from servers import JSON, Command, command, until

import gpt2cli

pytestmark = [
    needs_engine,
    pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX"),
]
LONG = {"prompt": "ROMEO:", "max_tokens": 240, "n": 16, "ignore_eos": True, "seed": 1}


@pytest.fixture(scope="module")
def server() -> Iterator[Command]:
    """Two processes that write with bard."""
    with command("--workers", "2") as server:
        yield server


@pytest.fixture
def own() -> Iterator[Command]:
    """Two processes that a test may end, in a group of their own as a shell would make it."""
    with command("--workers", "2", new_group=True) as server:
        yield server


def workers_of(server: Command) -> list[psutil.Process]:
    """The processes that serve."""
    children = [c for c in psutil.Process(server.process.pid).children() if has_not_ended(c)]
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def has_not_ended(process: psutil.Process) -> bool:
    """Whether it still runs; nobody may have asked yet how it has ended."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def connections(worker: psutil.Process) -> int:
    """How many clients a process has."""
    return sum(c.status == "ESTABLISHED" for c in worker.net_connections("tcp"))


def begin(server: Command, **body: object) -> http.client.HTTPConnection:
    """Send a request for a stream, which is being written when this returns."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    body = {**LONG, "stream": True, **body}
    connection.request("POST", "/v1/completions", json.dumps(body), JSON)
    connection.response = connection.getresponse()  # type: ignore[attr-defined]
    return connection


def rest(connection: http.client.HTTPConnection) -> bytes:
    """All that a stream still says."""
    body: bytes = connection.response.read()  # type: ignore[attr-defined]
    connection.close()
    return body


def spread(server: Command, **body: object) -> list[http.client.HTTPConnection]:
    """Streams that are being written, of each process at least one."""
    streams: list[http.client.HTTPConnection] = []
    while not all(map(connections, workers_of(server))):
        streams.append(begin(server, **body))
        assert len(streams) < 20
    return streams


def value(metrics: bytes, name: str) -> float:
    """The value of a metric without labels."""
    [line] = [line for line in metrics.decode().splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[1])


def test_every_process_writes_what_one_alone_writes(server: Command) -> None:
    settings = {"temperature": 1, "top_k": None, "top_p": 1, "ignore_eos": True}
    expected = gpt2cli.load("bard").generate("ROMEO:", max_tokens=240, seed=1, **settings).text
    streams = spread(server)
    for stream in streams:
        chunks = rest(stream).decode().split("\n\n")[:-2]
        choices = [json.loads(chunk.removeprefix("data: "))["choices"][0] for chunk in chunks]
        assert "".join(choice["text"] for choice in choices if choice["index"] == 0) == expected


def test_connections_that_come_at_once_are_divided(server: Command) -> None:
    streams = [begin(server, n=1) for _ in range(16)]
    assert min(map(connections, workers_of(server))) >= 2
    for stream in streams:
        assert rest(stream).endswith(b"data: [DONE]\n\n")


def test_what_all_processes_count_is_added_up(server: Command) -> None:
    name = "gpt2_completion_tokens_total"
    before = value(server.ask("/metrics").body, name)
    streams = spread(server)
    connection = http.client.HTTPConnection("127.0.0.1", server.port)  # stays with one process

    def count(name: str) -> float:
        connection.request("GET", "/metrics")
        return value(connection.getresponse().read(), name)

    until(lambda: count("gpt2_running_texts") == 16 * len(streams))
    for stream in streams:
        rest(stream)
    until(lambda: count(name) - before >= 16 * 240 * len(streams))
    until(lambda: count("gpt2_running_texts") == 0)
    connection.close()


def test_the_lines_at_the_start_come_once(server: Command) -> None:
    assert server.ask("/health").status == 200
    assert sum("Ctrl-C ends it" in line for line in server.lines) == 1
    assert sum(line.startswith("gpt2: try: curl") for line in server.lines) == 1


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_what_is_being_written_ends_before_the_processes_do(
    own: Command, sig: signal.Signals
) -> None:
    streams = spread(own)
    os.killpg(own.process.pid, sig)  # to all, as systemd and terminals do
    time.sleep(0.5)
    with pytest.raises(ConnectionRefusedError):
        begin(own)
    for stream in streams:
        assert rest(stream).endswith(b"data: [DONE]\n\n")
    assert own.process.wait(20) == 0
    assert not any("Traceback" in line or "rror" in line for line in own.lines)


def test_a_second_signal_ends_all_at_once(own: Command) -> None:
    workers = workers_of(own)
    begin(own)
    own.process.send_signal(signal.SIGTERM)
    until(lambda: any("once more ends at once" in line for line in own.lines))
    own.process.send_signal(signal.SIGTERM)
    assert own.process.wait(5) == 0
    until(lambda: not any(map(has_not_ended, workers)))


@pytest.mark.slow
def test_a_process_that_dies_is_replaced_and_the_other_goes_on(own: Command) -> None:
    streams = spread(own, n=128)  # so many that they are not done when the process is ended
    pages = value(own.ask("/metrics").body, "gpt2_kv_cache_pages")
    killed, other = workers_of(own)
    lost = connections(killed)
    killed.kill()
    until(lambda: len(workers_of(own)) == 2 and killed not in workers_of(own))
    assert other in workers_of(own)
    whole = 0
    for stream in streams:
        try:
            whole += rest(stream).endswith(b"data: [DONE]\n\n")
        except (http.client.IncompleteRead, ConnectionError):
            continue
    assert whole == len(streams) - lost
    until(lambda: takes_one(own, next(w for w in workers_of(own) if w != other)))
    until(lambda: value(own.ask("/metrics").body, "gpt2_running_texts") == 0)
    assert value(own.ask("/metrics").body, "gpt2_kv_cache_pages") == pages
    assert any(f"process {killed.pid} is replaced" in line for line in own.lines)


def takes_one(server: Command, worker: psutil.Process) -> bool:
    """Send a request, which must be answered. → whether this process does it"""
    stream = begin(server, n=1)
    is_taken = connections(worker) > 0
    assert rest(stream).endswith(b"data: [DONE]\n\n")
    return is_taken


def test_processes_end_with_the_one_that_began_them(own: Command) -> None:
    workers = workers_of(own)
    own.process.kill()
    until(lambda: not any(map(has_not_ended, workers)))


def test_a_model_that_cannot_be_opened_is_one_sentence(
    tiny_directory: Path, tmp_path: Path
) -> None:
    for path in tiny_directory.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    arguments = ["serve", "-m", str(tmp_path), "--port", "0", "--workers", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "gpt2cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("gpt2: ")
    assert str(weights) in line


def test_a_unix_socket_is_served_by_all_and_removed(tmp_path: Path, tiny_directory: Path) -> None:
    path = tmp_path / "gpt2.sock"
    options = ("--workers", "2", "--uds", str(path), "-m", str(tiny_directory))
    with command(*options) as server:
        for _ in range(4):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                client.sendall(b"GET /health HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n")
                assert client.recv(1000).startswith(b"HTTP/1.1 200")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
    assert not path.exists()


def test_a_model_of_a_hub_is_fetched_once_and_opened_by_all(
    tiny_directory: Path, tmp_path: Path
) -> None:
    with HubServer() as hub:
        hub.add_repo("owner/tiny", {p.name: p.read_bytes() for p in tiny_directory.iterdir()})
        environment = os.environ | {"HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.url}
        with command("--workers", "2", "-m", "owner/tiny", env=environment) as server:
            assert hub.fetched().count("model.safetensors") == 1
            answer = server.complete(prompt="a", max_tokens=3, model="owner/tiny")
            assert answer.json["usage"]["completion_tokens"] == 3


@pytest.mark.slow
@pytest.mark.parametrize(("options", "threads"), [((), "1"), (("--threads", "2"), "2")])
def test_processes_divide_the_cores_unless_told_otherwise(
    options: tuple[str, ...], threads: str
) -> None:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    with command("--workers", str(count), *options, env=environment) as server:
        for worker in workers_of(server):
            assert worker.environ()["OMP_NUM_THREADS"] == threads
