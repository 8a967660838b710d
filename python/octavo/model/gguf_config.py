"""A model's shape from the metadata and the tensors of a GGUF file."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.model.config import ModelInfo, RopeInfo
from octavo.model.rope_factors import read_factors, read_rope_factors

if TYPE_CHECKING:
    from octavo.model.gguf import GgufMetadata, GgufModel

_FIRST_LAYER = "model.layers.0."
_LOCAL_THETA = 10000.0


@dataclass(frozen=True, kw_only=True)
class _Architecture:
    """What no key says of an architecture; most need no entry.

    Attributes:
        interleaved: Whether the file keeps the rows of q and k so that dimensions 2i and 2i + 1
            rotate together.
        window_pattern: Every so manieth layer is without a window; 0 for none.
        no_rope_interval: Every so manieth layer does not rotate; 0 for none.
        has_local_rope: Whether layers with a window have a rotation of their own.
        scales_embeddings: Whether embeddings are multiplied by the root of their length.
        wide_layers: The number of layers of the one size whose attention scale follows from
            embedding_length / head_count instead of the length of a head.
        renormalize_experts: Whether the weights of a token's experts add up to 1.
    """

    interleaved: bool = False
    window_pattern: int = 0
    no_rope_interval: int = 0
    has_local_rope: bool = False
    scales_embeddings: bool = False
    wide_layers: int = 0
    renormalize_experts: bool = False


_ARCHITECTURES = {
    "llama": _Architecture(interleaved=True, renormalize_experts=True),
    "granite": _Architecture(interleaved=True),
    "smollm3": _Architecture(interleaved=True, no_rope_interval=4),
    "gemma2": _Architecture(window_pattern=2, scales_embeddings=True, wide_layers=46),
    "gemma3": _Architecture(
        window_pattern=6, has_local_rope=True, scales_embeddings=True, wide_layers=62
    ),
    "qwen3moe": _Architecture(renormalize_experts=True),
}


def gguf_model_info(model: GgufModel) -> ModelInfo:
    """The shape of the model in a GGUF file.

    Raises:
        CheckpointError: A key is missing or has the wrong type; the message names it.
        UnsupportedModelError: The file asks for what this version has not; the message names it.
    """
    from octavo import _core  # noqa: PLC0415 - only the engine's process loads the extension

    architecture = model.metadata.need("general.architecture", str)
    known = _core.architecture_names()
    if architecture not in known:
        raise UnsupportedModelError(
            f"{model.location}: architecture {architecture!r} is not supported; supported are "
            f"{', '.join(known)}."
        )
    try:
        return _model_info(model, _Keys(model.metadata, architecture))
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{model.location}: {error}") from None


class _Keys:
    """The keys that stand under the architecture's name."""

    def __init__(self, metadata: GgufMetadata, architecture: str) -> None:
        self._metadata = metadata
        self.architecture = architecture

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number; an array of equal ones, one a layer, counts as one."""
        full = f"{self.architecture}.{key}"
        if full not in self._metadata:
            if default is None:
                return self._metadata.need(full, int)
            return default
        try:
            return self._metadata.need(full, int)
        except CheckpointError:
            values = set(self._metadata.get_list(full, int) or [])
        if len(values) != 1:
            raise UnsupportedModelError(f"{full} differs from layer to layer.")
        return values.pop()

    def number(self, key: str, default: float) -> float:
        value = self._metadata.get(f"{self.architecture}.{key}", float)
        return default if value is None else value

    def text(self, key: str, default: str) -> str:
        return self._metadata.get(f"{self.architecture}.{key}", str) or default


def _model_info(model: GgufModel, keys: _Keys) -> ModelInfo:
    architecture = _ARCHITECTURES.get(keys.architecture, _Architecture())
    tensors = model.tensors
    embedding = tensors.get("model.embed_tokens.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(
            f"{model.location}: tensor 'token_embd.weight' is missing or no matrix"
        )
    hidden_size = keys.integer("embedding_length")
    num_q_heads = keys.integer("attention.head_count")
    head_dim = keys.integer("attention.key_length", hidden_size // max(num_q_heads, 1))
    if keys.integer("attention.value_length", head_dim) != head_dim:
        raise UnsupportedModelError("keys and values of different lengths.")
    context = keys.integer("context_length")
    num_layers = keys.integer("block_count")
    rope = _rope_info(model, keys, head_dim, context)
    return ModelInfo(
        architecture=_engine_name(keys),
        vocab_size=embedding.shape[0],
        hidden_size=hidden_size,
        intermediate_size=keys.integer("feed_forward_length"),
        num_layers=num_layers,
        num_q_heads=num_q_heads,
        num_kv_heads=keys.integer("attention.head_count_kv", num_q_heads),
        head_dim=head_dim,
        rms_norm_eps=keys.number("attention.layer_norm_rms_epsilon", 1e-5),
        tie_word_embeddings="lm_head.weight" not in tensors,
        qkv_bias=f"{_FIRST_LAYER}self_attn.q_proj.bias" in tensors,
        attention_output_bias=f"{_FIRST_LAYER}self_attn.o_proj.bias" in tensors,
        mlp_bias=f"{_FIRST_LAYER}mlp.up_proj.bias" in tensors,
        max_position_embeddings=context,
        rope=rope,
        local_rope=_local_rope(keys, architecture, rope),
        sliding_windows=_sliding_windows(keys, architecture, context),
        rope_layers=tuple(
            (i + 1) % architecture.no_rope_interval != 0
            for i in range(num_layers if architecture.no_rope_interval else 0)
        ),
        dtype=_plain_dtype(model),
        **_multipliers(keys, architecture),
        **_experts(keys, architecture),
    )


def _engine_name(keys: _Keys) -> str:
    """The engine's name; a Llama with experts is a Mixtral."""
    is_mixtral = keys.architecture == "llama" and keys.integer("expert_count", 0) > 0
    return "mixtral" if is_mixtral else keys.architecture


