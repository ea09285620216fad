"""Measure `gpt2 serve`: beside `gpt2 generate`, `gpt2 bulk` and another server, and under load.

    python benchmarks/serve.py [--rounds 5] [--parts stream bulk peer first ready idle load soak]

124M with random weights and OpenAI's sizes, int8 unless another precision is named. What is
compared takes turns within a round; medians are printed, and the ratio is the median of each
round's. The client runs on the same cores. The peer needs llama-cpp-python[server], and what
peers.py needs; without it that part is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from convert import prepare
from entries import CHECKPOINT, WITHOUT_REPACKING, select

from gpt2cli.decoders import opening
from gpt2cli.decoders.pages import Chunk
from gpt2cli.system.device import Placement
from gpt2cli.text.tokenizer import Tokenizer

# llama.cpp dies with Q8_0 on a CPU with AMX where it repacks the weights.
LLAMA_SERVER = f"""
{WITHOUT_REPACKING}
from llama_cpp.server.__main__ import main
main()
"""
GGUF = {"int8": "Q8_0", "int4": "Q4_0", "fp32": "F32"}
GREEDY = {"temperature": 0, "ignore_eos": True}


def show(name: str, found: list[float], over: list[float] | None = None, aim: str = "") -> None:
    line = f"{name:<62} {statistics.median(found):10,.3f}"
    if over is not None:
        ratio = statistics.median(a / b for a, b in zip(found, over, strict=True))
        line += f"   ratio {ratio:6.3f}"
    print(line + (f"   asked {aim}" if aim else ""), flush=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(command: list[str], port: int, health: str = "/health") -> Iterator[tuple[Any, float]]:
    """A server in a process of its own, and the seconds until it was ready."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{health}", timeout=1):
                    break
            except OSError:
                assert process.poll() is None, command
                time.sleep(0.005)
        yield process, time.perf_counter() - started
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


class Bench:
    """What the parts share."""

    def __init__(self, directory: Path, rounds: int, precision: str) -> None:
        self.directory, self.rounds, self.precision = directory, rounds, precision
        self.checkpoint = str(directory / CHECKPOINT)
        self.tokenizer = Tokenizer.load(directory / CHECKPOINT)
        self._drawn = 0

    def ours(self, *options: str) -> tuple[list[str], int]:
        port = free_port()
        where = ["-m", self.checkpoint, "--precision", self.precision]
        command = [sys.executable, "-m", "gpt2cli", "serve", *where, "--port", str(port), "--quiet"]
        return [*command, *options], port

    def run(self, *words: str) -> Any:
        """A command's JSON."""
        where = ["-m", self.checkpoint, "--precision", self.precision, "--json"]
        command = [sys.executable, "-m", "gpt2cli", words[0], *where, *words[1:]]
        return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)

    def prompt(self, length: int) -> list[int]:
        """Another one each time, so that nothing of it is known yet."""
        self._drawn += 1
        return np.random.default_rng([7, self._drawn]).integers(0, 50_000, length).tolist()

    def requests(self, count: int, tokens: int) -> list[dict[str, Any]]:
        """Prompts and lengths that are skewed as those of real texts are."""
        rng = np.random.default_rng([8, count])
        lengths = np.clip(rng.exponential(40, count), 4, 200).astype(int).tolist()
        new = np.clip(rng.exponential(tokens, count), 1, 4 * tokens).astype(int).tolist()
        return [
            {"prompt": self.prompt(n), "max_tokens": m} | GREEDY
            for n, m in zip(lengths, new, strict=True)
        ]


class Reply:
    """One answer as it came: its status, and when each chunk did."""

    def __init__(self) -> None:
        self.status, self.began, self.ended = 0, time.perf_counter(), 0.0
        self.chunks: list[float] = []


async def post(port: int, body: dict[str, Any], *, leaves: bool = False) -> Reply:
    """Ask once on a connection of its own; or leave after the first chunk, or after 5 ms."""
    data, reply = json.dumps(body).encode(), Reply()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data) + data
    )
    try:
        if leaves and not body.get("stream"):
            await asyncio.sleep(0.005)
            writer.transport.abort()
        while part := await reader.read(65536):
            now = time.perf_counter()
            reply.status = reply.status or int(part[9:12])
            reply.chunks += [now] * part.count(b'data: {"id"')
            if leaves and reply.chunks:
                writer.transport.abort()
    except ConnectionError:
        pass
    writer.close()
    reply.ended = time.perf_counter()
    return reply


