"""A model's shape from config.json, as Hugging Face transformers writes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.model.config import ModelInfo, RopeInfo
from octavo.model.json_file import read_json

if TYPE_CHECKING:
    from pathlib import Path


class Architecture(msgspec.Struct, frozen=True):
    """How an architecture differs from Llama.

    Attributes:
        name: The engine's name.
        qkv_bias: Whether q, k and v have a bias; None when attention_bias says so.
        num_kv_heads: Default of num_key_value_heads; None for as many as query heads.
        sliding_window: Default of sliding_window.
        window_is_optional: Whether the window counts only with use_sliding_window.
        max_position_embeddings: Default of the field.
    """

    name: str
    qkv_bias: bool | None = None
    num_kv_heads: int | None = None
    sliding_window: int | None = None
    window_is_optional: bool = False
    max_position_embeddings: int = 2048


# Defaults are those that transformers leaves out of the files.
ARCHITECTURES = {
    "LlamaForCausalLM": Architecture("llama"),
    "MistralForCausalLM": Architecture(
        "mistral",
        qkv_bias=False,
        num_kv_heads=8,
        sliding_window=4096,
        max_position_embeddings=131072,
    ),
    "Qwen2ForCausalLM": Architecture(
        "qwen2", qkv_bias=True, window_is_optional=True, max_position_embeddings=32768
    ),
}

_DEFAULT_ROPE_THETA = 10000.0


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
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | msgspec.UnsetType | None = msgspec.UNSET
    use_sliding_window: bool = False
    partial_rotary_factor: float = 1.0
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    torch_dtype: str | None = None
    dtype: str | None = None
    eos_token_id: int | list[int] | None = None
    bos_token_id: int | list[int] | None = None
    quantization_config: dict[str, Any] | None = None


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


def architecture_of(config: HfConfig) -> Architecture:
    """The supported architecture that a configuration names.

    Raises:
        UnsupportedModelError: There is none.
    """
    named = config.architectures or []
    for name in named:
        if name in ARCHITECTURES:
            return ARCHITECTURES[name]
    supported = ", ".join(ARCHITECTURES)
    raise UnsupportedModelError(
        f"architecture {', '.join(named) or 'unknown'} is not supported; supported are {supported}."
    )


def _model_info(config: HfConfig) -> ModelInfo:
    architecture = architecture_of(config)
    _check_supported(config, architecture)
    hidden_size = _required(config, "hidden_size")
    num_q_heads = _required(config, "num_attention_heads")
    if num_q_heads < 1 or (config.head_dim is None and hidden_size % num_q_heads):
        raise UnsupportedModelError(
            f"hidden_size {hidden_size} does not split into {num_q_heads} heads."
        )
    head_dim = config.head_dim if config.head_dim is not None else hidden_size // num_q_heads
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
        tie_word_embeddings=config.tie_word_embeddings,
        qkv_bias=config.attention_bias if architecture.qkv_bias is None else architecture.qkv_bias,
        attention_output_bias=architecture.qkv_bias is None and config.attention_bias,
        mlp_bias=architecture.qkv_bias is None and config.mlp_bias,
        max_position_embeddings=_context(config, architecture),
        rope=_rope_info(config, head_dim, _context(config, architecture)),
        dtype=_dtype(config),
    )


def _required(config: HfConfig, name: str) -> int:
    value = getattr(config, name)
    if value is None:
        raise CheckpointError(f"{name} is missing.")
    return int(value)


def _context(config: HfConfig, architecture: Architecture) -> int:
    if config.max_position_embeddings is None:
        return architecture.max_position_embeddings
    return config.max_position_embeddings


def _dtype(config: HfConfig) -> str:
    named = (config.dtype or config.torch_dtype or "bfloat16").removeprefix("torch.")
    return named if named in {"float32", "float16"} else "bfloat16"


def _check_supported(config: HfConfig, architecture: Architecture) -> None:
    if config.hidden_act not in {"silu", "swish"}:
        raise UnsupportedModelError(f"hidden_act {config.hidden_act!r}; this version has silu.")
    if config.quantization_config:
        method = config.quantization_config.get("quant_method", "unknown")
        raise UnsupportedModelError(
            f"weights quantised by {method!r}: use the plain checkpoint, or a GGUF file."
        )
    window = config.sliding_window
    if window is msgspec.UNSET:
        window = architecture.sliding_window
    if architecture.window_is_optional and not config.use_sliding_window:
        window = None
    context = _context(config, architecture)
    if architecture.name != "llama" and window is not None and window < context:
        raise UnsupportedModelError(
            f"sliding_window {window} below max_position_embeddings {context}: attention with a "
            "sliding window is not supported."
        )


def _rope_info(config: HfConfig, head_dim: int, context: int) -> RopeInfo:
    given = config.rope_parameters or config.rope_scaling or {}
    try:
        rope = msgspec.convert(given, _RopeParameters)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"rope_scaling: {error}") from None
    kind = rope.rope_type or rope.type or "default"
    scaling = {"default": "none", "linear": "linear", "llama3": "llama3", "yarn": "yarn"}.get(kind)
    if scaling is None:
        raise UnsupportedModelError(
            f"rope scaling {kind!r}; supported are linear, llama3 and yarn."
        )
    original = rope.original_max_position_embeddings
    if original is None and scaling == "yarn":
        original = context
    factor = rope.factor
    if factor is None:
        factor = context / original if scaling == "yarn" and original else 1.0
    share = rope.partial_rotary_factor or config.partial_rotary_factor
    return RopeInfo(
        theta=rope.rope_theta or config.rope_theta or _DEFAULT_ROPE_THETA,
        rotary_dim=int(head_dim * share),
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
    )
