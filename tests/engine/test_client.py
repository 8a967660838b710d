"""SocketEngineClient and Endpoint, over a real socket, with a FakeEngine behind."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import msgspec
import pytest

from engine.stack import WAIT_S, Stack, params, tokens_of, wait_for
from fakes.fake_core import LOST_DEVICE, MAX_MODEL_LEN, VOCAB_SIZE
from octavo.engine.client import ModelInfo
from octavo.engine.framing import encode
from octavo.engine.protocol import Outputs, Welcome
from octavo.errors import (
    EngineFaultError,
    InvalidRequestError,
    NotReadyError,
    QueueFullError,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_a_request_gets_its_tokens_and_one_finish_reason(serve: Callable[..., Stack]) -> None:
    client = serve().connect()
    assert client.model_info() == ModelInfo(VOCAB_SIZE, MAX_MODEL_LEN)
    outputs = list(client.submit([1, 2, 3], params(5)))
    assert [t for o in outputs for t in o.token_ids] == [4, 5, 6, 7, 8]
    assert [o.finish_reason for o in outputs if o.finish_reason] == ["length"]
    assert outputs[-1].num_prompt_tokens == 3
    assert outputs[-1].stop_token_id is None
    assert client.num_live == 0


def test_prompt_tokens_may_come_as_bytes(serve: Callable[..., Stack]) -> None:
    client = serve().connect()
    assert tokens_of(client.submit(b"\x07\x00\x00\x00", params(2))) == [8, 9]


def test_n_sequences_share_a_stream(serve: Callable[..., Stack]) -> None:
    client = serve().connect()
    tokens: dict[int, list[int]] = {0: [], 1: [], 2: []}
    ends = []
    for output in client.submit([10], params(4, n=3)):
        tokens[output.sequence_index] += output.token_ids
        if output.finish_reason:
            ends.append(output.sequence_index)
    assert tokens == {0: [11, 12, 13, 14], 1: [12, 13, 14, 15], 2: [13, 14, 15, 16]}
    assert sorted(ends) == [0, 1, 2]


def test_logprobs_are_grouped_by_token(serve: Callable[..., Stack]) -> None:
    client = serve().connect()
    outputs = list(client.submit([1], params(3, logprobs=2)))
    groups = [group for output in outputs for group in output.logprobs]
    assert groups == [[(t, -0.5, 1), (t + 1, -1.0, 2), (t + 2, -1.5, 3)] for t in (2, 3, 4)]


def test_many_clients_and_requests_never_mix(serve: Callable[..., Stack]) -> None:
    stack = serve()
    clients = [stack.connect() for _ in range(3)]
    streams = [(i, clients[i % 3].submit([i], params(20))) for i in range(90)]
    for i, stream in streams:
        assert tokens_of(stream) == [(i + 1 + k) % VOCAB_SIZE for k in range(20)]
    wait_for(lambda: all(c.num_live == 0 for c in clients))


def test_a_slow_reader_gets_everything_in_few_outputs(serve: Callable[..., Stack]) -> None:
    client = serve().connect()
    stream = client.submit([1], params(500, logprobs=0))
    wait_for(lambda: client.num_live == 0, "the end of the request")
    outputs = list(stream)
    assert len(outputs) == 1
    assert outputs[0].token_ids == [(2 + k) % VOCAB_SIZE for k in range(500)]
    assert len(outputs[0].logprobs) == 500
    assert stream.is_finished


def test_outputs_tell_whether_the_queue_is_full(serve: Callable[..., Stack]) -> None:
    client = serve(step_s=0.02, max_num_queued=2).connect()
    assert not client.is_full()
    with client.submit([1], params(1000)):
        assert not client.is_full()
        with client.submit([1], params(1000)):
            wait_for(client.is_full, "a full queue")  # nothing was refused
        wait_for(lambda: not client.is_full(), "room")
        with client.submit([1], params(1000)), pytest.raises(QueueFullError):
            list(client.submit([1], params(1)))
    time.sleep(0.2)
    assert not client.is_full(), "a full queue is believed in for ever"


IN_A_WORKER = """
from gevent import monkey, sleep
monkey.patch_all()
import os, sys
from octavo.engine.socket_client import SocketEngineClient
from octavo.engine.status_page import StatusPage

client = SocketEngineClient(sys.argv[1], StatusPage())
client.start()
while not client.is_connected():
    sleep(0.01)
for _ in range(20):
    sleep(0.01)