async def closed_loop(port: int, bodies: list[dict[str, Any]], clients: int) -> list[Reply]:
    """Some clients, each with one request after another."""
    waiting, replies = iter(bodies), []

    async def client() -> None:
        for body in waiting:
            replies.append(await post(port, body))

    await asyncio.gather(*(client() for _ in range(clients)))
    return replies


def rate(port: int, bodies: list[dict[str, Any]], clients: int, **settings: Any) -> float:
    """Tokens per second of all."""
    started = time.perf_counter()
    replies = asyncio.run(closed_loop(port, [body | settings for body in bodies], clients))
    took = time.perf_counter() - started
    assert all(reply.status == 200 for reply in replies)
    return sum(body["max_tokens"] for body in bodies) / took


def stream(bench: Bench) -> None:
    """Decoding one text, beside the command."""
    command, port = bench.ours()
    ours, its = [], []
    with server(command, port):
        for _ in range(bench.rounds):
            body = {"prompt": bench.prompt(32), "max_tokens": 256, "stream": True} | GREEDY
            chunks = asyncio.run(post(port, body)).chunks
            ours.append((len(chunks) - 1) / (chunks[-1] - chunks[0]))
            options = ("-n", "256", "--temperature", "0", "--ignore-eos")
            its.append(
                bench.run("generate", "Once upon a time", *options)["timings"]["tokens_per_second"]
            )
    show("one stream, decode, ÷ gpt2 generate, tokens/s", ours, its, "0.9")


def bulk(bench: Bench) -> None:
    """Streams side by side, beside the rows of a file."""
    command, port = bench.ours()
    file, out = bench.directory / "rows.jsonl", bench.directory / "out.jsonl"
    with server(command, port):
        for clients in (16, 64):
            bodies = bench.requests(3 * clients, 40)
            streamed, plain, its = [], [], []
            for _ in range(bench.rounds):
                for body in bodies:
                    body["prompt"] = bench.prompt(len(body["prompt"]))
                file.write_text("".join(json.dumps(body) + "\n" for body in bodies))
                streamed.append(rate(port, bodies, clients, stream=True))
                limits = ("--max-sequences", str(clients), "--overwrite")
                its.append(
                    bench.run("bulk", str(file), "-o", str(out), *limits)["tokens_per_second"]
                )
                for body in bodies:
                    body["prompt"] = bench.prompt(len(body["prompt"]))
                plain.append(rate(port, bodies, clients))
            show(f"{clients} streams ÷ gpt2 bulk, tokens/s", streamed, its, "0.85")
            show(f"{clients} clients that do not stream ÷ gpt2 bulk", plain, its)


def peer(bench: Bench) -> None:
    """64 requests at once, beside llama-cpp-python's server."""
    name = GGUF[bench.precision]
    port = free_port()
    words = ["--model", str(bench.directory / f"{name}.gguf"), "--port", str(port)]
    threads = str(os.cpu_count() or 1)
    words += ["--n_threads", threads, "--n_threads_batch", threads, "--n_ctx", "1024"]
    other = [sys.executable, "-c", LLAMA_SERVER, *words]
    command, own_port = bench.ours()
    ours, its = [], []
    with server(command, own_port), server(other, port, "/v1/models"):
        for _ in range(min(bench.rounds, 3)):
            bodies = bench.requests(64, 48)
            for body in bodies:
                body["prompt"] = bench.tokenizer.decode(body["prompt"])
            ours.append(rate(own_port, bodies, 64))
            for body in bodies:  # it takes texts only, and knows no ignore_eos
                del body["ignore_eos"]
                body["logit_bias"] = {"50256": -100}
            its.append(rate(port, bodies, 64))
    show(f"64 requests ÷ llama-cpp-python's server, {name}, tokens/s", ours, its, "3")


def first(bench: Bench) -> None:
    """The first token of an idle server, beside reading the prompt."""
    decoder = opening.open_decoder(
        Path(bench.checkpoint), Placement("cpu", bench.precision), 4096, size=50257
    )
    command, port = bench.ours()
    with server(command, port):
        for length in (16, 64, 512):
            waited, read = [], []
            for _ in range(4 * bench.rounds):
                body = {"prompt": bench.prompt(length), "max_tokens": 2, "stream": True} | GREEDY
                reply = asyncio.run(post(port, body))
                waited.append(1000 * (reply.chunks[0] - reply.began))
                place, ids = decoder.open(), bench.prompt(length)
                started = time.perf_counter()
                decoder.read([Chunk(place, 0, ids)])
                read.append(1000 * (time.perf_counter() - started))
                decoder.close(place)
                time.sleep(0.05)
            more = [a - b for a, b in zip(waited, read, strict=True)]
            name = f"first token after {length} − prefill ({statistics.median(read):.0f} ms), ms"
            show(name, more, aim="15 at most")


