from __future__ import annotations

import json
import os
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.checkpoints import safetensors_bytes, write_model, write_shards
from octavo.errors import CheckpointError
from octavo.model.safetensors_file import SafetensorsFile, SafetensorsModel, missing_shards

if TYPE_CHECKING:
    from pathlib import Path

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(4, dtype=np.float16),
    "c": np.array(7, dtype=np.int64),
}


def read(source: SafetensorsFile | SafetensorsModel, name: str) -> bytes:
    out = bytearray(source.tensors[name].num_bytes)
    source.read(name, memoryview(out))
    return bytes(out)


def write(directory: Path, data: bytes) -> Path:
    path = directory / "model.safetensors"
    path.write_bytes(data)
    return path


def refusal(directory: Path, data: bytes) -> str:
    with pytest.raises(CheckpointError) as caught:
        SafetensorsFile(write(directory, data))
    assert "model.safetensors" in str(caught.value)
    return str(caught.value)


def with_header(header: object) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(64)


def test_reads_what_the_safetensors_package_writes(tmp_path: Path) -> None:
    numpy_format = pytest.importorskip("safetensors.numpy")
    numpy_format.save_file(TENSORS, tmp_path / "model.safetensors", {"format": "pt"})
    file = SafetensorsFile(tmp_path / "model.safetensors")
    assert set(file.tensors) == set(TENSORS)
    for name, value in TENSORS.items():
        assert file.tensors[name].shape == value.shape
        assert file.tensors[name].dtype == value.dtype.name
        assert read(file, name) == value.tobytes()


def test_reads_bfloat16_and_float8(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch_format = pytest.importorskip("safetensors.torch")
    tensors = {
        "half": torch.randn(3, 5).to(torch.bfloat16),
        "quarter": torch.randn(4, 4).to(torch.float8_e4m3fn),
    }
    torch_format.save_file(tensors, tmp_path / "model.safetensors")
    file = SafetensorsFile(tmp_path / "model.safetensors")
    assert file.tensors["half"].dtype == "bfloat16"
    assert file.tensors["quarter"].dtype == "float8_e4m3"
    assert read(file, "half") == tensors["half"].view(torch.int16).numpy().tobytes()


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"shape": [2, 4]}, "takes 32 bytes"),
        ({"shape": [-2, -3]}, "negative size"),
        ({"shape": [2**62, 2**62]}, "takes"),
        ({"shape": ["2", 3]}, "Expected `int`"),
        ({"data_offsets": [0, 25]}, "span 25"),
        ({"data_offsets": [24, 0]}, "span -24"),
        ({"data_offsets": [-24, 0]}, "lie outside"),
        ({"data_offsets": [2**63, 2**63 + 24]}, "lie outside"),
        ({"data_offsets": [24, 48]}, "lie outside"),
        ({"data_offsets": [0]}, "Expected `array`"),
        ({"dtype": "F128"}, "unknown dtype"),
        ({"dtype": 3}, "Expected `str`"),
    ],
)
def test_names_the_damaged_tensor(tmp_path: Path, change: dict[str, Any], cause: str) -> None:
    message = refusal(tmp_path, safetensors_bytes(TENSORS, a=change))
    assert "'a'" in message
    assert cause in message


def test_refuses_overlap(tmp_path: Path) -> None:
    data = safetensors_bytes(TENSORS, b={"data_offsets": [20, 28]})
    assert "'b': overlaps 'a'" in refusal(tmp_path, data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\1\2",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**64 - 1) + b"{}",
        struct.pack("<Q", 100) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"\xff\xfe{}",
        b"PK\3\4" + bytes(100),
        with_header({"a": None}),
        with_header({"a": {"dtype": "F32"}}),
    ],
)
def test_refuses_damaged_headers(tmp_path: Path, data: bytes) -> None:
    refusal(tmp_path, data)


def test_refuses_deep_nesting(tmp_path: Path) -> None:
    text = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    refusal(tmp_path, struct.pack("<Q", len(text)) + text)


def test_refuses_every_truncation(tmp_path: Path) -> None:
    whole = safetensors_bytes(TENSORS)
    for size in range(len(whole)):
        refusal(tmp_path, whole[:size])
    SafetensorsFile(write(tmp_path, whole))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(position=st.integers(0, 400), value=st.integers(0, 255))
def test_survives_any_damaged_byte(tmp_path: Path, position: int, value: int) -> None:
    data = bytearray(safetensors_bytes(TENSORS))
    data[position % len(data)] = value
    try:
        file = SafetensorsFile(write(tmp_path, bytes(data)))
    except CheckpointError:
        return
    for name in file.tensors:
        assert len(read(file, name)) <= len(data)


def test_reports_a_file_that_shrinks(tmp_path: Path) -> None:
    path = write(tmp_path, safetensors_bytes(TENSORS))
    file = SafetensorsFile(path)
    os.truncate(path, path.stat().st_size - 4)
    assert read(file, "a") == TENSORS["a"].tobytes()
    with pytest.raises(CheckpointError, match="'c': the file became shorter"):
        read(file, "c")


def test_refuses_what_is_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(CheckpointError):
            SafetensorsFile(path)


def test_joins_shards(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a": TENSORS["a"]}, {"b": TENSORS["b"], "c": TENSORS["c"]})
    model = SafetensorsModel(tmp_path)
    assert list(model.tensors) == ["a", "b", "c"]
    assert read(model, "b") == TENSORS["b"].tobytes()
    assert missing_shards(tmp_path) == []


def test_names_the_missing_shard(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a": TENSORS["a"]}, {"b": TENSORS["b"]})
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert missing_shards(tmp_path) == ["model-00002-of-00002.safetensors"]
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002.safetensors: No such file"):
        SafetensorsModel(tmp_path)


def test_refuses_shards_that_repeat_or_lack_a_tensor(tmp_path: Path) -> None:
    write_shards(tmp_path / "twice", {"a": TENSORS["a"]}, {"a": TENSORS["a"], "b": TENSORS["b"]})
    index = tmp_path / "twice" / "model.safetensors.index.json"
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index.write_text(json.dumps({"weight_map": {"a": names[0], "b": names[1]}}))
    with pytest.raises(CheckpointError, match=r"'a': is in .*00001-of-00002.safetensors too"):
        SafetensorsModel(tmp_path / "twice")
    index.write_text(json.dumps({"weight_map": {"a": names[0], "x": names[0]}}))
    with pytest.raises(CheckpointError, match="'x': listed in the index, absent"):
        SafetensorsModel(tmp_path / "twice")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "..", ".", "", "a\\b", "a/b", "a\0b"])
def test_refuses_shards_outside_the_directory(tmp_path: Path, name: str) -> None:
    write_model(tmp_path, tensors=TENSORS)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    for act in (SafetensorsModel, missing_shards):
        with pytest.raises(CheckpointError, match="not the name of a file beside it"):
            act(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "{}"])
def test_refuses_damaged_indices(tmp_path: Path, text: str) -> None:
    write_model(tmp_path, tensors=TENSORS)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"model.safetensors.index.json"):
        SafetensorsModel(tmp_path)
