"""Frames: round trips, splits at every byte, limits, and what a hostile peer may send."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from octavo.engine.client import AdapterCard
from octavo.engine.framing import FrameBuffer, FrameError, decode, encode
from octavo.engine.protocol import (
    LENGTH,
    MAX_FRAME_BYTES,
    RECORD,
    Abort,
    Adapters,
    Done,
    GetStats,
    ListAdapters,
    LoadAdapter,
    Outputs,
    Refused,
    Stats,
    Submit,
    ToEngine,
    ToWorker,
    UnloadAdapter,
    Welcome,
)
from octavo.sampling_params import SamplingParams

ENCODER = msgspec.msgpack.Encoder()
TO_ENGINE = msgspec.msgpack.Decoder(ToEngine)
TO_WORKER = msgspec.msgpack.Decoder(ToWorker)

SAMPLING = SamplingParams(
    n=2, temperature=0.5, logit_bias={3: -1.5}, bad_words=((1, 2), (3,)), seed=2**64 - 1,
    stop=("a", "b"), logprobs=0,
)  # fmt: skip


@pytest.mark.parametrize(
    "message",
    [
        Submit(2**48 - 1, b"\x01\x00\x00\x00", SAMPLING, -3, 2**64 - 1),
        Abort([1, 2, 3]),
        GetStats(7),
        LoadAdapter(7, "poet", "a/poet", replaces=True),
        UnloadAdapter(8, "poet"),
        ListAdapters(9),
    ],
)
def test_messages_to_the_engine_survive(message: ToEngine) -> None:
    (frame,) = FrameBuffer().feed(encode(message, ENCODER))
    assert TO_ENGINE.decode(frame) == message


@pytest.mark.parametrize(
    "message",
    [
        Welcome(1, 49152, 8192),
        Outputs(b"r" * RECORD.size, b"t", b"l", b"p", {2**63: "why"}),
        Refused(5, "QueueFullError", "full"),
        Stats(7, {"num_running": 2.0}),
        Adapters([AdapterCard("poet", "poet-v1", "base")]),
        Done(7, "InvalidRequestError", "taken", "lora_name"),
    ],
)
def test_messages_to_the_worker_survive(message: ToWorker) -> None:
    (frame,) = FrameBuffer().feed(encode(message, ENCODER))
    assert TO_WORKER.decode(frame) == message


def test_a_record_is_as_long_as_the_engines() -> None:
    assert RECORD.size == 48


@given(st.lists(st.binary(max_size=300), max_size=8), st.lists(st.integers(1, 64), max_size=40))
def test_frames_come_out_whole_however_they_are_cut(bodies: list[bytes], cuts: list[int]) -> None:
    data = b"".join(LENGTH.pack(len(body)) + body for body in bodies)
    buffer, found = FrameBuffer(), []
    for cut in [*cuts, len(data)]:
        found += buffer.feed(data[:cut])
        data = data[cut:]
    assert found == bodies


def test_a_frame_over_the_limit_is_refused_by_its_length_alone() -> None:
    with pytest.raises(FrameError, match="over the limit"):
        FrameBuffer().feed(LENGTH.pack(MAX_FRAME_BYTES + 1))
    assert FrameBuffer().feed(LENGTH.pack(MAX_FRAME_BYTES)) == []


def test_a_frame_over_the_limit_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.engine.framing.MAX_FRAME_BYTES", 100)
    encode(Abort([1]), ENCODER)
    with pytest.raises(FrameError, match="over the limit"):
        encode(Submit(1, b"x" * 101, SAMPLING), ENCODER)


@given(st.binary(max_size=200))
@example(b"\x91\xa4\x00\x00\x00\x80")  # a tag that is not UTF-8
def test_noise_is_an_error_and_nothing_else(noise: bytes) -> None:
    for decoder in (TO_ENGINE, TO_WORKER):
        with contextlib.suppress(FrameError):
            decode(noise, decoder)
