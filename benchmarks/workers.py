"""Programs in processes of their own, which take turns.

    python benchmarks/workers.py DIRECTORY

is such a process. An `Entry` comes in, then requests, and answers go out, all pickled: (True,
result) or (False, message). The first tells of loading.
"""

from __future__ import annotations

import os
import pickle
import resource
import subprocess
import sys
import time
from collections.abc import Iterable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import psutil
from entries import Entry

PAUSE = 0.25  # seconds; OpenMP's threads spin for up to 0.2 after their work
LOOK = 0.1  # seconds after the pause, in which only others can be computing
PATIENCE = 900  # seconds for one answer

others: list[float] = []  # percent of the cores that other processes used, after each turn


class Died(RuntimeError):
    """A worker's process ended by itself."""


class Worker:
    """A program in its own process."""

    def __init__(self, entry: Entry, directory: Path) -> None:
        self.entry = entry
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=entry.checkout,
            env=entry.environment(directory),
        )
        self.send(entry)
        self.receive()

    def ask(self, *request: object) -> Any:
        """One answer, then the pause. Raises `RuntimeError` with what the program said."""
        self.send(request)
        answer = self.receive()
        time.sleep(PAUSE)
        others.append(psutil.cpu_percent(LOOK))
        return answer

    def send(self, message: object) -> None:
        assert self.process.stdin
        try:
            pickle.dump(message, self.process.stdin)
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Died("its process died") from None

    def receive(self) -> Any:
        assert self.process.stdout
        if not wait([self.process.stdout], PATIENCE):
            raise RuntimeError(f"no answer in {PATIENCE} s")
        try:
            fine, answer = pickle.load(self.process.stdout)
        except EOFError:
            raise Died("its process died") from None
        if not fine:
            raise RuntimeError(answer)
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def serve(directory: Path) -> None:
    """Load a program, then answer requests until there are no more."""
    from programs import PROGRAMS

    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a program prints is no answer

    def answer(*result: object) -> None:
        pickle.dump(result, answers)
        answers.flush()

    entry: Entry = pickle.load(sys.stdin.buffer)
    try:
        program = PROGRAMS[entry.program](directory, entry)
    except Exception as error:  # whatever a program raises, the others can still be measured
        answer(False, f"{type(error).__name__}: {error}")
        return
    answer(True, None)
    while True:
        try:
            action, *arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            act = peak_memory if action == "memory" else getattr(program, action)
            answer(True, act(*arguments))
        except Exception as error:
            answer(False, f"{type(error).__name__}: {error}")


def peak_memory() -> int:
    """The most bytes this process ever held resident, files mapped into it included."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count what the parent held when it forked
        lines: Iterable[str] = status.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    try:
        serve(Path(sys.argv[1]))
    except (KeyboardInterrupt, BrokenPipeError):
        os._exit(130)
