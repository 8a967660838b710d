from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest

from model.checkpoints import CONFIG, GgufBuilder, interleave_rows, llama_tensors, write_model
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.model.gguf import GgufModel
from octavo.model.safetensors_file import SafetensorsModel
from octavo.model.weights import load_weights

if TYPE_CHECKING:
    from pathlib import Path

    from model.checkpoints import Tensors

Q = gguf.GGMLQuantizationType


@dataclass
class Spec:
    name: str
    rows: int
    cols: int


class FakeEngine:
    """Takes weights as the engine does, and keeps a copy of their bytes."""

    def __init__(self, tensors: Tensors) -> None:
        self.taken: dict[str, tuple[str, bytes]] = {}
        self.threads: set[int] = set()
        self._specs = [
            Spec(name, *(value.shape if value.ndim == 2 else (1, *value.shape)))
            for name, value in tensors.items()
        ]

    def weight_specs(self) -> list[Spec]:
        return self._specs

    def load_weight(self, name: str, dtype: str, rows: int, cols: int, data: memoryview) -> None:
        assert (rows, cols) in {(s.rows, s.cols) for s in self._specs if s.name == name}
        self.threads.add(threading.get_ident())
        self.taken[name] = (dtype, bytes(data))


def load(tensors: Tensors, source: Any, **options: Any) -> FakeEngine:
    engine = FakeEngine(tensors)
    load_weights(engine, source, **options)
    return engine


@pytest.mark.parametrize("num_threads", [0, 1, 4])
def test_hands_every_tensor_over(tmp_path: Path, num_threads: int) -> None:
    tensors = llama_tensors()
    steps: list[tuple[int, int]] = []
    engine = load(
        tensors,
        SafetensorsModel(write_model(tmp_path)),
        num_threads=num_threads,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert engine.taken == {n: ("float32", v.tobytes()) for n, v in tensors.items()}
    total = sum(value.nbytes for value in tensors.values())
    assert steps[-1] == (total, total)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert len(engine.threads) <= (num_threads or 8)
    assert threading.get_ident() not in engine.threads


@pytest.mark.parametrize("quantization", [Q.F32, Q.F16, Q.Q8_0, Q.Q4_1])
def test_hands_gguf_tensors_over(tmp_path: Path, quantization: Q) -> None:
    pytest.importorskip("octavo._core")
    tensors = llama_tensors()
    path = GgufBuilder(tmp_path / "m.gguf").add_llama(quantization=quantization).write()
    engine = load(tensors, GgufModel(path))
    assert set(engine.taken) == set(tensors)
    for name, value in tensors.items():
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
        expected = value if heads is None else interleave_rows(value, heads)
        if value.ndim == 2 and quantization != Q.F32:
            expected = gguf.quantize(expected, quantization)
        assert engine.taken[name][1] == expected.tobytes()


def test_names_missing_tensors(tmp_path: Path) -> None:
    tensors = llama_tensors()
    short = {n: v for n, v in tensors.items() if n != "model.norm.weight"}
    with pytest.raises(CheckpointError, match=r"tensors are missing: model\.norm\.weight$"):
        load(tensors, SafetensorsModel(write_model(tmp_path / "one", tensors=short)))
    few = {"model.norm.weight": tensors["model.norm.weight"]}
    with pytest.raises(CheckpointError, match=r"and 12 more$"):
        load(tensors, SafetensorsModel(write_model(tmp_path / "few", tensors=few)))


@pytest.mark.parametrize("shape", [(64, 65), (64,), (64, 64, 1), (4096, 1)])
def test_names_mis_shaped_tensors(tmp_path: Path, shape: tuple[int, ...]) -> None:
    name = "model.layers.1.self_attn.q_proj.weight"
    wrong = llama_tensors() | {name: np.zeros(shape, np.float32)}
    source = SafetensorsModel(write_model(tmp_path, tensors=wrong))
    with pytest.raises(CheckpointError, match=rf"{name} has shape .*asks for \[64, 64\]"):
        load(llama_tensors(), source)


def test_names_mis_typed_tensors(tmp_path: Path) -> None:
    wrong = llama_tensors() | {"model.norm.weight": np.zeros(64, np.int64)}
    with pytest.raises(UnsupportedModelError, match=r"model\.norm\.weight is of type int64"):
        load(llama_tensors(), SafetensorsModel(write_model(tmp_path, tensors=wrong)))


def test_lists_surplus_tensors(tmp_path: Path) -> None:
    tensors = llama_tensors(CONFIG | {"tie_word_embeddings": True})
    more = tensors | {
        "lm_head.weight": np.zeros((300, 64), np.float32),
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(8, np.float32),
        "model.layers.0.extra.weight": np.zeros(3, np.float32),
    }
    source = SafetensorsModel(write_model(tmp_path, tensors=more))
    engine = FakeEngine(tensors)
    assert load_weights(engine, source) == ["model.layers.0.extra.weight"]
    assert set(engine.taken) == set(tensors)


def test_a_file_that_shrinks_ends_the_load(tmp_path: Path) -> None:
    tensors = llama_tensors()
    source = SafetensorsModel(write_model(tmp_path))
    os.truncate(tmp_path / "model.safetensors", 50_000)
    with pytest.raises(CheckpointError, match="the file became shorter"):
        load(tensors, source)


def test_the_engine_s_refusal_ends_the_load(tmp_path: Path) -> None:
    class Refusing(FakeEngine):
        def load_weight(self, *_: Any) -> None:
            raise CheckpointError("mis-typed")

    tensors = llama_tensors()
    with pytest.raises(CheckpointError, match="mis-typed"):
        load_weights(Refusing(tensors), SafetensorsModel(write_model(tmp_path)))
