"""Adapters' files: what is read, and what is refused with its cause."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from model.adapter_files import random_adapter, write_adapter
from octavo.errors import CheckpointError, ConfigError, OctavoError, UnsupportedModelError
from octavo.lora_modules import LoraModule, lora_module, parse_lora_modules
from octavo.model.lora import Adapter, halves_in_turns

if TYPE_CHECKING:
    from pathlib import Path

LAYER = "model.layers.0"
TARGETS = [
    (f"{LAYER}.self_attn.q_proj", 64, 64),
    (f"{LAYER}.self_attn.v_proj", 64, 32),
    (f"{LAYER}.mlp.down_proj", 96, 64),
]


def adapter(directory: Path, targets: Any = TARGETS[:2], rank: int = 4, **changes: Any) -> Adapter:
    return Adapter(write_adapter(directory, random_adapter(targets, rank), rank, **changes))


def test_pairs_are_found_by_the_projections_names(tmp_path: Path) -> None:
    tensors = random_adapter(TARGETS)
    found = Adapter(write_adapter(tmp_path, tensors))
    assert set(found.pairs) == {name for name, _, _ in TARGETS}
    pair = found.pairs[f"{LAYER}.mlp.down_proj"]
    assert (pair.rank, pair.scale) == (4, 6 / 4)
    assert found.entry(pair.a).shape == (4, 96)
    assert bytes(found.read(pair.b)) == tensors[pair.b].tobytes()
    found.check_base(TARGETS, 4)


def test_the_name_of_the_default_adapter_is_left_out(tmp_path: Path) -> None:
    tensors = random_adapter(TARGETS[:1])
    renamed = {name.replace(".weight", ".default.weight"): v for name, v in tensors.items()}
    assert set(Adapter(write_adapter(tmp_path, renamed)).pairs) == {TARGETS[0][0]}


@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        ({"lora_alpha": 16}, 16 / 8),
        ({"lora_alpha": 16, "use_rslora": True}, 16 / math.sqrt(8)),
        ({"alpha_pattern": {"q_proj": 20}}, 20 / 8),
        ({"alpha_pattern": {"v_proj": 20}}, 6 / 8),
        ({"alpha_pattern": {"_proj": 20}}, 6 / 8),  # the whole last name, as in PEFT
        ({"alpha_pattern": {"self_attn.q_proj": 20, "q_proj": 30}}, 20 / 8),
        ({"alpha_pattern": {r"model\.layers\.\d+\.self_attn\.(q|k)_proj": 20}}, 20 / 8),
        ({"alpha_pattern": {"layers.1.self_attn.q_proj": 20}}, 6 / 8),
    ],
)
def test_scale(tmp_path: Path, changes: dict[str, Any], scale: float) -> None:
    found = adapter(tmp_path, TARGETS[:1], 8, **changes)
    assert found.pairs[TARGETS[0][0]].scale == pytest.approx(scale)


def test_each_projection_has_its_own_rank(tmp_path: Path) -> None:
    tensors = random_adapter(TARGETS[:1], 4) | random_adapter(TARGETS[1:2], 16)
    found = Adapter(write_adapter(tmp_path, tensors, rank_pattern={"v_proj": 16}))
    assert [pair.rank for pair in found.pairs.values()] == [4, 16]
    assert found.rank == 16
    assert found.pairs[TARGETS[1][0]].scale == 6 / 16
    with pytest.raises(ConfigError, match="rank 16 is above --max-lora-rank 8"):
        found.check_base(TARGETS, 8)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "target_parameters"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"alora_invocation_tokens": [1]}, "activated"),
        ({"use_qalora": True}, "QALoRA"),
        ({"init_lora_weights": "pissa_niter_16"}, "pissa"),
        ({"alpha_pattern": {"(a+)+": 3}}, "too complex"),
        ({"alpha_pattern": {"a*b*c*d*": 3}}, "too complex"),
        ({"alpha_pattern": {"a?" * 30 + "a" * 30: 3}}, "too complex"),
        ({"alpha_pattern": {"(a|a)" * 30: 3}}, "too complex"),
        ({"alpha_pattern": {"a" * 201: 3}}, "too complex"),
    ],
)
def test_what_is_not_supported_is_named(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        adapter(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"r": "four"}, "adapter_config.json"),
        ({"alpha_pattern": {"(q_proj": 3}}, "alpha_pattern"),
        ({"lora_alpha": 1e400}, "adapter_config.json|lora_alpha"),
    ],
)
def test_a_damaged_configuration(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        adapter(tmp_path, **changes)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such directory"):
        Adapter(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        Adapter(tmp_path)
    write_adapter(tmp_path, random_adapter(TARGETS))
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors"):
        Adapter(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(UnsupportedModelError, match="pickle"):
        Adapter(tmp_path)


def test_a_projection_s_name_has_a_bound(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="no matrix of a LoRA"):
        adapter(tmp_path, [("a" * 129, 8, 8)])


def test_tensors_that_are_no_pairs(tmp_path: Path) -> None:
    good = random_adapter(TARGETS[:1])
    a, b = good
    cases: list[tuple[dict[str, np.ndarray], type[OctavoError], str]] = [
        ({}, CheckpointError, "no tensors"),
        ({a: good[a]}, CheckpointError, "no lora_B"),
        ({a: good[a], b: good[b][:, :2].copy()}, CheckpointError, "lora_B 2"),
        ({a: good[a].astype(np.int64), b: good[b]}, CheckpointError, "int64"),
        ({a: good[a][0].copy(), b: good[b]}, CheckpointError, "matrix"),
        (good | {"base_model.model.lm_head.weight": good[a]}, UnsupportedModelError, "lm_head"),
        (good | {a.replace("lora_A", "lora_embedding_A"): good[a]}, UnsupportedModelError, "embed"),
        (
            good | {a.replace("A.weight", "magnitude_vector"): good[a]},
            UnsupportedModelError,
            "magn",
        ),
    ]
    for i, (tensors, kind, named) in enumerate(cases):
        with pytest.raises(kind, match=named):
            Adapter(write_adapter(tmp_path / str(i), tensors))


@pytest.mark.parametrize(
    ("target", "kind", "named"),
    [
        (("model.layers.0.self_attn.q_proj", 128, 64), CheckpointError, "of another model"),
        (("model.layers.0.self_attn.q_proj", 64, 32), CheckpointError, "of another model"),
        (("model.layers.7.self_attn.q_proj", 64, 64), UnsupportedModelError, "no such projection"),
        (("lm_head", 64, 300), UnsupportedModelError, "output head"),
        (("model.embed_tokens", 64, 300), UnsupportedModelError, "embeddings"),
        (("model.layers.0.mlp.experts.3.up_proj", 64, 64), UnsupportedModelError, "experts"),
        (("model.layers.0.mlp.gate", 64, 64), UnsupportedModelError, "routers"),
    ],
)
def test_another_base_model(
    tmp_path: Path, target: Any, kind: type[OctavoError], named: str
) -> None:
    found = adapter(tmp_path, [target])
    with pytest.raises(kind, match=named) as caught:
        found.check_base(TARGETS, 64)
    assert target[0] in str(caught.value)


def test_halves_of_a_head_in_turns() -> None:
    rows = np.arange(2 * 6 * 3, dtype=np.float32).reshape(12, 3)
    turned = halves_in_turns(bytearray(rows.tobytes()), 12, 6)
    expected = rows.reshape(2, 2, 3, 3).swapaxes(1, 2).reshape(12, 3)
    assert bytes(turned) == expected.tobytes()


# --- The configuration's entries -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "modules"),
    [
        ("a=/x,b=/y", [LoraModule("a", "/x"), LoraModule("b", "/y")]),
        (["a=/x=y"], [LoraModule("a", "/x=y")]),
        (
            '{"name": "a", "path": "/x", "base_model_name": "b"}',
            [LoraModule("a", "/x", "b")],
        ),
        ('[{"name": "a", "path": "/x"}, "b=/y"]', [LoraModule("a", "/x"), LoraModule("b", "/y")]),
        ([{"name": "a", "path": "/x"}], [LoraModule("a", "/x")]),
        ("", []),
    ],
)
def test_entries(value: object, modules: list[LoraModule]) -> None:
    entries = parse_lora_modules(value)
    assert list(map(lora_module, entries)) == modules
    assert parse_lora_modules(list(entries)) == entries  # as the engine's process reads them


@pytest.mark.parametrize(
    "value", ["a", "a=", "=/x", '{"name": "a"}', '{"name": "a", "path": 3}', "{", "[1}", [["a"]],
              "a\n=/x", "x" * 257 + "=/x"],
)  # fmt: skip
def test_entries_that_are_none(value: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_lora_modules(value)
