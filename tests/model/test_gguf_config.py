from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from model.checkpoints import CONFIG, GgufBuilder, llama_tensors, write_model
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.model.config import to_core
from octavo.model.generation_config import gguf_generation_config
from octavo.model.gguf import GgufModel
from octavo.model.gguf_config import gguf_model_info
from octavo.model.hf_config import hf_model_info
from octavo.model.rope_factors import fit_llama3

if TYPE_CHECKING:
    from pathlib import Path

    from octavo.model.config import ModelInfo

pytest.importorskip("octavo._core")


def info(builder: GgufBuilder) -> ModelInfo:
    return gguf_model_info(GgufModel(builder.write()))


@pytest.fixture
def builder(tmp_path: Path) -> GgufBuilder:
    return GgufBuilder(tmp_path / "m.gguf")


@pytest.mark.parametrize("tied", [True, False])
def test_is_the_same_as_the_directory_s(tmp_path: Path, builder: GgufBuilder, tied: bool) -> None:
    config = CONFIG | {"tie_word_embeddings": tied}
    expected = hf_model_info(write_model(tmp_path / "hf", config))
    found = info(builder.add_llama(config))
    assert found.rope.interleaved
    rope = dataclasses.replace(found.rope, interleaved=False)
    assert found.rms_norm_eps == pytest.approx(expected.rms_norm_eps)
    assert dataclasses.replace(found, rope=rope, rms_norm_eps=1e-5) == expected


def test_biases_show_in_the_tensors(builder: GgufBuilder) -> None:
    builder.add_llama()
    for name in ("blk.0.attn_q.bias", "blk.0.ffn_up.bias"):
        builder.add_tensor(name, np.zeros(64, np.float32))
    found = info(builder)
    assert found.qkv_bias
    assert found.mlp_bias
    assert not found.attention_output_bias


def test_qwen2_rotates_halves(tmp_path: Path) -> None:
    assert not info(GgufBuilder(tmp_path / "m.gguf", "qwen2").add_llama()).rope.interleaved


def test_refuses_other_architectures(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"m\.gguf: architecture 'bert'.*llama"):
        info(GgufBuilder(tmp_path / "m.gguf", "bert").add_llama())


def test_layers_of_one_width_may_come_as_an_array(builder: GgufBuilder) -> None:
    tensors = llama_tensors()
    writer = builder.writer
    writer.add_block_count(2)
    writer.add_context_length(256)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length([96, 96])
    writer.add_head_count([4, 4])
    writer.add_head_count_kv([2, 2])
    builder.add_tensor("token_embd.weight", tensors["model.embed_tokens.weight"])
    found = info(builder)
    assert (found.intermediate_size, found.num_q_heads, found.num_kv_heads) == (96, 4, 2)
    assert found.rms_norm_eps == 1e-5
    assert found.rope.theta == 10000.0


def test_names_what_is_missing(builder: GgufBuilder) -> None:
    builder.writer.add_embedding_length(64)
    builder.add_tensor("token_embd.weight", np.zeros((8, 64), np.float32))
    with pytest.raises(CheckpointError, match=r"'llama\.attention\.head_count' is missing"):
        info(builder)


def test_needs_an_embedding(builder: GgufBuilder) -> None:
    builder.writer.add_embedding_length(64)
    with pytest.raises(CheckpointError, match=r"'token_embd\.weight' is missing"):
        info(builder)


@pytest.mark.parametrize(
    ("key", "value", "cause"),
    [
        ("llama.expert_used_count", 0, "0 of 8 experts"),
        ("llama.attention.value_length", 8, "different lengths"),
        ("llama.rope.scaling.type", "longrope", "rope scaling 'longrope'"),
    ],
)
def test_names_what_is_not_supported(
    builder: GgufBuilder, key: str, value: int | str, cause: str
) -> None:
    builder.add_llama()
    if key == "llama.expert_used_count":
        builder.writer.add_uint32("llama.expert_count", 8)
    add = builder.writer.add_string if isinstance(value, str) else builder.writer.add_uint32
    add(key, value)
    with pytest.raises(UnsupportedModelError, match=cause):
        info(builder)


def test_layers_that_differ_are_refused(builder: GgufBuilder) -> None:
    builder.writer.add_head_count([4, 8])
    builder.writer.add_embedding_length(64)
    builder.add_tensor("token_embd.weight", np.zeros((8, 64), np.float32))
    with pytest.raises(UnsupportedModelError, match="differs from layer to layer"):
        info(builder)


