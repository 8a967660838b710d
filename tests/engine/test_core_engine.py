"""The extension's Engine: its life, its outputs, its errors."""

from __future__ import annotations

import gc
import mmap
import select
import struct
import threading
import time

import pytest

from engine.core_engine import (
    VOCAB_SIZE,
    allocated_engine,
    collect,
    engine_config,
    model_config,
    started_engine,
    tokens,
)
from octavo import _core
from octavo.engine.protocol import LOGPROB, RECORD
from octavo.errors import (
    CheckpointError,
    ConfigError,
    EngineError,
    InvalidRequestError,
    NotReadyError,
    OutOfMemoryError,
    QueueFullError,
    UnsupportedModelError,
)

GREEDY = _core.SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)


def test_a_request_yields_its_tokens_and_one_reason() -> None:
    engine = started_engine()
    engine.submit(7, tokens(1, 2, 3), GREEDY)
    outputs = collect(engine, [7])
    assert len(outputs.token_ids[7]) == 6
    assert outputs.reasons[7] == ["length"]
    engine.shutdown()


def test_columns_hold_what_was_asked_for() -> None:
    engine = started_engine()
    params = _core.SamplingParams(temperature=0.0, max_tokens=1, logprobs=3, prompt_logprobs=1)
    engine.submit(1, tokens(5, 6, 7, 8), params)
    batch = (engine.take_outputs(10.0) or [])[0]
    (record,) = RECORD.iter_unpack(batch.records)
    assert record[:4] == (1, 0, 1, 4)
    assert (*record[6:8], record[-1]) == (4, 6, 2)
    chosen, first, *_ = LOGPROB.iter_unpack(batch.logprobs)
    assert chosen == first  # greedy
    assert chosen[2] == 1
    prompt = list(LOGPROB.iter_unpack(batch.prompt_logprobs))
    assert [entry[0] for entry in prompt[::2]] == [6, 7, 8]
    assert batch.errors == {}
    engine.shutdown()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda a: a])
def test_any_buffer_of_int32_is_a_prompt(kind: type) -> None:
    engine = started_engine()
    prompt = tokens(4, 5, 6)
    engine.submit(1, kind(prompt) if kind is not bytes else prompt.tobytes(), GREEDY)
    assert collect(engine, [1]).reasons[1] == ["length"]
    engine.shutdown()


def test_n_sequences_finish_each() -> None:
    engine = started_engine()
    params = _core.SamplingParams(n=3, seed=5, max_tokens=4, ignore_eos=True)
    engine.submit(1, tokens(1, 2), params)
    deadline = time.monotonic() + 10
    reasons: list[int] = []
    while len(reasons) < 3 and time.monotonic() < deadline:
        for batch in engine.take_outputs(0.1) or []:
            reasons += [r[-1] for r in RECORD.iter_unpack(batch.records) if r[-1]]
    assert reasons == [2, 2, 2]
    engine.shutdown()


def test_abort_ends_a_request() -> None:
    engine = started_engine()
    engine.submit(1, tokens(1, 2), _core.SamplingParams(max_tokens=100, ignore_eos=True))
    engine.abort(1)
    engine.abort(99)  # unknown: harmless
    assert collect(engine, [1]).reasons[1] in (["abort"], ["length"])
    engine.shutdown()


def test_the_file_descriptor_tells_of_outputs() -> None:
    engine = started_engine()
    poll = select.poll()
    poll.register(engine.output_fd(), select.POLLIN)
    assert poll.poll(0) == []
    engine.submit(1, tokens(1, 2), GREEDY)
    assert poll.poll(10_000)
    collect(engine, [1])
    engine.shutdown()
    assert poll.poll(10_000)  # for good


def test_waiting_for_outputs_leaves_other_threads_running() -> None:
    engine = started_engine()
    taken: list[object] = []
    thread = threading.Thread(target=lambda: taken.append(engine.take_outputs(20.0)))
    thread.start()
    engine.submit(1, tokens(1, 2), GREEDY)
    thread.join(10)
    assert taken
    assert taken[0]
    engine.shutdown()


