"""GGUF files from tiny checkpoints, as llama.cpp's converter lays them out."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import safetensors.numpy

from model.checkpoints import GgufBuilder, interleave_rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from parity.tiny_families import Family

_ARCHS = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
_INTERLEAVED = {"llama", "granite", "smollm3"}
_NORMS_PLUS_ONE = {"gemma2", "gemma3"}
_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(\w+)\.weight")


def write_gguf(directory: Path, path: Path, family: Family) -> Path:
    """The checkpoint in `directory` as one file of float32 tensors."""
    builder = GgufBuilder(path, family.gguf).add_byte_level_tokenizer()
    _add_keys(builder.writer, family)
    for name, value in _gguf_tensors(directory, family):
        builder.add_tensor(name, value)
    return builder.write()


def _add_keys(writer: gguf.GGUFWriter, family: Family) -> None:
    config = family.config
    head_dim = _head_dim(config)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    if family.gguf in {"gemma2", "gemma3", "phi3"} or config.model_type in {"mistral", "mixtral"}:
        writer.add_sliding_window(config.sliding_window)
    if family.gguf == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if family.gguf == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if getattr(config, "num_experts_per_tok", 0):
        writer.add_expert_count(
            config.num_local_experts if family.gguf == "llama" else config.num_experts
        )
        writer.add_expert_used_count(config.num_experts_per_tok)
    if family.gguf == "qwen3moe":
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    _add_rope_keys(writer, config, head_dim)


def _add_rope_keys(writer: gguf.GGUFWriter, config: Any, head_dim: int) -> None:
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    if rope["rope_type"] in {"linear", "yarn"}:
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] in {"longrope", "yarn"}:
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "longrope":
        scale = config.max_position_embeddings / rope["original_max_position_embeddings"]
        original = rope["original_max_position_embeddings"]
        factor = np.sqrt(1.0 + np.log(scale) / np.log(original))
        writer.add_rope_scaling_attn_factors(float(factor))
        for name in ("long", "short"):
            factors = np.array(rope[f"{name}_factor"], np.float32)
            writer.add_tensor(f"rope_factors_{name}.weight", factors)


def _gguf_tensors(directory: Path, family: Family) -> Iterator[tuple[str, np.ndarray]]:
    config = family.config
    names = gguf.get_tensor_name_map(_ARCHS[family.gguf], config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    stacks: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
    for name, value in safetensors.numpy.load_file(directory / "model.safetensors").items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        expert = _EXPERT.fullmatch(name)
        if expert is not None:
            stacks[f"{expert[1]}.{expert[3]}.weight"][int(expert[2])] = value
            continue
        yield _own_name(names, name), _converted(name, value, family, heads)
    for name, experts in stacks.items():
        yield _own_name(names, name), np.stack([experts[i] for i in range(len(experts))])


def _converted(name: str, value: np.ndarray, family: Family, heads: dict[str, int]) -> np.ndarray:
    part = name.split(".")[-2]
    if family.gguf in _INTERLEAVED and part in heads:
        return interleave_rows(value, heads[part])
    if family.gguf in _NORMS_PLUS_ONE and name.endswith("norm.weight"):
        return value + 1
    return value


def _own_name(names: gguf.TensorNameMap, name: str) -> str:
    own = names.get_name(name, try_suffixes=(".weight", ".bias"))
    assert own is not None, name
    return own


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
