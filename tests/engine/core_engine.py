"""A small engine with made-up weights, straight from the extension."""

from __future__ import annotations

import time
from array import array
from typing import TYPE_CHECKING, Any

from octavo import _core
from octavo.engine.protocol import FINISH_REASONS, RECORD

if TYPE_CHECKING:
    from collections.abc import Iterable

VOCAB_SIZE = 97


def model_config(**changes: Any) -> _core.ModelConfig:
    config = _core.ModelConfig()
    fields = {
        "architecture": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_layers": 2,
        "num_q_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        **changes,
    }
    for name, value in fields.items():
        setattr(config, name, value)
    return config


def engine_config(**changes: Any) -> _core.EngineConfig:
    config = _core.EngineConfig()
    fields = {"num_blocks": 64, "max_num_seqs": 8, "max_num_batched_tokens": 64, **changes}
    for name, value in fields.items():
        setattr(config, name, value)
    return config


def allocated_engine(**changes: Any) -> _core.Engine:
    """Everything but started."""
    engine = _core.Engine(engine_config(**changes), model_config())
    engine.load_dummy_weights(7)
    engine.finish_loading()
    engine.allocate_kv_cache()
    return engine


def started_engine(**changes: Any) -> _core.Engine:
    engine = allocated_engine(**changes)
    engine.start()
    return engine


def tokens(*ids: int) -> array[int]:
    return array("i", ids)


class Outputs:
    """What came of requests, by request id.

    Attributes:
        token_ids: Of all sequences together.
        reasons: How each sequence finished.
    """

    def __init__(self) -> None:
        self.token_ids: dict[int, list[int]] = {}
        self.reasons: dict[int, list[str]] = {}

    def take(self, batch: _core.OutputBatch) -> None:
        new = array("i")
        new.frombytes(batch.token_ids)
        begin = 0
        for id_, _, num_tokens, *_, reason in RECORD.iter_unpack(batch.records):
            self.token_ids.setdefault(id_, []).extend(new[begin : begin + num_tokens])
            begin += num_tokens
            if reason:
                self.reasons.setdefault(id_, []).append(str(FINISH_REASONS[reason]))


def collect(engine: _core.Engine, ids: Iterable[int], timeout_s: float = 30.0) -> Outputs:
    """Take outputs until a sequence of each request has finished."""
    outputs = Outputs()
    deadline = time.monotonic() + timeout_s
    while not set(ids) <= outputs.reasons.keys():
        assert time.monotonic() < deadline, f"unfinished, so far {outputs.reasons}"
        for batch in engine.take_outputs(0.1) or []:
            outputs.take(batch)
    return outputs