def test_take_outputs_times_out_and_ends_with_none() -> None:
    engine = started_engine()
    assert engine.take_outputs(0.01) == []
    engine.submit(1, tokens(1, 2), _core.SamplingParams(max_tokens=100, ignore_eos=True))
    engine.shutdown()
    records = []
    while (batches := engine.take_outputs(0.0)) is not None:
        records += [r for batch in batches for r in RECORD.iter_unpack(batch.records)]
    assert [r[-1] for r in records if r[-1]] in ([3], [2])
    assert engine.take_outputs(0.0) is None
    with pytest.raises(NotReadyError):
        engine.submit(2, tokens(1), GREEDY)
    engine.shutdown()


def test_an_engine_may_be_dropped_while_it_works() -> None:
    engine = started_engine()
    engine.submit(1, tokens(1, 2), _core.SamplingParams(max_tokens=100, ignore_eos=True))
    del engine
    gc.collect()


def test_heartbeat_beats_while_idle() -> None:
    engine = started_engine()
    page = mmap.mmap(-1, 4096)
    engine.set_heartbeat(page, 64)
    beats = set()
    deadline = time.monotonic() + 10
    while len(beats) < 3 and time.monotonic() < deadline:
        beats.add(struct.unpack_from("<q", page, 64)[0])
        time.sleep(0.02)
    assert max(beats) <= time.monotonic_ns()
    assert len(beats) == 3
    for offset in (-8, 4, 4096, 4095):
        with pytest.raises(ValueError, match="8 aligned bytes"):
            engine.set_heartbeat(page, offset)
    with pytest.raises(BufferError):
        engine.set_heartbeat(b"read-only", 0)
    engine.shutdown()


def test_stats_count() -> None:
    engine = started_engine(enable_prefix_caching=True)
    prompt = tokens(*range(40))
    for id_ in (1, 2):
        engine.submit(id_, prompt, GREEDY)
        collect(engine, [id_])
    stats = engine.stats()
    assert stats["num_prompt_tokens"] == 80
    assert stats["num_generation_tokens"] == 12
    assert stats["num_finished_length"] == 2
    assert stats["num_prefix_hit_tokens"] == 32
    assert stats["num_blocks"] == stats["num_free_blocks"] == 64
    assert stats["weight_bytes"] > 0
    assert stats["kv_cache_bytes"] > 0
    engine.reset_prefix_cache()
    engine.submit(3, prompt, GREEDY)
    collect(engine, [3])
    assert engine.stats()["num_prefix_hit_tokens"] == 32
    engine.shutdown()


def test_warm_up_and_self_test_before_start() -> None:
    engine = allocated_engine()
    assert engine.progress() == 0.0
    engine.warm_up()
    assert engine.progress() == 1.0
    engine.self_test()
    engine.start()
    assert engine.is_healthy()
    assert engine.last_error() == ""
    assert engine.max_model_len() == 128
    assert engine.device_name().startswith("cpu")
    engine.shutdown()


def test_steps_out_of_order_are_refused() -> None:
    engine = _core.Engine(engine_config(), model_config())
    engine.load_dummy_weights(1)
    for early in (engine.allocate_kv_cache, engine.warm_up, engine.self_test, engine.start):
        with pytest.raises(EngineError):
            early()
    with pytest.raises(EngineError):
        engine.submit(1, tokens(1), GREEDY)
    engine.finish_loading()
    with pytest.raises(EngineError):
        engine.load_dummy_weights(1)
    engine.shutdown()


def test_self_test_finds_damaged_weights() -> None:
    engine = _core.Engine(engine_config(weight_dtype="float32"), model_config())
    for spec in engine.weight_specs():
        value = float("nan") if spec.name == "model.norm.weight" else 0.01
        data = struct.pack("f", value) * (spec.rows * spec.cols)
        engine.load_weight(spec.name, "float32", spec.rows, spec.cols, data)
    engine.finish_loading()
    engine.allocate_kv_cache()
    with pytest.raises(EngineError, match="NaN"):
        engine.self_test()


