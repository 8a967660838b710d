"""A model's shape from config.json, as Hugging Face transformers writes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.model.config import ModelInfo
from octavo.model.hf_architectures import Architecture, architecture_of
from octavo.model.hf_rope import HfRope
from octavo.model.json_file import read_json
from octavo.model.quantized import read_quantization

if TYPE_CHECKING:
    from pathlib import Path

_SAME_ACTIVATION = {"swish": "silu"}


class HfConfig(msgspec.Struct):
    """The fields of config.json that Octavo reads."""

    architectures: list[str] | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    vocab_size: int | None = None
    max_position_embeddings: int | None = None
    original_max_position_embeddings: int | None = None
    rms_norm_eps: float = 1e-6
    hidden_act: str | None = None
    hidden_activation: str | None = None
    tie_word_embeddings: bool | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    clip_qkv: float | None = None
    use_bidirectional_attention: bool | None = None
    layer_types: list[str] | None = None
    sliding_window: int | msgspec.UnsetType | None = msgspec.UNSET
    sliding_window_pattern: int | None = None
    use_sliding_window: bool = False
    max_window_layers: int = 28
    no_rope_layers: list[int] | None = None
    no_rope_layer_interval: int | None = None
    partial_rotary_factor: float = 1.0
    rope_theta: float | None = None
    rope_local_base_freq: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    query_pre_attn_scalar: float | None = None
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    attention_multiplier: float | None = None
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_scaling: float = 1.0
    num_experts: int | None = None
    num_local_experts: int | None = None
    num_experts_per_tok: int = 0
    moe_intermediate_size: int | None = None
    norm_topk_prob: bool = False
    decoder_sparse_step: int = 1
    mlp_only_layers: list[int] | None = None
    torch_dtype: str | None = None
    dtype: str | None = None
    eos_token_id: int | list[int] | None = None
    bos_token_id: int | None = None
    quantization_config: dict[str, Any] | None = None


def read_hf_config(directory: Path) -> HfConfig:
    """Read config.json.

    Raises:
        CheckpointError: It is missing, no JSON, or a field has the wrong type.
    """
    return read_json(directory / "config.json", HfConfig)


def hf_model_info(directory: Path) -> ModelInfo:
    """The shape of the model in a directory.

    Raises:
        CheckpointError: config.json is missing or damaged.
        UnsupportedModelError: It asks for what this version has not; the message names it.
    """
    config = read_hf_config(directory)
    try:
        return _model_info(config)
    except (UnsupportedModelError, CheckpointError) as error:
        raise type(error)(f"{directory / 'config.json'}: {error}") from None


def _model_info(config: HfConfig) -> ModelInfo:
    architecture = architecture_of(config.architectures)
    _check_supported(config, architecture)
    hidden_size = _required(config, "hidden_size")
    num_q_heads = _required(config, "num_attention_heads")
    context = config.max_position_embeddings or architecture.max_position_embeddings
    head_dim = config.head_dim or architecture.head_dim
    if num_q_heads < 1 or (head_dim is None and hidden_size % num_q_heads):
        raise UnsupportedModelError(
            f"hidden_size {hidden_size} does not split into {num_q_heads} heads."
        )
    head_dim = head_dim or hidden_size // num_q_heads
    tied = config.tie_word_embeddings
    has_bias = architecture.qkv_bias is None and config.attention_bias
    rope = HfRope(config, architecture, head_dim, context)
    return ModelInfo(
        architecture=architecture.name,
        vocab_size=_required(config, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_required(config, "intermediate_size"),
        num_layers=_required(config, "num_hidden_layers"),
        num_q_heads=num_q_heads,
        num_kv_heads=config.num_key_value_heads or architecture.num_kv_heads or num_q_heads,
        head_dim=head_dim,
        rms_norm_eps=config.rms_norm_eps,
        tie_word_embeddings=architecture.tie_word_embeddings if tied is None else tied,
        qkv_bias=architecture.qkv_bias or has_bias,
        attention_output_bias=has_bias,
        mlp_bias=architecture.qkv_bias is None and config.mlp_bias,
        max_position_embeddings=context,
        rope=rope.main(),
        local_rope=rope.local(),
        sliding_windows=_sliding_windows(config, architecture, context),
        rope_layers=_rope_layers(config, architecture),
        dtype=_dtype(config),
        **_multipliers(config, architecture),
        **_experts(config, architecture),
    )


def _multipliers(config: HfConfig, architecture: Architecture) -> dict[str, Any]:
    scale = config.attention_multiplier or 0.0
    if config.query_pre_attn_scalar:
        scale = config.query_pre_attn_scalar**-0.5
    embedding = config.embedding_multiplier
    if architecture.scales_embeddings:
        embedding = float(_required(config, "hidden_size")) ** 0.5
    return {
        "attention_scale": scale,
        "attention_soft_cap": config.attn_logit_softcapping or 0.0,
        "final_soft_cap": config.final_logit_softcapping or 0.0,
        "embedding_multiplier": embedding,
        "residual_multiplier": config.residual_multiplier,
        "logits_divisor": config.logits_scaling,
        "norm_offset": architecture.norm_offset,
    }


def _experts(config: HfConfig, architecture: Architecture) -> dict[str, Any]:
    num_experts = config.num_experts or config.num_local_experts or 0
    if not num_experts:
        return {}
    dense = set(config.mlp_only_layers or [])
    layers = tuple(
        i not in dense and (i + 1) % config.decoder_sparse_step == 0
        for i in range(_required(config, "num_hidden_layers"))
    )
    renormalize = architecture.renormalize_experts
    return {
        "num_experts": num_experts,
        "experts_per_token": config.num_experts_per_tok,
        "expert_intermediate_size": config.moe_intermediate_size
        or _required(config, "intermediate_size"),
        "expert_layers": () if all(layers) else layers,
        "renormalize_experts": config.norm_topk_prob if renormalize is None else renormalize,
    }


def _sliding_windows(config: HfConfig, architecture: Architecture, context: int) -> tuple[int, ...]:
    window = config.sliding_window
    if window is msgspec.UNSET:
        window = architecture.sliding_window
    if architecture.window_is_optional and not config.use_sliding_window:
        window = None
    if not architecture.has_windows or not window:
        return ()
    windows = tuple(window if slides else 0 for slides in _sliding_layers(config, architecture))
    # Where it changes no rotation, a window as wide as the context is none.
    has_effect = architecture.has_local_rope or window < context
    return windows if has_effect and any(windows) else ()


def _sliding_layers(config: HfConfig, architecture: Architecture) -> list[bool]:
    num_layers = _required(config, "num_hidden_layers")
    if config.layer_types is not None:
        unknown = set(config.layer_types) - {"full_attention", "sliding_attention"}
        if unknown or len(config.layer_types) != num_layers:
            raise UnsupportedModelError(
                f"layer_types {', '.join(sorted(unknown)) or len(config.layer_types)}; this "
                "version has full_attention and sliding_attention, one a layer."
            )
        return [kind == "sliding_attention" for kind in config.layer_types]
    pattern = config.sliding_window_pattern or architecture.window_pattern
    if pattern:
        return [(i + 1) % pattern != 0 for i in range(num_layers)]
    if architecture.no_rope_interval:
        return [not rotates for rotates in _rope_layers(config, architecture)]
    if architecture.window_is_optional:
        return [i >= config.max_window_layers for i in range(num_layers)]
    return [True] * num_layers


def _rope_layers(config: HfConfig, architecture: Architecture) -> tuple[bool, ...]:
    if not architecture.no_rope_interval:
        return ()
    if config.no_rope_layers is not None:
        return tuple(flag != 0 for flag in config.no_rope_layers)
    interval = config.no_rope_layer_interval or architecture.no_rope_interval
    return tuple((i + 1) % interval != 0 for i in range(_required(config, "num_hidden_layers")))


def _required(config: HfConfig, name: str) -> int:
    value = getattr(config, name)
    if value is None:
        raise CheckpointError(f"{name} is missing.")
    return int(value)


def _dtype(config: HfConfig) -> str:
    named = (config.dtype or config.torch_dtype or "bfloat16").removeprefix("torch.")
    return named if named in {"float32", "float16"} else "bfloat16"


def _check_supported(config: HfConfig, architecture: Architecture) -> None:
    activation = config.hidden_activation or config.hidden_act or architecture.activation
    if _SAME_ACTIVATION.get(activation, activation) != architecture.activation:
        raise UnsupportedModelError(
            f"hidden_act {activation!r}; {architecture.name} has {architecture.activation}."
        )
    if config.quantization_config:
        read_quantization(config.quantization_config)
    if config.clip_qkv is not None:
        raise UnsupportedModelError("clip_qkv: clipping of queries, keys and values.")
    if config.use_bidirectional_attention:
        raise UnsupportedModelError("use_bidirectional_attention; this version is causal.")
