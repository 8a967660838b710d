"""A small random model of every family, with odd sizes and every option of its configuration on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    MinistralConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    OlmoeConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

from parity.tiny_llama import SIZES, rope

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

WINDOW = 21  # not a whole number of blocks
ORIGINAL = 64  # positions before scaling
ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]
FACTORS = 4  # of longrope: half the rotated part of a head


@dataclass(frozen=True)
class Family:
    """A configuration, and what prompts show all of it.

    Attributes:
        config: The real configuration class.
        gguf: The architecture's name in GGUF files; none where they have no key for its options.
        lengths: Of the prompts; the long ones pass window and original context.
        gives_back: Whether every layer has a window, so that blocks become free early.
    """

    config: PreTrainedConfig
    gguf: str = ""
    lengths: tuple[int, ...] = (1, 17, 70, 243)
    gives_back: bool = False


def _config(class_: type[PreTrainedConfig], **options: Any) -> PreTrainedConfig:
    sizes = {**SIZES, "num_key_value_heads": 2, "pad_token_id": None}
    return class_(**{**sizes, **options})


def _longrope(**options: Any) -> PreTrainedConfig:
    return _config(
        Phi3Config,
        original_max_position_embeddings=ORIGINAL,
        sliding_window=WINDOW * 4,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "short_factor": [1.0 + 0.1 * i for i in range(FACTORS)],
            "long_factor": [1.5 + 0.7 * i for i in range(FACTORS)],
        },
        num_attention_heads=4,
        hidden_size=64,
        **options,
    )


FAMILIES = {
    "mistral": Family(
        _config(MistralConfig, head_dim=12, sliding_window=WINDOW), "llama", gives_back=True
    ),
    "ministral": Family(
        _config(
            MinistralConfig,
            head_dim=14,
            sliding_window=WINDOW,
            layer_types=ALTERNATING,
            tie_word_embeddings=True,
        )
    ),
    "qwen2": Family(_config(Qwen2Config, **rope("yarn")), "qwen2"),
    "qwen2-window": Family(
        _config(Qwen2Config, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1)
    ),
    "qwen3": Family(
        _config(Qwen3Config, head_dim=22, attention_bias=True, **rope("yarn")), "qwen3"
    ),
    "qwen3-window": Family(
        _config(
            Qwen3Config,
            head_dim=22,
            use_sliding_window=True,
            sliding_window=WINDOW,
            layer_types=ALTERNATING,
        )
    ),
    "gemma2": Family(
        _config(
            Gemma2Config,
            head_dim=24,
            query_pre_attn_scalar=24,
            sliding_window=WINDOW,
            attn_logit_softcapping=3.0,
            final_logit_softcapping=5.0,
            tie_word_embeddings=True,
        ),
        "gemma2",
    ),
    "gemma3": Family(
        _config(
            Gemma3TextConfig,
            num_hidden_layers=7,
            head_dim=18,
            query_pre_attn_scalar=18,
            sliding_window=WINDOW,
            rope_parameters={
                "full_attention": {"rope_type": "linear", "rope_theta": 500000.0, "factor": 4.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
            tie_word_embeddings=True,
        ),
        "gemma3",
    ),
    "phi3": Family(_longrope(), "phi3", (65, 70, 101, 243)),
    "smollm3": Family(_config(SmolLM3Config, num_hidden_layers=5, **rope("linear")), "smollm3"),
    "granite": Family(
        _config(
            GraniteConfig,
            embedding_multiplier=3.0,
            residual_multiplier=0.6,
            attention_multiplier=0.2,
            logits_scaling=2.5,
            tie_word_embeddings=True,
            **rope("linear"),
        ),
        "granite",
    ),
    "mixtral": Family(
        _config(
            MixtralConfig,
            num_local_experts=5,
            num_experts_per_tok=2,
            sliding_window=WINDOW,
        ),
        "llama",
        gives_back=True,
    ),
    "qwen3moe": Family(
        _config(
            Qwen3MoeConfig,
            head_dim=22,
            num_experts=6,
            num_experts_per_tok=3,
            moe_intermediate_size=20,
            norm_topk_prob=True,
        ),
        "qwen3moe",
    ),
    "qwen3moe-dense-layer": Family(
        _config(
            Qwen3MoeConfig,
            head_dim=22,
            num_experts=6,
            num_experts_per_tok=3,
            moe_intermediate_size=20,
            mlp_only_layers=[1],
            attention_bias=True,
        )
    ),
    "olmo2": Family(_config(Olmo2Config, **rope("linear")), "olmo2"),
    "olmoe": Family(
        _config(OlmoeConfig, num_experts=6, num_experts_per_tok=3, **rope("linear")), "olmoe"
    ),
}
