"""The load client: what it sends, how it takes answers apart, what it counts."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any

import pytest

from bench.stream_server import HEAD, StreamServer, chunk, completion, event, plain, token, usage
from octavo.bench.load import LoadGenerator, Target
from octavo.bench.report import Goals
from octavo.bench.serve import Load, LoadError, drive, measure
from octavo.bench.stream import BrokenAnswerError, CompletionStream
from octavo.bench.workloads import fixed, poisson_arrivals
from octavo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator


def run(
    server: StreamServer, count: int, output_len: int, concurrency: int | None = 2
) -> list[Any]:
    generator = LoadGenerator(Target(server.url, "m"), timeout_s=5)
    try:
        return generator.run(fixed(count, 8, output_len), concurrency=concurrency)
    finally:
        generator.close()


# --- Taking an answer apart ----------------------------------------------------------------------

WHOLE = b"".join(completion({"max_tokens": 5, "prompt": [1, 2, 3]}))


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 64, len(WHOLE)])
def test_an_answer_may_come_in_pieces_of_any_size(piece: int) -> None:
    stream = CompletionStream()
    for index in range(0, len(WHOLE), piece):
        assert not stream.done
        stream.feed(WHOLE[index : index + piece], float(index))
    assert (stream.done, stream.reusable, stream.error) == (True, True, "")
    assert (stream.num_prompt_tokens, stream.num_output_tokens) == (3, 5)
    assert len(stream.event_s) == 5
    assert list(stream.event_s) == sorted(stream.event_s)


def test_one_event_over_two_chunks_and_two_events_in_one() -> None:
    stream = CompletionStream()
    text = token() + token() + b": a comment\n\n" + token() + b"data: [DONE]\n\n"
    stream.feed(HEAD + chunk(text[:20]) + chunk(text[20:]) + b"0\r\n\r\n", 1.0)
    assert stream.done
    assert stream.num_output_tokens == len(stream.event_s) == 3


def test_without_chunks_the_length_or_the_close_ends_the_answer() -> None:
    text = token() + token()
    stream = CompletionStream()
    stream.feed(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(text) + text[:9], 1.0)
    assert not stream.done
    stream.feed(text[9:], 2.0)
    assert stream.done
    assert len(stream.event_s) == 2
    stream = CompletionStream()
    stream.feed(b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n" + text, 1.0)
    assert not stream.done
    stream.feed(b"", 2.0)
    assert stream.done
    assert not stream.reusable


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"SSH-2.0-OpenSSH\r\n\r\n", "not an HTTP answer"),
        (HEAD + b"zz\r\n", "no number"),
        (HEAD + chunk(b"data: {nonsense}\n\n"), "not what a completion sends"),
        (HEAD + chunk(token()), "closed the connection inside"),
        (b"", "closed the connection inside"),
    ],
)
def test_a_broken_answer_is_named(answer: bytes, message: str) -> None:
    stream = CompletionStream()

    def feed_and_close() -> None:
        stream.feed(answer, 1.0)
        stream.feed(b"", 2.0)

    with pytest.raises(BrokenAnswerError, match=message):
        feed_and_close()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"error": {"message": "queue full"}}', "HTTP 429: queue full"),
        ('{"error": "queue full"}', "HTTP 429: queue full"),
        ("<html>busy</html>", "HTTP 429: <html>busy</html>"),
    ],
)
def test_a_refusal_keeps_its_message(body: str, message: str) -> None:
    stream = CompletionStream()
    stream.feed(plain("429 Too Many Requests", body), 1.0)
    assert stream.done
    assert stream.error == message


def test_an_error_event_fails_the_request() -> None:
    stream = CompletionStream()
    body = chunk(token()) + chunk(event({"error": {"message": "engine failed", "code": 500}}))
    stream.feed(HEAD + body + b"0\r\n\r\n", 1.0)
    assert stream.done
    assert stream.error == "engine failed"


# --- Sending -------------------------------------------------------------------------------------


def test_requests_are_greedy_streams_of_token_ids_with_exact_length() -> None:
    with StreamServer() as server:
        generator = LoadGenerator(Target(server.url + "/v1/", "some/model", "s3cret", {"top_k": 4}))
        items = fixed(1, 6, 3)
        [record] = generator.run(items, concurrency=1)
        generator.close()
    body = server.requests[0]
    assert server.heads[0].startswith("POST /v1/completions HTTP/1.1\r\n")
    assert "Authorization: Bearer s3cret" in server.heads[0]
    assert body["prompt"] == list(items[0].prompt)
    expected = {"model": "some/model", "max_tokens": 3, "temperature": 0, "ignore_eos": True,
                "stream": True, "top_k": 4}  # fmt: skip
    assert {name: body[name] for name in expected} == expected
    assert (record.num_prompt_tokens, record.num_output_tokens, record.error) == (6, 3, "")
    assert record.sent_s < record.event_s[0] <= record.event_s[-1]


def test_closed_loop_keeps_its_concurrency_and_its_connections() -> None:
    def slow(request: dict[str, Any]) -> Iterator[bytes]:
        for part in completion(request):
            time.sleep(0.002)
            yield part

    with StreamServer(slow) as server:
        records = run(server, count=20, output_len=3, concurrency=4)
    assert len(records) == 20
    assert not [r.error for r in records if r.error]
    assert (server.peak, server.connections) == (4, 4)


def test_open_loop_sends_on_time_whatever_is_under_way() -> None:
    def slow(request: dict[str, Any]) -> Iterator[bytes]:
        time.sleep(0.3)
        yield from completion(request)

    with StreamServer(slow) as server:
        generator = LoadGenerator(Target(server.url, "m"))
        items = poisson_arrivals(fixed(20, 4, 2), rate=200.0)
        records = generator.run(items, concurrency=None)
        generator.close()
    assert server.peak > 10
    starts = sorted(r.due_s for r in records)
    expected = [i.arrival_s for i in items]
    assert [s - starts[0] for s in starts] == pytest.approx(expected, abs=1e-6)
    assert all(r.sent_s >= r.due_s for r in records)


def test_a_large_prompt_is_sent_whole() -> None:
    with StreamServer() as server:
        generator = LoadGenerator(Target(server.url, "m"))
        [record] = generator.run(fixed(1, 400_000, 1), concurrency=1)
        generator.close()
    assert record.num_prompt_tokens == 400_000


def test_a_stale_connection_is_tried_again_on_a_new_one() -> None:
    """The server closes each connection after its answer without saying so."""

    def close_after(request: dict[str, Any]) -> Iterator[bytes]:
        yield from completion(request)
        yield b""

    with StreamServer(close_after) as server:
        records = run(server, count=6, output_len=2, concurrency=1)
    assert [r.error for r in records] == [""] * 6
    assert server.connections == 6


def test_failures_are_counted_not_raised() -> None:
    numbers = itertools.count()

    def sometimes(request: dict[str, Any]) -> Iterator[bytes]:
        kind = next(numbers) % 3
        if kind == 0:
            yield plain("429 Too Many Requests", '{"error": {"message": "full"}}')
        elif kind == 1:
            yield HEAD + chunk(token())
        else:
            yield from completion(request)

    with StreamServer(sometimes) as server:
        records = run(server, count=9, output_len=3, concurrency=1)
    errors = sorted(r.error for r in records)
    assert len(records) == 9
    assert errors[:3] == [""] * 3
    assert errors.count("HTTP 429: full") == 3
    assert sum("closed the connection" in e for e in errors) == 3


def test_an_absent_server_fails_every_request() -> None:
    with StreamServer() as server:
        url = server.url
    generator = LoadGenerator(Target(url, "m"))
    records = generator.run(fixed(3, 4, 1), concurrency=2)
    generator.close()
    assert ["connect: " in r.error for r in records] == [True] * 3
    with pytest.raises(LoadError, match="connect"):
        measure(Target(url, "m"), fixed(3, 4, 1), Load())


def test_a_silent_server_is_given_up() -> None:
    def silent(request: dict[str, Any]) -> Iterator[bytes]:
        yield HEAD + chunk(token())
        time.sleep(3)

    with StreamServer(silent) as server:
        generator = LoadGenerator(Target(server.url, "m"), timeout_s=0.2)
        [record] = generator.run(fixed(1, 4, 2), concurrency=1)
        generator.close()
    assert "no event for" in record.error


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://localhost", "http://"])
def test_an_odd_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="expected a URL"):
        LoadGenerator(Target(url, "m"))


# --- Whole runs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("num_processes", [1, 3])
def test_every_process_takes_its_share(num_processes: int) -> None:
    with StreamServer() as server:
        items = fixed(25, 5, 4)
        result = drive(Target(server.url, "m"), items, Load(5, num_processes, num_warm_up=0))
    assert len(result.records) == 25
    assert not [r.error for r in result.records if r.error]
    assert sorted(r["prompt"] for r in server.requests) == sorted(list(i.prompt) for i in items)
    assert server.connections <= 5
    assert result.busiest > 0


def test_measure_warms_up_first_and_counts_only_the_load() -> None:
    with StreamServer() as server:
        load = Load(2, num_warm_up=3, goals=Goals(ttft_ms=10_000, tpot_ms=0.0))
        figures = measure(Target(server.url, "m"), fixed(10, 5, 4), load)
    assert len(server.requests) == 13
    assert (figures["completed"], figures["failed"], figures["wrong_length"]) == (10, 0, 0)
    assert (figures["prompt_tokens"], figures["output_tokens"], figures["events"]) == (50, 40, 40)
    assert set(figures["ttft_ms"]) == {"mean", "p50", "p90", "p99", "max"}
    assert figures["goodput_requests_per_s"] <= figures["requests_per_s"]


def test_short_answers_are_counted() -> None:
    def short(request: dict[str, Any]) -> Iterator[bytes]:
        yield HEAD + chunk(token()) + chunk(usage(4, 1)) + b"0\r\n\r\n"

    with StreamServer(short) as server:
        figures = measure(Target(server.url, "m"), fixed(4, 4, 7), Load(num_warm_up=0))
    assert figures["wrong_length"] == 4
