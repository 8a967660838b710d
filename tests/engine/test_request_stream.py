"""RequestStream alone: what is merged, bounded, and safe between threads."""

from __future__ import annotations

import threading
import time

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
