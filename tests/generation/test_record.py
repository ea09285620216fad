"""What a generation left behind: texts, tokens, reasons and speeds."""

from collections.abc import Iterator

import pytest

from gpt2cli.generation.record import Recorder, Sample
from gpt2cli.generation.request import ChosenLogprob, Event


class Clock:
    """Stands in for `time.perf_counter`; moves only when told."""

    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def during(self, *timed: tuple[float, Event]) -> Iterator[Event]:
        """Events, each after some seconds of work."""
        for seconds, event in timed:
            self.now += seconds
            yield event


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.perf_counter", clock)
    return clock


def test_samples_are_put_together_from_interleaved_events() -> None:
    events = [
        Event(0, 5, "Once"),
        Event(1, 6, ""),
        Event(0, 7, " upon"),
        Event(1, 8, "é", "stop"),
        Event(0, None, " a", "eos"),
    ]
    recorder = Recorder(3)
    assert list(recorder.watch(events)) == events
    assert recorder.samples == [
        Sample("Once upon a", [5, 7], "eos", count=3),
        Sample("é", [6, 8], "stop", count=2),
        Sample("", [], None),
    ]
    assert recorder.tokens == 4


def test_the_token_that_ended_a_sample_has_its_logprob_apart() -> None:
    one, end = ChosenLogprob("a", 5, -1.0), ChosenLogprob("<|endoftext|>", 9, -2.0)
    sample = Sample()
    sample.add(Event(0, 5, "a", logprob=one))
    assert sample.end_logprob is None
    sample.add(Event(0, None, "", "eos", logprob=end))
    assert (sample.token_ids, sample.logprobs, sample.end_logprob) == ([5], [one], end)


def test_each_event_is_kept_before_it_is_passed_on() -> None:
    recorder = Recorder(1)
    watched = recorder.watch([Event(0, 1, "a"), Event(0, 2, "b", "length")])
    assert recorder.samples == [Sample()]
    next(watched)
    assert recorder.samples == [Sample("a", [1], None, count=1)]
    next(watched)
    assert recorder.samples == [Sample("ab", [1, 2], "length", count=2)]


def test_an_interrupted_sample_has_no_finish_reason() -> None:
    def interrupted() -> Iterator[Event]:
        yield Event(0, 1, "a")
        raise KeyboardInterrupt

    recorder = Recorder(1)
    with pytest.raises(KeyboardInterrupt):
        list(recorder.watch(interrupted()))
    assert recorder.samples == [Sample("a", [1], None, count=1)]


def test_speed_leaves_the_first_token_out(clock: Clock) -> None:
    recorder = Recorder(1)
    clock.now += 1000  # whatever passes before the generation begins does not count
    timed = [(2.0, Event(0, 1, "a")), (0.25, Event(0, 2, "b")), (0.25, Event(0, 3, "c", "length"))]
    list(recorder.watch(clock.during(*timed)))
    assert recorder.time_to_first_token == 2.0
    assert recorder.tokens_per_second == 4.0


def test_speed_is_summed_over_samples(clock: Clock) -> None:
    recorder = Recorder(2)
    timed = [(1.0, Event(0, 1, "")), (0.0, Event(1, 1, ""))]
    for step in range(5):
        timed += [(0.5, Event(0, step, "")), (0.0, Event(1, step, ""))]
    list(recorder.watch(clock.during(*timed)))
    assert recorder.tokens == 12
    assert recorder.time_to_first_token == 1.0
    assert recorder.tokens_per_second == 10 / 2.5


def test_a_sample_that_ends_at_once_does_not_slow_the_others(clock: Clock) -> None:
    recorder = Recorder(2)
    timed = [(1.0, Event(0, 1, "")), (0.0, Event(1, None, "", "eos"))]
    timed += [(0.5, Event(0, step, "")) for step in range(4)]
    list(recorder.watch(clock.during(*timed)))
    assert recorder.tokens_per_second == 2.0


def test_there_is_no_speed_before_there_is_a_second_token(clock: Clock) -> None:
    recorder = Recorder(1)
    assert recorder.tokens == 0
    assert recorder.time_to_first_token is None
    assert recorder.tokens_per_second is None
    list(recorder.watch(clock.during((3.0, Event(0, 1, "a", "length")))))
    assert recorder.time_to_first_token == 3.0
    assert recorder.tokens_per_second is None


def test_a_clock_that_stands_still_gives_no_speed(clock: Clock) -> None:
    recorder = Recorder(1)
    list(recorder.watch(clock.during((0.0, Event(0, 1, "a")), (0.0, Event(0, 2, "b", "length")))))
    assert recorder.time_to_first_token == 0.0
    assert recorder.tokens_per_second is None