print("the others ran", flush=True)
os._exit(0)
"""


def test_a_busy_engine_does_not_keep_the_loop_for_itself(tmp_path: Path) -> None:
    """Where data is always there, recv() never waits: it is the others' turn all the same."""
    path = str(tmp_path / "engine")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()

        def send_for_ever() -> None:
            encoder = msgspec.msgpack.Encoder()
            peer, _ = listener.accept()
            with peer, contextlib.suppress(OSError):
                peer.sendall(encode(Welcome(1, VOCAB_SIZE, MAX_MODEL_LEN), encoder))
                frames = encode(Outputs(b"", b""), encoder) * 10_000
                while True:
                    peer.sendall(frames)

        sender = threading.Thread(target=send_for_ever, daemon=True)
        sender.start()
        command = [sys.executable, "-c", IN_A_WORKER, path]
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
        sender.join(WAIT_S)
    assert done.stdout == "the others ran\n", done.stderr


def test_get_returns_none_after_the_timeout(serve: Callable[..., Stack]) -> None:
    client = serve(step_s=5.0).connect()
    stream = client.submit([1], params(5))
    assert stream.get(WAIT_S) is not None
    assert stream.get(0.05) is None
    assert not stream.is_finished


def test_abort_reaches_the_engine_and_ends_the_reader(serve: Callable[..., Stack]) -> None:
    stack = serve(step_s=0.01)
    client = stack.connect()
    stream = client.submit([1], params(10**6))
    assert stream.get(WAIT_S) is not None
    stream.abort()
    stream.abort()
    wait_for(lambda: stack.engine.aborted, "the abort")
    assert len(stack.engine.aborted) == 1
    assert list(stream) == [] or stream.is_finished
    assert client.num_live == 0
    assert stack.engine.stats()["num_running"] == 0


def test_leaving_the_stream_aborts_it(serve: Callable[..., Stack]) -> None:
    stack = serve(step_s=0.01)
    client = stack.connect()
    with client.submit([1], params(10**6)) as stream:
        assert stream.get(WAIT_S) is not None
    wait_for(lambda: stack.engine.aborted, "the abort")


def test_a_client_that_goes_away_frees_its_requests(serve: Callable[..., Stack]) -> None:
    stack = serve(step_s=0.01)
    stays, goes = stack.connect(), stack.connect()
    kept = stays.submit([500], params(100))
    for i in range(5):
        goes.submit([i], params(10**6))
    wait_for(lambda: stack.engine.stats()["num_running"] == 6)
    goes.close()
    wait_for(lambda: len(stack.engine.aborted) == 5, "five aborts")
    assert len(tokens_of(kept)) == 100
    assert stack.connect().model_info() is not None