def test_linear_and_yarn(tmp_path: Path) -> None:
    linear = GgufBuilder(tmp_path / "linear.gguf").add_llama()
    linear.writer.add_string("llama.rope.scaling.type", "linear")
    linear.writer.add_float32("llama.rope.scaling.factor", 4.0)
    rope = info(linear).rope
    assert (rope.scaling, rope.factor) == ("linear", 4.0)
    old = GgufBuilder(tmp_path / "old.gguf").add_llama()
    old.writer.add_float32("llama.rope.scale_linear", 2.0)
    rope = info(old).rope
    assert (rope.scaling, rope.factor) == ("linear", 2.0)
    yarn = GgufBuilder(tmp_path / "yarn.gguf").add_llama()
    yarn.writer.add_string("llama.rope.scaling.type", "yarn")
    yarn.writer.add_float32("llama.rope.scaling.factor", 4.0)
    yarn.writer.add_uint32("llama.rope.scaling.original_context_length", 64)
    rope = info(yarn).rope
    assert (rope.scaling, rope.factor, rope.original_max_position_embeddings) == ("yarn", 4.0, 64)
    assert rope.attention_factor == pytest.approx(1 + 0.1 * math.log(4))


def test_end_ids(builder: GgufBuilder) -> None:
    builder.writer.add_eos_token_id(7)
    builder.writer.add_eot_token_id(3)
    builder.writer.add_bos_token_id(1)
    generation = gguf_generation_config(GgufModel(builder.write()))
    assert generation.eos_token_ids == (3, 7)
    assert generation.bos_token_id == 1


# --- Llama 3's frequency factors -----------------------------------------------------------------


def llama3_factors(
    head_dim: int, theta: float, factor: float, original: int, low: float = 1, high: float = 4
) -> np.ndarray:
    """As converters compute them from config.json."""
    frequencies = 1.0 / (theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim))
    factors = []
    for frequency in frequencies:
        wavelength = 2 * math.pi / frequency
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, dtype=np.float32)


@pytest.mark.parametrize(
    ("head_dim", "theta", "factor", "original", "low", "high"),
    [
        (128, 500000.0, 8.0, 8192, 1, 4),  # 3.1
        (64, 500000.0, 32.0, 8192, 1, 4),  # 3.2 1B
        (128, 500000.0, 16.0, 8192, 1, 2),
        (128, 10000.0, 4.0, 4096, 2, 8),
    ],
)
def test_recovers_llama3_from_its_factors(
    head_dim: int, theta: float, factor: float, original: int, low: float, high: float
) -> None:
    factors = llama3_factors(head_dim, theta, factor, original, low, high)
    found = fit_llama3(factors.tolist(), theta)
    assert found is not None
    assert found.factor == factor
    again = llama3_factors(
        head_dim,
        theta,
        found.factor,
        found.original_max_position_embeddings,
        found.low_freq_factor,
        found.high_freq_factor,
    )
    np.testing.assert_allclose(again, factors, rtol=1e-3)
    if high - low == 3:
        assert found.original_max_position_embeddings == pytest.approx(original, rel=1e-3)
        assert found.low_freq_factor == pytest.approx(low, rel=1e-3)


@pytest.mark.parametrize(
    "factors", [[1, 2, 1, 8], [0.5, 1, 1, 1], [1, 1, math.nan, 8], [1, 1, math.inf], [1, 1, 8, 8]]
)
def test_refuses_other_factors(factors: list[float]) -> None:
    with pytest.raises(UnsupportedModelError, match="does not follow"):
        fit_llama3(factors, 10000.0)


def test_factors_of_one_scale_nothing() -> None:
    assert fit_llama3([1.0] * 8, 10000.0) is None


def test_reads_the_factors_of_a_file(tmp_path: Path) -> None:
    config: dict[str, Any] = CONFIG | {
        "hidden_size": 128,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_theta": 500000.0,
    }
    factors = llama3_factors(64, 500000.0, 32.0, 8192)
    builder = GgufBuilder(tmp_path / "m.gguf").add_llama(config)
    rope = info(builder.add_tensor("rope_freqs.weight", factors)).rope
    assert (rope.scaling, rope.factor) == ("llama3", 32.0)
    assert rope.original_max_position_embeddings == pytest.approx(8192, rel=1e-3)


def test_refuses_factors_of_another_shape(builder: GgufBuilder) -> None:
    builder.add_llama().add_tensor("rope_freqs.weight", np.ones(5, np.float32))
    with pytest.raises(CheckpointError, match=r"'rope_freqs\.weight' is float32 \[5\]"):
        info(builder)


def test_the_engine_s_configuration_has_every_field(tmp_path: Path) -> None:
    core = pytest.importorskip("octavo._core")
    if not hasattr(core, "ModelConfig"):
        pytest.skip("an extension without the engine")
    rope = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}
    model = hf_model_info(write_model(tmp_path, CONFIG | {"rope_scaling": rope}))
    converted = to_core(model)
    for field in dataclasses.fields(model.rope):
        assert plain(getattr(converted.rope, field.name)) == getattr(model.rope, field.name)
    ropes = {"rope", "local_rope"}
    names = {f.name for f in dataclasses.fields(model)} - {"dtype"} - ropes
    for name in names:
        assert plain(getattr(converted, name)) == getattr(model, name)
    public = {name for name in dir(converted) if not name.startswith("_")}
    assert public == names | ropes


def plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
