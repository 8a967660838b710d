"""Rotary position embedding as config.json describes it, in the spellings of all its versions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.model.config import RopeInfo

if TYPE_CHECKING:
    from octavo.model.hf_architectures import Architecture
    from octavo.model.hf_config import HfConfig

_SCALINGS = {
    "default": "none",
    "linear": "linear",
    "llama3": "llama3",
    "yarn": "yarn",
    "longrope": "longrope",
    "su": "longrope",
}
_DEFAULT_LOCAL_THETA = 10000.0


class _RopeParameters(msgspec.Struct):
    """rope_scaling, or rope_parameters since transformers 5."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: float | None = None
    factor: float | None = None
    original_max_position_embeddings: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float | None = None
    beta_slow: float | None = None
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    partial_rotary_factor: float | None = None
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()


class HfRope:
    """Reads the rotations of a model.

    Args:
        config: The fields of config.json.
        architecture: What the model's class fixes.
        head_dim: Elements of a head.
        context: The model's max_position_embeddings.
    """

    def __init__(
        self, config: HfConfig, architecture: Architecture, head_dim: int, context: int
    ) -> None:
        self._config = config
        self._architecture = architecture
        self._head_dim = head_dim
        self._context = context
        given = config.rope_parameters or config.rope_scaling or {}
        self._by_layer_type = "full_attention" in given or "sliding_attention" in given
        self._given = given
        if self._by_layer_type and not architecture.has_local_rope:
            raise UnsupportedModelError("rope_parameters that differ by layer type.")

    def main(self) -> RopeInfo:
        """The rotation of all layers, or of those without a window."""
        given = self._given.get("full_attention") if self._by_layer_type else self._given
        return self._rope_info(given or {}, self._config.rope_theta)

    def local(self) -> RopeInfo:
        """The rotation of layers with a window, where they have their own."""
        if not self._architecture.has_local_rope:
            return RopeInfo()
        given = self._given.get("sliding_attention") if self._by_layer_type else {}
        return self._rope_info(
            given or {}, self._config.rope_local_base_freq or _DEFAULT_LOCAL_THETA
        )

    def _rope_info(self, given: dict[str, Any], theta: float | None) -> RopeInfo:
        try:
            rope = msgspec.convert(given, _RopeParameters)
        except msgspec.ValidationError as error:
            raise CheckpointError(f"rope_scaling: {error}") from None
        scaling = self._scaling(rope)
        original = rope.original_max_position_embeddings
        if scaling == "longrope":
            original = self._config.original_max_position_embeddings or original
        if original is None and scaling in {"yarn", "longrope"}:
            original = self._context
        factor = rope.factor
        if factor is None:
            derives = scaling in {"yarn", "longrope"} and original
            factor = self._context / original if derives and original else 1.0
        share = rope.partial_rotary_factor or self._config.partial_rotary_factor
        return RopeInfo(
            theta=rope.rope_theta or theta or self._architecture.rope_theta,
            rotary_dim=int(self._head_dim * share),
            scaling=scaling,
            factor=factor,
            original_max_position_embeddings=original or 0,
            low_freq_factor=rope.low_freq_factor,
            high_freq_factor=rope.high_freq_factor,
            beta_fast=rope.beta_fast or 32.0,
            beta_slow=rope.beta_slow or 1.0,
            attention_factor=rope.attention_factor or 0.0,
            mscale=rope.mscale or 0.0,
            mscale_all_dim=rope.mscale_all_dim or 0.0,
            truncate=rope.truncate,
            short_factor=rope.short_factor,
            long_factor=rope.long_factor,
        )

    def _scaling(self, rope: _RopeParameters) -> str:
        kind = rope.rope_type or rope.type or "default"
        scaling = _SCALINGS.get(kind)
        if scaling is None:
            supported = ", ".join(sorted(set(_SCALINGS) - {"default", "su"}))
            raise UnsupportedModelError(f"rope scaling {kind!r}; supported are {supported}.")
        if scaling == "yarn" and self._architecture.yarn_is_longrope:
            return "longrope"
        return scaling