def test_a_worker_that_is_gone_before_it_is_accepted_harms_nobody(
    serve: Callable[..., Stack], tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as gone:
        gone.connect(str(tmp_path / "engine"))
    stack = serve()
    assert tokens_of(stack.connect().submit([1], params(2))) == [2, 3]


def test_refusals_come_out_of_the_stream(serve: Callable[..., Stack]) -> None:
    client = serve(max_num_queued=0).connect()
    with pytest.raises(InvalidRequestError, match="A token id is out of range"):
        client.submit([VOCAB_SIZE], params(1)).get(WAIT_S)
    with pytest.raises(QueueFullError, match="wait already"):
        client.submit([1], params(1)).get(WAIT_S)
    with pytest.raises(InvalidRequestError, match="out of range"):
        client.submit([2**40], params(1))
    assert client.num_live == 0


def test_an_engine_fault_carries_its_message(serve: Callable[..., Stack]) -> None:
    stack = serve(step_s=0.01)
    client = stack.connect()
    stream = client.submit([1], params(10**6))
    wait_for(lambda: stack.engine.stats()["num_running"] == 1)
    stack.engine.end_with_error("The logits hold a NaN.")
    with pytest.raises(EngineFaultError, match="NaN"):
        for _ in stream:
            pass


def test_a_lost_device_is_named_by_the_endpoint_and_in_the_log(
    serve: Callable[..., Stack], caplog: pytest.LogCaptureFixture
) -> None:
    stack = serve(lost_on_token=1)
    stream = stack.connect().submit([1], params(10**6))
    with pytest.raises(EngineFaultError) as caught:
        for _ in stream:
            pass
    assert LOST_DEVICE not in str(caught.value)
    stack.thread.join(WAIT_S)
    assert str(stack.failures[0]) == LOST_DEVICE
    assert f"A step failed: {LOST_DEVICE}" in caplog.text


def test_an_engine_that_ends_in_good_order_fails_what_runs(serve: Callable[..., Stack]) -> None:
    stack = serve(step_s=0.01)
    client = stack.connect()
    stream = client.submit([1], params(10**6))
    assert stream.get(WAIT_S) is not None
    stack.stop()
    with pytest.raises(EngineFaultError):
        for _ in stream:
            pass


def test_the_end_of_the_engine_fails_streams_and_the_next_one_serves(
    serve: Callable[..., Stack],
) -> None:
    first = serve(step_s=0.01)
    client = first.connect()
    stream = client.submit([1], params(10**6))
    assert stream.get(WAIT_S) is not None
    first.engine.fail(RuntimeError("device lost"))
    with pytest.raises(EngineFaultError):
        for _ in stream:
            pass
    first.thread.join(WAIT_S)
    assert "device lost" in str(first.failures[0])
    wait_for(lambda: not client.is_connected(), "the end of the connection")
    with pytest.raises(NotReadyError):
        client.submit([1], params(1))
    serve()
    wait_for(client.is_connected, "the new connection")
    assert tokens_of(client.submit([1], params(3))) == [2, 3, 4]


def test_draining_admits_no_more(serve: Callable[..., Stack]) -> None:
    stack = serve()
    client = stack.connect()
    stack.page.begin_draining()
    with pytest.raises(NotReadyError, match="shutting down"):
        client.submit([1], params(1))


def test_a_dead_engine_admits_nothing(serve: Callable[..., Stack]) -> None:
    stack = serve()
    client = stack.connect()
    stack.page.engine_died("killed")
    with pytest.raises(NotReadyError):
        client.submit([1], params(1))


def test_fail_all_ends_every_stream_and_frees_the_engine(serve: Callable[..., Stack]) -> None:
    stack = serve(step_s=0.01)
    client = stack.connect()
    streams = [client.submit([i], params(10**6)) for i in range(3)]
    wait_for(lambda: stack.engine.stats()["num_running"] == 3)
    client.fail_all(NotReadyError("The server is shutting down."))
    for stream in streams:
        with pytest.raises(NotReadyError):
            for _ in stream:
                pass
    wait_for(lambda: len(stack.engine.aborted) == 3)


def test_stats_and_reset(serve: Callable[..., Stack]) -> None:
    stack = serve()
    client = stack.connect()
    assert client.stats(WAIT_S)["num_waiting"] == 0
    client.reset_prefix_cache()
    wait_for(lambda: stack.engine.num_resets == 1)
    client.self_check()
    wait_for(lambda: stack.engine.num_self_checks == 1)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",
        b"\x05\x00\x00\x00junk!",
        b"\x01\x00\x00\x00\x93",
        b"\x06\x00\x00\x00\x91\xa4\x00\x00\x00\x80",
    ],
    ids=["huge length", "not a message", "truncated array", "not UTF-8"],
)
def test_a_mad_peer_is_dropped_and_the_rest_lives(serve: Callable[..., Stack], data: bytes) -> None:
    stack = serve()
    client = stack.connect()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as mad:
        mad.connect(stack.path)
        mad.settimeout(WAIT_S)
        mad.sendall(data)
        while mad.recv(4096):
            pass
    assert tokens_of(client.submit([1], params(2))) == [2, 3]


def test_a_worker_that_does_not_read_is_dropped(
    serve: Callable[..., Stack], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo.engine.endpoint.MAX_BACKLOG_BYTES", 1 << 16)
    stack = serve()
    client = stack.connect()
    silent = stack.connect()
    silent._feed = lambda outputs: time.sleep(WAIT_S)  # type: ignore[method-assign]
    streams = [silent.submit([i], params(4000, logprobs=20)) for i in range(8)]
    wait_for(lambda: len(stack.engine.aborted) >= len(streams), "the drop")
    assert tokens_of(client.submit([1], params(2))) == [2, 3]


def test_the_client_ticks_its_streams(
    serve: Callable[..., Stack], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo.engine.client.LONG_WAIT_S", 0.1)
    client = serve(step_s=60.0).connect()
    stream = client.submit([1], params(5))
    assert stream.get(WAIT_S) is not None
    assert stream.get(0.2) is None


def test_one_sequence_can_be_aborted(serve: Callable[..., Stack]) -> None:
    stack = serve(step_s=0.002)
    client = stack.connect()
    stream = client.submit([1, 2, 3], params(200, n=2))
    tokens: dict[int, list[int]] = {0: [], 1: []}
    reasons: dict[int, str] = {}
    for output in stream:
        tokens[output.sequence_index] += output.token_ids
        if output.finish_reason:
            reasons[output.sequence_index] = output.finish_reason
        if output.sequence_index == 0 and len(tokens[0]) >= 3:
            stream.abort_sequence(0)
    assert reasons == {0: "abort", 1: "length"}
    assert len(tokens[0]) < 200
    assert len(tokens[1]) == 200
    assert next(each for each in stack.engine.aborted if isinstance(each, tuple))[1] == 0
    assert client.num_live == 0
    stream.abort_sequence(1)  # over: harmless
