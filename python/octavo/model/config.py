"""The shape of a model as Python data, read without the engine and handed to it by one function."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from octavo.errors import UnsupportedModelError

if TYPE_CHECKING:
    from octavo import _core


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeInfo:
    """Rotary position embedding; the fields of cpp/model/model_config.h RopeConfig."""

    theta: float = 10000.0
    rotary_dim: int = 0
    interleaved: bool = False
    scaling: str = "none"
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 0.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """The fields of cpp/model/model_config.h ModelConfig, and what the engine need not know.

    Attributes:
        dtype: Type of the checkpoint's plain weights: bfloat16, float16 or float32.

    Raises:
        UnsupportedModelError: Sizes are absent or do not fit together.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    qkv_bias: bool
    attention_output_bias: bool
    mlp_bias: bool
    max_position_embeddings: int
    rope: RopeInfo = field(default_factory=RopeInfo)
    local_rope: RopeInfo = field(default_factory=RopeInfo)
    sliding_windows: tuple[int, ...] = ()
    rope_layers: tuple[bool, ...] = ()
    expert_layers: tuple[bool, ...] = ()
    attention_scale: float = 0.0
    attention_soft_cap: float = 0.0
    final_soft_cap: float = 0.0
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_divisor: float = 1.0
    norm_offset: float = 0.0
    num_experts: int = 0
    experts_per_token: int = 0
    expert_intermediate_size: int = 0
    renormalize_experts: bool = False
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        for name, maximum in _LIMITS.items():
            if not 1 <= getattr(self, name) <= maximum:
                raise UnsupportedModelError(
                    f"{name} is {getattr(self, name)}; it must be from 1 to {maximum}."
                )
        if self.num_q_heads % self.num_kv_heads:
            raise UnsupportedModelError(
                f"{self.num_q_heads} query heads cannot share {self.num_kv_heads} key-value heads."
            )
        if not 0 < self.rms_norm_eps < 1:
            raise UnsupportedModelError(f"rms_norm_eps is {self.rms_norm_eps}.")
        if self.num_experts and not 1 <= self.experts_per_token <= self.num_experts <= MAX_EXPERTS:
            raise UnsupportedModelError(
                f"{self.experts_per_token} of {self.num_experts} experts a token; there may be "
                f"{MAX_EXPERTS} of them."
            )
        self._check_rope(self.rope)
        self._check_rope(self.local_rope)

    def _check_rope(self, rope: RopeInfo) -> None:
        rotary_dim = rope.rotary_dim or self.head_dim
        if rotary_dim % 2 or not 2 <= rotary_dim <= self.head_dim:
            raise UnsupportedModelError(
                f"{rotary_dim} rotary dimensions in heads of {self.head_dim}."
            )
        if not 0 < rope.theta < float("inf") or not 0 < rope.factor < float("inf"):
            raise UnsupportedModelError(f"rope theta {rope.theta}, factor {rope.factor}.")
        if (
            rope.scaling in {"llama3", "yarn", "longrope"}
            and rope.original_max_position_embeddings < 1
        ):
            raise UnsupportedModelError(
                f"rope scaling {rope.scaling} needs original_max_position_embeddings."
            )
        if rope.scaling == "llama3" and not 0 < rope.low_freq_factor < rope.high_freq_factor:
            raise UnsupportedModelError("rope scaling llama3 needs low < high frequency factor.")
        if rope.scaling == "longrope" and not (
            len(rope.short_factor) == len(rope.long_factor) == rotary_dim // 2
        ):
            raise UnsupportedModelError(
                f"rope scaling longrope needs {rotary_dim // 2} short and long factors."
            )


# Far above any model in the field, and low enough that products of three stay below 2**63.
_LIMITS = {
    "vocab_size": 1 << 22,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 22,
    "num_layers": 1 << 12,
    "num_q_heads": 1 << 14,
    "num_kv_heads": 1 << 14,
    "head_dim": 1 << 12,
    "max_position_embeddings": 1 << 30,
}
MAX_EXPERTS = 512  # kMaxExperts in cpp/backend/backend.h


def to_core(info: ModelInfo) -> _core.ModelConfig:
    """The engine's configuration of a model."""
    from octavo import _core  # noqa: PLC0415 - only the engine's process loads the extension

    config = _core.ModelConfig()
    for each in dataclasses.fields(ModelInfo):
        value = getattr(info, each.name)
        if each.name != "dtype":
            setattr(config, each.name, _rope(value) if isinstance(value, RopeInfo) else value)
    return config


def _rope(info: RopeInfo) -> _core.RopeConfig:
    from octavo import _core  # noqa: PLC0415 - see to_core

    rope = _core.RopeConfig()
    for each in dataclasses.fields(RopeInfo):
        setattr(rope, each.name, getattr(info, each.name))
    return rope