def ready(bench: Bench) -> None:
    """From the command to the first request that is served."""
    found = []
    for _ in range(bench.rounds):
        command, port = bench.ours()
        with server(command, port) as (_, seconds):
            found.append(seconds)
    show("ready after the command, s", found, aim="1.0 at most")


def idle(bench: Bench) -> None:
    """The processor time of a server that has nothing to do."""
    command, port = bench.ours()
    with server(command, port) as (process, _):
        asyncio.run(post(port, {"prompt": "Once", "max_tokens": 8}))
        time.sleep(1)
        watched = psutil.Process(process.pid)
        before, started = sum(watched.cpu_times()[:2]), time.perf_counter()
        time.sleep(15)
        took = sum(watched.cpu_times()[:2]) - before
        show("idle, % of a core", [100 * took / (time.perf_counter() - started)], aim="1 at most")


async def open_loop(port: int, bodies: list[dict[str, Any]], per_second: float) -> list[Reply]:
    """Requests that come at their own pace, whatever becomes of the others."""
    tasks, started = [], time.perf_counter()
    for i, body in enumerate(bodies):
        await asyncio.sleep(max(0.0, started + i / per_second - time.perf_counter()))
        tasks.append(asyncio.create_task(post(port, body)))
    return await asyncio.gather(*tasks)


def load(bench: Bench) -> None:
    """Four times as many requests as it can serve."""
    command, port = bench.ours("--queue", "64")
    best, over, refused = [], [], []
    with server(command, port):
        for _ in range(min(bench.rounds, 3)):
            bodies = bench.requests(256, 32)
            best.append(rate(port, bodies, 64))
            tokens = sum(body["max_tokens"] for body in bodies)
            per_second = best[-1] / tokens * len(bodies)
            many = bench.requests(round(4 * per_second * 15), 32)
            started = time.perf_counter()
            replies = asyncio.run(open_loop(port, many, 4 * per_second))
            served = [i for i, reply in enumerate(replies) if reply.status == 200]
            took = max(replies[i].ended for i in served) - started
            over.append(sum(many[i]["max_tokens"] for i in served) / took)
            times = [r.ended - r.began for r in replies if r.status == 429]
            assert len(times) + len(served) == len(many)
            refused.append(1000 * float(np.quantile(times, 0.99)))
    show("tokens/s at four times the load ÷ the best", over, best, "0.95")
    show("a refusal (429), 99th percentile, ms", refused, aim="50 at most")


def soak(bench: Bench) -> None:
    """10,000 requests, of which every tenth client goes in the middle."""
    command, port = bench.ours()

    async def some(count: int, least: int = 1) -> None:
        waiting = iter(range(count))

        async def client() -> None:
            for i in waiting:
                length = least + i % (41 - least)
                body = {"prompt": bench.prompt(length), "max_tokens": 1 + i % 12} | GREEDY
                await post(port, body | {"stream": i % 3 == 0}, leaves=i % 10 == 0)

        await asyncio.gather(*(client() for _ in range(32)))

    with server(command, port) as (process, _):
        # Until as many beginnings are kept for others as ever will be: a quarter of the KV cache.
        asyncio.run(some(1500, 33))
        before = psutil.Process(process.pid).memory_info().rss
        asyncio.run(some(10_000))
        time.sleep(1)
        after = psutil.Process(process.pid).memory_info().rss
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
            lines = [line.split() for line in response.read().decode().splitlines()]
        values = {line[0]: float(line[1]) for line in lines if line and line[0] != "#"}
        show(
            "10,000 requests: resident memory more, MB", [(after - before) / 1e6], aim="30 at most"
        )
        lost = values["gpt2_kv_cache_pages"] - values["gpt2_kv_cache_free_pages"]
        show("pages of the KV cache that are lost", [lost], aim="0")
        show("texts that still count as open", [values["gpt2_running_texts"]], aim="0")


PARTS = {part.__name__: part for part in (ready, idle, first, stream, bulk, peer, load, soak)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="int8", choices=GGUF)
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        prepare(directory, select(GGUF[given.precision]))
        bench = Bench(directory, given.rounds, given.precision)
        bench.run("generate", "Once", "-n", "2")  # which quantizes once for all
        for part in given.parts:
            PARTS[part](bench)


if __name__ == "__main__":
    main()
