"""Tensor names of GGUF files and the Hugging Face names that the engine knows them by."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from octavo.model.config import MAX_EXPERTS
from octavo.model.tensor_source import TensorEntry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_MIXTRAL = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
    "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
    "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
}
_NAME = re.compile(r"(?:blk\.(?P<layer>\d+)\.)?(?P<part>\w+)\.(?P<kind>weight|bias)", re.ASCII)


class Place(NamedTuple):
    """Where the bytes of a tensor lie: in the file's tensor of that name, from `begin` on."""

    name: str
    begin: int
    entry: TensorEntry


def places(
    tensors: Iterable[tuple[str, str, tuple[int, ...], int]], architecture: str | None
) -> dict[str, Place]:
    """Every tensor of a file by its Hugging Face name.

    The experts of a layer, stacked in one tensor, become one each. A tensor without a Hugging Face
    name keeps its own.

    Args:
        tensors: Name, type, shape and bytes of each.
        architecture: The file's general.architecture.
    """
    tensors = list(tensors)
    parts = _parts(architecture, {name.split(".")[-2] for name, *_ in tensors if "." in name})
    found = {}
    for name, dtype, shape, num_bytes in tensors:
        hf_name = _hf_name(name, parts)
        whole = Place(name, 0, TensorEntry(dtype, shape, num_bytes))
        if "{}" in hf_name and len(shape) == 3 and shape[0] <= MAX_EXPERTS:
            for i, expert in enumerate(_unstack(whole)):
                found[hf_name.format(i)] = expert
        else:
            found[hf_name] = whole
    return found


def _parts(architecture: str | None, present: set[str]) -> dict[str, str]:
    """What the parts of a layer are called in a file that has the parts `present`."""
    parts = dict(_LAYER)
    if architecture == "llama":
        parts |= _MIXTRAL
    if "post_attention_norm" in present:
        parts["ffn_norm"] = "pre_feedforward_layernorm"
    if "ffn_gate" not in present and "ffn_up" in present:
        parts["ffn_up"] = "mlp.gate_up_proj"
    return parts


def _hf_name(name: str, parts: dict[str, str]) -> str:
    match = _NAME.fullmatch(name)
    if match is None:
        return name
    layer, part, kind = match["layer"], match["part"], match["kind"]
    if layer is None:
        return f"{_TOP[part]}.{kind}" if part in _TOP else name
    return f"model.layers.{layer}.{parts[part]}.{kind}" if part in parts else name


def _unstack(whole: Place) -> Iterator[Place]:
    count, *shape = whole.entry.shape
    num_bytes = whole.entry.num_bytes // count
    entry = TensorEntry(whole.entry.dtype, tuple(shape), num_bytes)
    for i in range(count):
        yield Place(whole.name, i * num_bytes, entry)
