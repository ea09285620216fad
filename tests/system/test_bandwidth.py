"""How fast memory is read: what counts, and that it is read."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from gpt2cli.system import bandwidth


def test_bandwidth_is_the_best_reading_but_not_the_first() -> None:
    times = iter([8.0, 5.0, 2.0, 4.0, 8.0, 8.0, 8.0, 8.0])
    now = [0.0]

    def clock() -> float:
        return now[0]

    warm = [False]

    def read() -> None:
        if warm[0]:
            now[0] += next(times)
        warm[0] = True  # the first reading takes no time at all, and must not count

    assert bandwidth.best(read, 100, 8, clock) == 50.0


def test_a_meter_keeps_the_best_of_all_its_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = iter([3.0, 5.0, 4.0])
    monkeypatch.setattr(bandwidth, "best", lambda read, size: next(rates))
    monkeypatch.setattr(bandwidth, "CPU_BUFFER", 1 << 20)
    monkeypatch.setattr(bandwidth.machine, "cache_size", lambda: None)
    meter = bandwidth.Meter("cpu", 1)
    seen = [meter.best]
    for _ in range(3):
        meter.read()
        seen.append(meter.best)
    assert seen == [0.0, 3.0, 5.0, 5.0]


@pytest.mark.parametrize("cache", [None, 1 << 20, 9 << 20])
def test_a_meter_reads_more_than_a_cache_holds(
    monkeypatch: pytest.MonkeyPatch, cache: int | None
) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(bandwidth, "CPU_BUFFER", 4 << 20)
    monkeypatch.setattr(bandwidth, "best", lambda read, size: float(sizes.append(size) is None))
    monkeypatch.setattr(bandwidth.machine, "cache_size", lambda: cache)
    bandwidth.Meter("cpu", 1).read()
    assert sizes == [max(4 << 20, 2 * (cache or 0))]


@pytest.mark.parametrize("threads", [1, 3])
def test_the_cpu_reads_a_buffer_of_its_own_by_all_threads(threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        read, size = bandwidth.cpu_reader(12_000_000, threads, pool)
        parts = read()
    assert size == 12_000_000
    assert parts == [1] * threads  # the greatest of the ones in each part


def test_torch_reads_every_number_once() -> None:
    read, size = bandwidth.torch_reader("cpu", 4_000_000)
    assert size == 4_000_000
    assert read() == 1_000_000  # the sum of as many ones
