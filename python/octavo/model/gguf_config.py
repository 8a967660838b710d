"""A model's shape from the metadata and the tensors of a GGUF file."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.model.config import ModelInfo, RopeInfo
from octavo.model.rope_factors import read_rope_factors

if TYPE_CHECKING:
    from octavo.model.gguf import GgufMetadata, GgufModel

# Whether the file keeps the rows of q and k so that dimensions 2i and 2i + 1 rotate together.
_INTERLEAVED = {"llama": True, "qwen2": False}

_FIRST_LAYER = "model.layers.0."


def gguf_model_info(model: GgufModel) -> ModelInfo:
    """The shape of the model in a GGUF file.

    Raises:
        CheckpointError: A key is missing or has the wrong type; the message names it.
        UnsupportedModelError: The file asks for what this version has not; the message names it.
    """
    architecture = model.metadata.need("general.architecture", str)
    if architecture not in _INTERLEAVED:
        raise UnsupportedModelError(
            f"{model.location}: architecture {architecture!r} is not supported; supported are "
            f"{', '.join(_INTERLEAVED)}."
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
    if keys.integer("expert_count", 0):
        raise UnsupportedModelError("mixtures of experts are not supported.")
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
    if 0 < keys.integer("attention.sliding_window", 0) < context:
        raise UnsupportedModelError("attention with a sliding window is not supported.")
    return ModelInfo(
        architecture=keys.architecture,
        vocab_size=embedding.shape[0],
        hidden_size=hidden_size,
        intermediate_size=keys.integer("feed_forward_length"),
        num_layers=keys.integer("block_count"),
        num_q_heads=num_q_heads,
        num_kv_heads=keys.integer("attention.head_count_kv", num_q_heads),
        head_dim=head_dim,
        rms_norm_eps=keys.number("attention.layer_norm_rms_epsilon", 1e-5),
        tie_word_embeddings="lm_head.weight" not in tensors,
        qkv_bias=f"{_FIRST_LAYER}self_attn.q_proj.bias" in tensors,
        attention_output_bias=f"{_FIRST_LAYER}self_attn.o_proj.bias" in tensors,
        mlp_bias=f"{_FIRST_LAYER}mlp.up_proj.bias" in tensors,
        max_position_embeddings=context,
        rope=_rope_info(model, keys, head_dim, context),
        dtype=_plain_dtype(model),
    )


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
        interleaved=_INTERLEAVED[keys.architecture],
    )
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
