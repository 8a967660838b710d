"""How the classes that config.json names differ from a plain decoder.

Most need no entry: `OlmoeForCausalLM` is the engine's `olmoe`, described by its config.json alone.
"""

from __future__ import annotations

import msgspec

from octavo.errors import UnsupportedModelError

_SUFFIX = "ForCausalLM"


class Architecture(msgspec.Struct, frozen=True, kw_only=True):
    """What a model's class fixes, and the defaults of fields that files leave out.

    Attributes:
        name: The engine's name.
        activation: The only activation function of the gated MLP.
        qkv_bias: Whether q, k and v have a bias; None when attention_bias says so.
        num_kv_heads: Default of num_key_value_heads; None for as many as query heads.
        head_dim: Default of head_dim; None for hidden_size / num_attention_heads.
        tie_word_embeddings: Default of the field.
        max_position_embeddings: Default of the field.
        rope_theta: Default of the field.
        has_windows: Whether sliding_window counts.
        sliding_window: Default of the field.
        window_is_optional: Whether the window counts only with use_sliding_window.
        window_pattern: Every so manieth layer is without a window; 0 when other fields say which.
        no_rope_interval: Every so manieth layer does not rotate q and k, by default; 0 for none.
        has_local_rope: Whether layers with a window have a rotation of their own.
        yarn_is_longrope: Whether early files say "yarn" or "su" for longrope.
        scales_embeddings: Whether embeddings are multiplied by the root of hidden_size.
        norm_offset: What is added to the stored weights of norms.
        renormalize_experts: Whether the weights of a token's experts add up to 1; None when
            norm_topk_prob says so.
    """

    name: str
    activation: str = "silu"
    qkv_bias: bool | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    has_windows: bool = False
    sliding_window: int | None = None
    window_is_optional: bool = False
    window_pattern: int = 0
    no_rope_interval: int = 0
    has_local_rope: bool = False
    yarn_is_longrope: bool = False
    scales_embeddings: bool = False
    norm_offset: float = 0.0
    renormalize_experts: bool | None = None


_ENTRIES = (
    Architecture(
        name="gemma2",
        activation="gelu_pytorch_tanh",
        num_kv_heads=4,
        head_dim=256,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
        has_windows=True,
        sliding_window=4096,
        window_pattern=2,
        scales_embeddings=True,
        norm_offset=1.0,
    ),
    Architecture(
        name="gemma3",
        activation="gelu_pytorch_tanh",
        num_kv_heads=4,
        head_dim=256,
        tie_word_embeddings=True,
        max_position_embeddings=131072,
        rope_theta=1000000.0,
        has_windows=True,
        sliding_window=4096,
        window_pattern=6,
        has_local_rope=True,
        scales_embeddings=True,
        norm_offset=1.0,
    ),
    Architecture(
        name="ministral",
        qkv_bias=False,
        num_kv_heads=8,
        max_position_embeddings=131072,
        has_windows=True,
        sliding_window=4096,
    ),
    Architecture(
        name="mistral",
        qkv_bias=False,
        num_kv_heads=8,
        max_position_embeddings=131072,
        has_windows=True,
        sliding_window=4096,
    ),
    Architecture(
        name="mixtral",
        qkv_bias=False,
        num_kv_heads=8,
        max_position_embeddings=131072,
        rope_theta=1000000.0,
        has_windows=True,
        renormalize_experts=True,
    ),
    Architecture(
        name="phi3",
        qkv_bias=False,
        max_position_embeddings=4096,
        has_windows=True,
        yarn_is_longrope=True,
    ),
    Architecture(
        name="qwen2",
        qkv_bias=True,
        max_position_embeddings=32768,
        has_windows=True,
        sliding_window=4096,
        window_is_optional=True,
    ),
    Architecture(
        name="qwen3",
        num_kv_heads=32,
        head_dim=128,
        max_position_embeddings=32768,
        has_windows=True,
        sliding_window=4096,
        window_is_optional=True,
    ),
    Architecture(
        name="qwen3moe",
        num_kv_heads=4,
        max_position_embeddings=32768,
        has_windows=True,
        sliding_window=4096,
        window_is_optional=True,
    ),
    Architecture(
        name="smollm3",
        num_kv_heads=4,
        tie_word_embeddings=True,
        max_position_embeddings=32768,
        rope_theta=2000000.0,
        has_windows=True,
        window_is_optional=True,
        no_rope_interval=4,
    ),
)
_BY_NAME = {entry.name: entry for entry in _ENTRIES}


def architecture_of(class_names: list[str] | None) -> Architecture:
    """The supported architecture that config.json names.

    Raises:
        UnsupportedModelError: There is none; the message names those there are.
    """
    from octavo import _core  # noqa: PLC0415 - HTTP workers read config.json without the engine

    known = _core.architecture_names()
    for class_name in class_names or []:
        name = class_name.removesuffix(_SUFFIX).lower()
        if class_name.endswith(_SUFFIX) and name in known:
            return _BY_NAME.get(name) or Architecture(name=name)
    raise UnsupportedModelError(
        f"architecture {', '.join(class_names or []) or 'unknown'} is not supported; supported are "
        f"{', '.join(known)} (as in {_SUFFIX})."
    )