def test_weights_are_checked() -> None:
    engine = _core.Engine(engine_config(), model_config())
    with pytest.raises(CheckpointError, match=r"lacks model\.embed_tokens\.weight"):
        engine.finish_loading()
    with pytest.raises(CheckpointError, match=r"'odd\.weight'"):
        engine.load_weight("odd.weight", "float32", 1, 1, b"1234")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight.*5 bytes"):
        engine.load_weight("model.norm.weight", "float32", 1, 32, b"12345")
    with pytest.raises(CheckpointError, match=r"\[32, 1\]"):
        engine.load_weight("model.norm.weight", "float32", 32, 1, bytes(128))
    with pytest.raises(CheckpointError):
        engine.load_weight("model.norm.weight", "float32", 1 << 62, 1 << 62, b"")
    engine.load_weight("model.norm.weight", "float32", 1, 32, bytes(128))
    assert 0.0 < engine.progress() < 1.0
    with pytest.raises(CheckpointError, match="twice"):
        engine.load_weight("model.norm.weight", "float32", 1, 32, bytes(128))
    with pytest.raises(ConfigError):
        engine.load_weight("lm_head.weight", "float99", 1, 1, b"")


def test_requests_are_checked() -> None:
    engine = started_engine(max_num_queued_reqs=2)
    for prompt in (tokens(), tokens(VOCAB_SIZE), tokens(-1), tokens(*([1] * 128)), b"123"):
        with pytest.raises(InvalidRequestError):
            engine.submit(1, prompt, GREEDY)
    with pytest.raises(TypeError):
        engine.submit(1, [1, 2], GREEDY)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError):
        engine.submit(1, tokens(1), _core.SamplingParams(top_p=2.0))
    engine.submit(1, tokens(1), GREEDY)
    assert collect(engine, [1]).reasons[1] == ["length"]
    engine.shutdown()


def test_the_queue_is_bounded() -> None:
    engine = allocated_engine(max_num_queued_reqs=2)
    engine.submit(1, tokens(1), GREEDY)
    engine.submit(2, tokens(1), GREEDY)
    with pytest.raises(QueueFullError):
        engine.submit(3, tokens(1), GREEDY)
    engine.start()
    assert set(collect(engine, [1, 2]).reasons) == {1, 2}
    engine.shutdown()


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"device": "tpu"}, ConfigError),
        ({"block_size": 0}, ConfigError),
        ({"max_num_seqs": 0}, ConfigError),
        ({"max_num_seqs": 65}, ConfigError),
        ({"kv_cache_dtype": "int3", "num_blocks": 4}, ConfigError),
        ({"max_model_len": 129}, ConfigError),
        ({"num_blocks": 4, "max_model_len": 128}, OutOfMemoryError),
        ({"num_blocks": 0, "kv_cache_memory_bytes": 1 << 50}, OutOfMemoryError),
        ({"num_blocks": (1 << 31) - 1, "block_size": 1024}, OutOfMemoryError),
    ],
)
def test_bad_configurations_are_named(changes: dict[str, object], error: type) -> None:
    with pytest.raises(error):
        allocated_engine(**changes)
    with pytest.raises(error):
        _core.plan_memory(engine_config(**changes), model_config(), {})


def test_unknown_architectures_are_named() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'mamba'.*llama"):
        _core.Engine(engine_config(), model_config(architecture="mamba"))


def test_plan_equals_what_is_taken() -> None:
    plan = _core.plan_memory(engine_config(num_blocks=0), model_config(), {})
    engine = allocated_engine(num_blocks=0)
    stats = engine.stats()
    assert plan["weights"] == stats["weight_bytes"]
    assert plan["num_blocks"] == pytest.approx(stats["num_blocks"], rel=0.05)
    assert plan["kv_cache"] == plan["num_blocks"] * plan["kv_block"]
    assert plan["max_model_len"] == engine.max_model_len() == 128
    assert plan["available"] > plan["kv_cache"] + plan["weights"] + plan["workspace"]