def _sliding_windows(keys: _Keys, architecture: _Architecture, context: int) -> tuple[int, ...]:
    window = keys.integer("attention.sliding_window", 0)
    if window <= 0 or (window >= context and not architecture.has_local_rope):
        return ()
    pattern = keys.integer("attention.sliding_window_pattern", architecture.window_pattern)
    num_layers = keys.integer("block_count")
    return tuple(0 if pattern and (i + 1) % pattern == 0 else window for i in range(num_layers))


def _multipliers(keys: _Keys, architecture: _Architecture) -> dict[str, Any]:
    hidden_size = keys.integer("embedding_length")
    scale = keys.number("attention.scale", 0.0)
    if not scale and keys.integer("block_count") == architecture.wide_layers:
        scale = (hidden_size / keys.integer("attention.head_count")) ** -0.5
    embedding = keys.number("embedding_scale", 1.0)
    return {
        "attention_scale": scale,
        "attention_soft_cap": keys.number("attn_logit_softcapping", 0.0),
        "final_soft_cap": keys.number("final_logit_softcapping", 0.0),
        "embedding_multiplier": hidden_size**0.5 if architecture.scales_embeddings else embedding,
        "residual_multiplier": keys.number("residual_scale", 1.0),
        "logits_divisor": keys.number("logit_scale", 1.0),
    }


def _experts(keys: _Keys, architecture: _Architecture) -> dict[str, Any]:
    num_experts = keys.integer("expert_count", 0)
    if not num_experts:
        return {}
    return {
        "num_experts": num_experts,
        "experts_per_token": keys.integer("expert_used_count"),
        "expert_intermediate_size": keys.integer(
            "expert_feed_forward_length", keys.integer("feed_forward_length")
        ),
        "renormalize_experts": architecture.renormalize_experts,
    }


def _plain_dtype(model: GgufModel) -> str:
    """The type of most matrices that are not quantised."""
    plain = Counter(
        entry.dtype
        for entry in model.tensors.values()
        if len(entry.shape) > 1 and entry.dtype in {"float32", "float16", "bfloat16"}
    )
    return plain.most_common(1)[0][0] if plain else "bfloat16"


def _rope_info(model: GgufModel, keys: _Keys, head_dim: int, context: int) -> RopeInfo:
    plain = RopeInfo(
        theta=keys.number("rope.freq_base", 10000.0),
        rotary_dim=keys.integer("rope.dimension_count", head_dim),
        interleaved=_ARCHITECTURES.get(keys.architecture, _Architecture()).interleaved,
    )
    if "rope_factors_long.weight" in model.tensors:
        return _longrope(plain, model, keys, context)
    if "rope_freqs.weight" in model.tensors:
        fitted = read_rope_factors(model, "rope_freqs.weight", plain.theta, plain.rotary_dim)
        if fitted is not None:
            return replace(plain, scaling="llama3", **asdict(fitted))
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0))
    # Files of the time before the key had linear scaling only.
    scaling = keys.text("rope.scaling.type", "linear" if factor != 1.0 else "none")
    if scaling == "linear":
        return replace(plain, scaling="linear", factor=factor)
    if scaling == "yarn":
        return _yarn(plain, keys, factor, context)
    if scaling != "none":
        raise UnsupportedModelError(f"rope scaling {scaling!r}; supported are linear and yarn.")
    return plain


def _local_rope(keys: _Keys, architecture: _Architecture, rope: RopeInfo) -> RopeInfo:
    if not architecture.has_local_rope:
        return RopeInfo()
    theta = keys.number("rope.freq_base_swa", _LOCAL_THETA)
    return RopeInfo(theta=theta, rotary_dim=rope.rotary_dim, interleaved=rope.interleaved)


def _longrope(plain: RopeInfo, model: GgufModel, keys: _Keys, context: int) -> RopeInfo:
    original = keys.integer("rope.scaling.original_context_length", context)
    size = plain.rotary_dim // 2
    return replace(
        plain,
        scaling="longrope",
        factor=max(context / max(original, 1), 1.0),
        original_max_position_embeddings=original,
        attention_factor=keys.number("rope.scaling.attn_factor", 0.0),
        short_factor=tuple(read_factors(model, "rope_factors_short.weight", size)),
        long_factor=tuple(read_factors(model, "rope_factors_long.weight", size)),
    )


def _yarn(plain: RopeInfo, keys: _Keys, factor: float, context: int) -> RopeInfo:
    if factor <= 0:
        raise UnsupportedModelError(f"rope.scaling.factor {factor}.")
    return replace(
        plain,
        scaling="yarn",
        factor=factor,
        original_max_position_embeddings=keys.integer(
            "rope.scaling.original_context_length", context
        ),
        beta_fast=keys.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=keys.number("rope.scaling.yarn_beta_slow", 1.0),
        attention_factor=keys.number("rope.scaling.attn_factor", 1.0)
        * (1.0 + 0.1 * math.log(max(factor, 1.0))),
    )
