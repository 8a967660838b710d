"""RequestStream alone: what is merged, bounded, and safe between threads."""

from __future__ import annotations

import threading
import time
import weakref

import pytest

from octavo.engine.client import RequestOutput, RequestStream
from octavo.errors import EngineFaultError


def piece(sequence: int, *tokens: int, reason: str | None = None) -> RequestOutput:
    logprobs = [[(token, -1.0, 1)] for token in tokens]
    return RequestOutput(sequence, list(tokens), logprobs=logprobs, finish_reason=reason)


def test_a_stream_merges_what_its_reader_left() -> None:
    stream = RequestStream(1, lambda _: None, lambda _, __: None)
    stream.feed(piece(0, 1))
    stream.feed(piece(0, 2))
    stream.feed(piece(0, 3, reason="stop"))
    assert stream.get(0) == piece(0, 1, 2, 3, reason="stop")
    assert stream.get(0) is None
    assert stream.is_finished


def test_a_stream_of_several_sequences_stays_bounded() -> None:
    stream = RequestStream(3, lambda _: None, lambda _, __: None)
    for token in range(1000):
        for sequence in range(3):
            stream.feed(piece(sequence, token, reason="length" if token == 999 else None))
    found: dict[int, list[int]] = {0: [], 1: [], 2: []}
    outputs = list(stream)
    assert len(outputs) <= 6
    for output in outputs:
        found[output.sequence_index] += output.token_ids
    assert found == {each: list(range(1000)) for each in range(3)}
    assert sum(output.finish_reason is not None for output in outputs) == 3


def test_a_failed_stream_gives_what_it_has_and_then_the_error() -> None:
    stream = RequestStream(1, lambda _: None, lambda _, __: None)
    stream.feed(piece(0, 1))
    stream.fail(EngineFaultError("first"))
    stream.fail(EngineFaultError("second"))
    stream.feed(piece(0, 2))
    assert stream.get(0) == piece(0, 1, 2)
    with pytest.raises(EngineFaultError, match="first"):
        stream.get(0)


def test_a_long_wait_ends_when_ticked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.engine.client.LONG_WAIT_S", 0.0)
    stream = RequestStream(1, lambda _: None, lambda _, __: None, is_ticked=True)
    results: list[object] = []
    began = time.monotonic()
    thread = threading.Thread(target=lambda: results.append(stream.get(0.2)))
    thread.start()
    while thread.is_alive():
        stream.tick(time.monotonic())
        time.sleep(0.01)
    assert results == [None]
    assert time.monotonic() - began >= 0.2


def test_threads_may_feed_and_read_at_the_same_time() -> None:
    """Under real threads, where every interleaving can happen."""
    for _ in range(20):
        stream = RequestStream(2, lambda _: None, lambda _, __: None)

        def feed(stream: RequestStream = stream) -> None:
            for token in range(300):
                for sequence in range(2):
                    stream.feed(piece(sequence, token, reason="stop" if token == 299 else None))

        thread = threading.Thread(target=feed)
        thread.start()
        found: dict[int, list[int]] = {0: [], 1: []}
        for output in stream:
            found[output.sequence_index] += output.token_ids
            assert [group[0][0] for group in output.logprobs] == output.token_ids
        thread.join()
        assert found == {0: list(range(300)), 1: list(range(300))}


class Taker:
    """Takes outputs until it is told to call the reader."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.is_content = True

    def __call__(self, output: RequestOutput) -> bool:
        self.taken += output.token_ids
        return self.is_content


class Reader:
    """A thread in one get() of a stream that a taker is diverted to."""

    def __init__(self, stream: RequestStream, timeout: float | None = None) -> None:
        self.results: list[RequestOutput | None] = []
        self._thread = threading.Thread(target=lambda: self.results.append(stream.get(timeout)))
        self._thread.start()
        deadline = time.monotonic() + 10
        while not stream.is_diverted and time.monotonic() < deadline:
            time.sleep(0.001)

    def result(self) -> RequestOutput | None:
        self._thread.join(10)
        [result] = self.results
        return result

    @property
    def still_waits(self) -> bool:
        self._thread.join(0.02)
        return self._thread.is_alive()


@pytest.fixture
def diverted() -> tuple[RequestStream, Taker]:
    stream, taker = RequestStream(2, lambda _: None, lambda _, __: None), Taker()
    stream.divert(taker)
    return stream, taker


def test_a_taker_spares_the_reader(diverted: tuple[RequestStream, Taker]) -> None:
    stream, taker = diverted
    reader = Reader(stream)
    for token in range(3):
        assert stream.feed(piece(0, token))
        stream.deliver()
    for token in range(3, 6):  # of several steps
        assert stream.feed(piece(0, token))
    stream.deliver()
    assert taker.taken == list(range(6))
    assert reader.still_waits
    assert stream.feed(piece(0, 6, reason="stop"))
    stream.deliver()
    assert reader.result() == piece(0, 6, reason="stop")
    assert taker.taken == list(range(6))


def test_what_the_reader_has_to_see_keeps_its_order(diverted: tuple[RequestStream, Taker]) -> None:
    stream, taker = diverted
    reader = Reader(stream)
    stream.feed(piece(0, 1))
    stream.feed(piece(1, 2, reason="length"))
    stream.feed(piece(0, 3))
    stream.deliver()
    assert not stream.feed(piece(0, 4))  # the reader has been woken: it is its again
    stream.deliver()
    assert reader.result() == piece(1, 2, reason="length")
    assert stream.get(0) == piece(0, 3, 4)
    assert taker.taken == [1]


def test_a_taker_calls_the_reader(diverted: tuple[RequestStream, Taker]) -> None:
    stream, taker = diverted
    taker.is_content = False
    reader = Reader(stream)
    stream.feed(piece(0, 1))
    stream.feed(piece(1, 2))
    stream.deliver()
    assert reader.result() in (None, piece(1, 2))
    assert taker.taken == [1]
    rest = [reader.results[0], stream.get(0), stream.get(0)]
    assert [each for each in rest if each is not None] == [piece(1, 2)]


def test_without_a_waiting_reader_nothing_is_taken(diverted: tuple[RequestStream, Taker]) -> None:
    stream, taker = diverted
    assert not stream.feed(piece(0, 1))
    stream.deliver()
    assert stream.get(0) == piece(0, 1)
    assert taker.taken == []


def test_an_aborted_stream_lets_go_of_its_taker() -> None:
    """Which refers to the stream: the cycle would keep a request's prompt until it is found."""
    stream, taker = RequestStream(1, lambda _: None, lambda _, __: None), Taker()
    stream.divert(taker)
    reader = Reader(stream)
    stream.feed(piece(0, 1))
    stream.abort()
    stream.deliver()
    assert reader.result() == piece(0, 1)
    assert taker.taken == []
    gone = weakref.ref(taker)
    del taker
    assert gone() is None


def test_what_is_taken_begins_the_wait_anew(
    monkeypatch: pytest.MonkeyPatch, diverted: tuple[RequestStream, Taker]
) -> None:
    monkeypatch.setattr("octavo.engine.client.LONG_WAIT_S", 0.0)
    stream = RequestStream(1, lambda _: None, lambda _, __: None, is_ticked=True)
    _, taker = diverted
    stream.divert(taker)
    reader = Reader(stream, timeout=1000.0)
    now = time.monotonic()
    stream.feed(piece(0, 1))
    stream.deliver()
    stream.tick(now + 1001)
    assert reader.still_waits
    stream.tick(now + 2000)
    assert reader.still_waits
    stream.abort()
    assert reader.result() is None
