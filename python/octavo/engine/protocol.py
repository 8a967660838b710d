"""Frames between HTTP workers and the engine process, over one AF_UNIX stream socket a worker.

A frame is a little-endian uint32 length and that many bytes of msgpack. The connection's first
frame from the engine is Welcome. Request ids are unique within a connection and below 2**48; the
engine process adds the connection number in bits 48..63 before it submits.

Outputs carries columns as bytes, exactly as the engine keeps them:
  records          OutputRecord each, see RECORD
  token_ids        int32 little-endian, in record order
  logprobs         LOGPROB each, in record order
  prompt_logprobs  LOGPROB each, in record order
  pooled           float32 little-endian, in record order: parts of a sum, to be added
"""

from __future__ import annotations

import struct

import msgspec

from octavo.engine.client import AdapterCard
from octavo.sampling_params import SamplingParams

MAX_FRAME_BYTES = 64 << 20
LENGTH = struct.Struct("<I")

# request_id, sequence_index, num_tokens, num_prompt_tokens, num_cached_tokens, stop_token_id,
# num_logprobs, num_prompt_logprobs, queue_time_us, num_pooled, finish_reason
RECORD = struct.Struct("<QIIIIiIIIIB3x")
# token_id, logprob, rank
LOGPROB = struct.Struct("<ifi")

FINISH_REASONS = (None, "stop", "length", "abort", "error")


class Submit(msgspec.Struct, tag="submit", array_like=True, frozen=True):
    """A request: token_ids is int32 little-endian; adapter is a name, "" for none."""

    id: int
    token_ids: bytes
    sampling: SamplingParams
    priority: int = 0
    cache_salt: int = 0
    adapter: str = ""


class Abort(msgspec.Struct, tag="abort", array_like=True, frozen=True):
    """Stop these requests; each still gets its last record."""

    ids: list[int]


class AbortSequence(msgspec.Struct, tag="abort_sequence", array_like=True, frozen=True):
    """Stop one sequence of a request; it still gets its last record."""

    id: int
    index: int


class GetStats(msgspec.Struct, tag="get_stats", array_like=True, frozen=True):
    """Ask for Stats."""

    token: int


class ResetPrefixCache(msgspec.Struct, tag="reset_prefix_cache", array_like=True, frozen=True):
    """Forget every cached block that nobody holds."""


class SelfCheck(msgspec.Struct, tag="self_check", array_like=True, frozen=True):
    """Have the engine check its own accounting; num_self_checks of Stats tells of it."""


class LoadAdapter(msgspec.Struct, tag="load_adapter", array_like=True, frozen=True):
    """Load an adapter from below --lora-root. Adapters, then Done answers."""

    token: int
    name: str
    path: str
    replaces: bool = False


class UnloadAdapter(msgspec.Struct, tag="unload_adapter", array_like=True, frozen=True):
    """Refuse new requests for an adapter. Adapters, then Done answers."""

    token: int
    name: str


class ListAdapters(msgspec.Struct, tag="list_adapters", array_like=True, frozen=True):
    """Ask for Adapters, then Done."""

    token: int


class Sleep(msgspec.Struct, tag="sleep", array_like=True, frozen=True):
    """Admit nothing more and give the KV cache back, once what runs has ended or is aborted."""

    aborts: bool


class WakeUp(msgspec.Struct, tag="wake_up", array_like=True, frozen=True):
    """Take the KV cache again and admit requests."""


class Welcome(msgspec.Struct, tag="welcome", array_like=True, frozen=True):
    """First frame of a connection, sent once the engine is ready; Adapters follows."""

    connection: int
    vocab_size: int
    max_model_len: int
    hidden_size: int = 0


class Adapters(msgspec.Struct, tag="adapters", array_like=True, frozen=True):
    """The adapters that are loaded; every worker is told when they change."""

    cards: list[AdapterCard]


class Done(msgspec.Struct, tag="done", array_like=True, frozen=True):
    """What LoadAdapter and its like asked for is done, or failed: kind as in Refused."""

    token: int
    kind: str = ""
    message: str = ""
    param: str | None = None


class Outputs(msgspec.Struct, tag="outputs", array_like=True, frozen=True):
    """What one engine step produced for this worker."""

    records: bytes
    token_ids: bytes
    logprobs: bytes = b""
    prompt_logprobs: bytes = b""
    errors: dict[int, str] = {}
    pooled: bytes = b""


class Refused(msgspec.Struct, tag="refused", array_like=True, frozen=True):
    """A submit that the engine did not accept: kind is a class name of octavo.errors."""

    id: int
    kind: str
    message: str


class Stats(msgspec.Struct, tag="stats", array_like=True, frozen=True):
    """Counters and gauges of the engine by name, answering GetStats."""

    token: int
    values: dict[str, float]


ToEngine = (
    Submit
    | Abort
    | AbortSequence
    | GetStats
    | ResetPrefixCache
    | SelfCheck
    | LoadAdapter
    | UnloadAdapter
    | ListAdapters
    | Sleep
    | WakeUp
)
ToWorker = Welcome | Outputs | Refused | Stats | Adapters | Done
