"""The GGUF reader through the extension, against files of the gguf package."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest

from model.checkpoints import GgufBuilder, llama_tensors
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.model.gguf import GgufModel
from octavo.model.gguf_names import places

if TYPE_CHECKING:
    from pathlib import Path

_core = pytest.importorskip("octavo._core")

Q = gguf.GGMLQuantizationType


def read(model: GgufModel, name: str) -> bytes:
    out = bytearray(model.tensors[name].num_bytes)
    model.read(name, memoryview(out))
    return bytes(out)


@pytest.mark.parametrize("quantization", [Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1])
def test_reads_what_the_gguf_package_writes(tmp_path: Path, quantization: Q) -> None:
    value = np.random.default_rng(1).normal(size=(6, 64)).astype(np.float32)
    path = GgufBuilder(tmp_path / "m.gguf").add_tensor("t", value, quantization).write()
    model = GgufModel(path)
    entry = model.tensors["t"]
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    assert entry.dtype == names.get(quantization.name, quantization.name.lower())
    assert entry.shape == (6, 64)
    packed = value if quantization == Q.F32 else gguf.quantize(value, quantization)
    assert read(model, "t") == packed.tobytes()


@pytest.mark.parametrize(
    "quantization", [Q.Q5_0, Q.Q5_1, Q.IQ4_NL, Q.IQ4_XS, Q.Q2_K, Q.Q3_K, Q.Q4_K, Q.Q5_K, Q.Q6_K]
)
def test_reads_other_blocks(tmp_path: Path, quantization: Q) -> None:
    elements, num_bytes = gguf.GGML_QUANT_SIZES[quantization]
    raw = np.random.default_rng(2).integers(0, 256, (3, 2 * num_bytes), dtype=np.uint8)
    builder = GgufBuilder(tmp_path / "m.gguf")
    builder.writer.add_tensor("t", raw, raw_dtype=quantization)
    model = GgufModel(builder.write())
    assert model.tensors["t"].shape == (3, 2 * elements)
    assert read(model, "t") == raw.tobytes()


def test_names_the_unsupported_type(tmp_path: Path) -> None:
    builder = GgufBuilder(tmp_path / "m.gguf")
    builder.writer.add_tensor("t", np.zeros((2, 54), np.uint8), raw_dtype=Q.TQ1_0)
    with pytest.raises(UnsupportedModelError, match=r"m\.gguf: tensor 't' has type TQ1_0"):
        GgufModel(builder.write())


def test_metadata_has_types(tmp_path: Path) -> None:
    builder = GgufBuilder(tmp_path / "m.gguf")
    builder.writer.add_array("test.words", ["a", "é", ""])
    builder.writer.add_array("test.numbers", [1, 2])
    builder.writer.add_float32("test.float", 0.5)
    builder.writer.add_bool("test.bool", True)
    metadata = GgufModel(builder.write()).metadata
    assert metadata.need("general.architecture", str) == "llama"
    assert metadata.get_list("test.words", str) == ["a", "é", ""]
    assert metadata.get_list("test.numbers", int) == [1, 2]
    assert metadata.get("test.float", float) == 0.5
    assert metadata.get("test.bool", bool) is True
    assert metadata.get("test.absent", int) is None
    with pytest.raises(CheckpointError, match=r"'test.absent' is missing"):
        metadata.need("test.absent", int)
    with pytest.raises(CheckpointError, match=r"'test.bool' is of type bool, not int"):
        metadata.get("test.bool", int)
    with pytest.raises(CheckpointError, match=r"'test.words' is no array of int"):
        metadata.get_list("test.words", int)


def test_a_split_file_is_one_model(tmp_path: Path) -> None:
    tensors = llama_tensors()
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "llama", split_max_tensors=7)
    for name, value in tensors.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    shards = sorted(tmp_path.glob("*.gguf"))
    assert len(shards) > 1
    model = GgufModel(shards[0])
    assert set(model.tensors) == set(tensors)
    for name, value in tensors.items():
        assert read(model, name) == value.tobytes()
    with pytest.raises(CheckpointError, match="open the one named"):
        GgufModel(shards[1])
    shards[-1].unlink()
    with pytest.raises(CheckpointError, match=shards[-1].name):
        GgufModel(shards[0])


def test_bytes_that_are_no_utf8_do_not_break_the_metadata(tmp_path: Path) -> None:
    builder = GgufBuilder(tmp_path / "m.gguf")
    builder.writer.add_string("general.name", "QQQQ")
    path = builder.write()
    path.write_bytes(path.read_bytes().replace(b"QQQQ", b"\xff\xfeab"))
    assert GgufModel(path).metadata.need("general.name", str).endswith("ab")


def test_reports_a_file_that_shrinks(tmp_path: Path) -> None:
    builder = GgufBuilder(tmp_path / "m.gguf").add_tensor("t", np.ones((64, 64), np.float32))
    model = GgufModel(builder.write())
    os.truncate(tmp_path / "m.gguf", 4096)
    with pytest.raises(CheckpointError, match=r"m\.gguf: ends at byte 4096.*tensor 't'"):
        read(model, "t")


def test_a_real_file_damaged_anywhere_is_refused_or_read(tmp_path: Path) -> None:
    """Truncations and bit flips all over the header of a whole model."""
    builder = GgufBuilder(tmp_path / "m.gguf").add_byte_level_tokenizer()
    data = builder.add_llama().write().read_bytes()
    path = tmp_path / "damaged.gguf"
    for size in [*range(0, 16384, 64), *range(16384, len(data), 4096)]:
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match=r"damaged\.gguf"):
            GgufModel(path)
    source = random.Random(3)
    messages = []
    for _ in range(300):
        position = source.randrange(16384)
        damaged = bytearray(data)
        damaged[position] ^= 1 << source.randrange(8)
        path.write_bytes(damaged)
        try:
            model = GgufModel(path)
        except (CheckpointError, UnsupportedModelError) as error:
            messages.append(str(error))
        else:
            for name in model.tensors:
                read(model, name)
    assert all("damaged.gguf" in message for message in messages)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output_norm.weight", "model.norm.weight"),
        ("output.weight", "lm_head.weight"),
        ("blk.0.attn_q.weight", "model.layers.0.self_attn.q_proj.weight"),
        ("blk.17.attn_k.bias", "model.layers.17.self_attn.k_proj.bias"),
        ("blk.3.ffn_norm.weight", "model.layers.3.post_attention_layernorm.weight"),
        ("rope_freqs.weight", "rope_freqs.weight"),
        ("blk.0.post_ffw_norm.weight", "model.layers.0.post_feedforward_layernorm.weight"),
        ("blk.0.ffn_gate_inp.weight", "model.layers.0.mlp.gate.weight"),
        ("blk.0.unknown.weight", "blk.0.unknown.weight"),
        ("output_norm", "output_norm"),
        ("blk.0.attn_q.weight.extra", "blk.0.attn_q.weight.extra"),
    ],
)
def test_hugging_face_names(name: str, expected: str) -> None:
    assert list(places([(name, "float32", (4,), 16)], "qwen2")) == [expected]


def found(*names: str, architecture: str = "qwen2", shape: tuple[int, ...] = (6, 2)) -> list[str]:
    return list(
        places([(f"blk.0.{each}.weight", "q8_0", shape, 102) for each in names], architecture)
    )


def test_names_that_depend_on_the_other_tensors_of_a_file() -> None:
    assert found("ffn_up") == ["model.layers.0.mlp.gate_up_proj.weight"]
    assert found("ffn_gate", "ffn_up")[1] == "model.layers.0.mlp.up_proj.weight"
    assert found("ffn_norm") == ["model.layers.0.post_attention_layernorm.weight"]
    assert found("ffn_norm", "post_attention_norm") == [
        "model.layers.0.pre_feedforward_layernorm.weight",
        "model.layers.0.post_attention_layernorm.weight",
    ]


def test_stacked_experts_become_one_tensor_each() -> None:
    tensors = [("blk.1.ffn_down_exps.weight", "q8_0", (3, 2, 32), 204)]
    experts = places(tensors, "qwen3moe")
    assert list(experts) == [f"model.layers.1.mlp.experts.{i}.down_proj.weight" for i in range(3)]
    last = experts["model.layers.1.mlp.experts.2.down_proj.weight"]
    assert last.name == "blk.1.ffn_down_exps.weight"
    assert (last.begin, last.entry.shape, last.entry.num_bytes) == (136, (2, 32), 68)
    mixtral = list(places(tensors, "llama"))
    assert mixtral[0] == "model.layers.1.block_sparse_moe.experts.0.w2.weight"


def test_no_file_can_ask_for_a_million_experts() -> None:
    assert found("ffn_up_exps", shape=(1 << 40, 1, 1)) == [
        "model.layers.0.mlp.experts.{}.up_proj.weight"
    ]


def test_reads_a_part_of_a_tensor(tmp_path: Path) -> None:
    builder = GgufBuilder(tmp_path / "m.gguf", "olmoe")
    stacked = np.arange(24, dtype=np.float32).reshape(3, 2, 4)
    model = GgufModel(builder.add_tensor("blk.0.ffn_up_exps.weight", stacked).write())
    assert read(model, "model.layers.0.mlp.experts.1.up_proj.weight") == stacked[1].tobytes()
    with pytest.raises(ValueError, match="96 bytes, the buffer 90 from 8 on"):
        _core.GgufFile(str(tmp_path / "m.gguf")).read_tensor(
            "blk.0.ffn_up_exps.weight", bytearray(90), 8
        )
