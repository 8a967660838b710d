"""Adapters as PEFT writes them, made up by hand."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from model.checkpoints import safetensors_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

Target = tuple[str, int, int]  # name, input and output features

CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "org/base",
    "r": 4,
    "lora_alpha": 6,
    "lora_dropout": 0.05,
    "bias": "none",
    "fan_in_fan_out": False,
    "init_lora_weights": True,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "target_modules": ["q_proj", "v_proj"],
    "use_dora": False,
    "use_rslora": False,
}


def random_adapter(
    targets: Iterable[Target], rank: int = 4, seed: int = 0, scale: float = 0.3
) -> dict[str, np.ndarray]:
    """Random float32 pairs for projections, by the names that PEFT gives them."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, cols, rows in targets:
        prefix = f"base_model.model.{name}"
        a = rng.normal(0, scale, (rank, cols)).astype(np.float32)
        b = rng.normal(0, scale, (rows, rank)).astype(np.float32)
        tensors |= {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}
    return tensors


def write_adapter(
    directory: Path, tensors: dict[str, np.ndarray], rank: int = 4, **changes: Any
) -> Path:
    """An adapter's directory; `changes` replace fields of its configuration."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {**CONFIG, "r": rank, **changes}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    (directory / "adapter_model.safetensors").write_bytes(safetensors_bytes(tensors))
    return directory
