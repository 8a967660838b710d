"""The outputs of a call with several prompts: bounded for slow readers, ended by close()."""

from __future__ import annotations

import threading
import time

from octavo.engine.client import RequestOutput, RequestStream
from octavo.server import merged_streams
from octavo.server.merged_streams import MergedStreams

NUM_TOKENS = 20_000


def streams(count: int) -> list[RequestStream]:
    return [RequestStream(1, lambda _: None, lambda _, __: None) for _ in range(count)]


def test_a_slow_reader_costs_a_bounded_queue_and_loses_nothing() -> None:
    both = streams(2)
    merged = MergedStreams(both)
    for i in range(NUM_TOKENS):
        for stream in both:
            stream.feed(RequestOutput(0, [i]))
    for stream in both:
        stream.feed(RequestOutput(0, [], finish_reason="length"))
    got: dict[int, list[int]] = {0: [], 1: []}
    num_outputs = 0
    while (item := merged.get(5)) is not None:
        index, output = item
        got[index] += output.token_ids
        num_outputs += 1
        assert merged._queue.qsize() <= merged_streams._MAX_QUEUED
    assert got == {0: list(range(NUM_TOKENS)), 1: list(range(NUM_TOKENS))}
    assert num_outputs < 2 * NUM_TOKENS
    assert merged.is_finished


def test_close_wakes_the_reader_and_lets_the_threads_end() -> None:
    before = threading.active_count()
    both = streams(2)
    merged = MergedStreams(both)
    for i in range(2 * merged_streams._MAX_QUEUED):
        both[0].feed(RequestOutput(0, [i]))
    got: list[object] = []
    reader = threading.Thread(target=lambda: got.extend(iter(lambda: merged.get(None), None)))
    reader.start()
    time.sleep(0.05)
    merged.close()
    for stream in both:
        stream.abort()
    reader.join(5)
    assert not reader.is_alive()
    assert merged.is_finished
    assert merged.get(None) is None
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
