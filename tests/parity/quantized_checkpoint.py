"""FP8, compressed-tensors, AWQ and GPTQ checkpoints, written as their tools do."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from parity.tiny_llama import SIZES, save

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PreTrainedModel

WIDE = {**SIZES, "hidden_size": 256, "intermediate_size": 384, "num_key_value_heads": 2}
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]

Tensors = dict[str, torch.Tensor]
# A quantiser: from a weight to its tensors by suffix, and the weight that they stand for.
Quantizer = "Callable[[torch.Tensor], tuple[Tensors, torch.Tensor]]"


def words(codes: torch.Tensor, order: list[int] | None = None) -> torch.Tensor:
    """Codes of four bits, eight to a word along the last dimension."""
    split = codes.numpy().astype(np.uint32).reshape(*codes.shape[:-1], -1, 8)
    packed = np.zeros(split.shape[:-1], np.uint32)
    for j, source in enumerate(order or range(8)):
        packed |= split[..., source] << np.uint32(4 * j)
    return torch.from_numpy(packed.view(np.int32))


def fp8(scale_of: Callable[[torch.Tensor], torch.Tensor], suffix: str = ".weight_scale") -> Any:
    """Codes of float8 with scales that are spread over the matrix."""

    def quantize(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        scale = scale_of(weight)
        spread = scale
        if scale.ndim == 2 and scale.shape[1] > 1:
            spread = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
            spread = spread[: weight.shape[0], : weight.shape[1]]
        codes = (weight / spread).clamp(-448, 448).to(torch.float8_e4m3fn)
        return {".weight": codes, suffix: scale}, codes.float() * spread

    return quantize


def block_scales(weight: torch.Tensor) -> torch.Tensor:
    rows, cols = -(-weight.shape[0] // 128), -(-weight.shape[1] // 128)
    tiles = [[weight[128 * i : 128 * i + 128, 128 * j : 128 * j + 128].abs().max() / 448
              for j in range(cols)] for i in range(rows)]  # fmt: skip
    return torch.tensor(tiles)


def int8_channels(dtype: torch.dtype) -> Any:
    def quantize(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        scale = (weight.abs().amax(1, keepdim=True) / 127).to(dtype)
        codes = (weight / scale.float()).round().clamp(-128, 127).to(torch.int8)
        return {".weight": codes, ".weight_scale": scale}, codes.float() * scale.float()

    return quantize


def grouped(weight: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes [rows, cols], float16 scales and integer zeros [rows, groups], fifteen steps each."""
    split = weight.reshape(weight.shape[0], -1, size)
    low, high = split.amin(2), split.amax(2)
    scale = ((high - low) / 15).half().float()
    zero = (-low / scale).round().clamp(0, 15)
    codes = (split / scale[..., None] + zero[..., None]).round().clamp(0, 15)
    return codes.reshape(weight.shape).int(), scale, zero.int()


def value(codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    size = codes.shape[1] // scale.shape[1]
    return (codes - zero.repeat_interleave(size, 1)) * scale.repeat_interleave(size, 1)


def awq(size: int) -> Any:
    def quantize(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        codes, scale, zero = grouped(weight, size)
        tensors = {
            ".qweight": words(codes.T.contiguous(), AWQ_ORDER),
            ".qzeros": words(zero.T.contiguous(), AWQ_ORDER),
            ".scales": scale.T.contiguous().half(),
        }
        return tensors, value(codes, scale, zero)

    return quantize


def gptq(size: int, *, act_order: bool = False, version: int = 1) -> Any:
    def quantize(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        cols = weight.shape[1]
        order = torch.randperm(cols, generator=torch.Generator().manual_seed(3))
        order = order if act_order else torch.arange(cols)
        codes, scale, zero = grouped(weight[:, order], size)
        zero = zero.clamp(min=1)  # the first version cannot store a zero of 0
        inverse = order.argsort()
        decoded = value(codes, scale, zero)[:, inverse]
        tensors = {
            ".qweight": words(codes[:, inverse]).T.contiguous(),
            ".qzeros": words((zero - (2 - version)).T.contiguous()),
            ".scales": scale.T.contiguous().half(),
            ".g_idx": (inverse // size).int(),
        }
        return tensors, decoded

    return quantize


def packed(size: int, *, symmetric: bool) -> Any:
    def quantize(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        codes, scale, zero = grouped(weight, size)
        scale = scale.bfloat16().float()
        zero = torch.full_like(zero, 8) if symmetric else zero
        tensors = {
            ".weight_packed": words(codes),
            ".weight_scale": scale.bfloat16(),
            ".weight_shape": torch.tensor(weight.shape),
        }
        if not symmetric:
            tensors[".weight_zero_point"] = words(zero.T.contiguous()).T.contiguous()
        return tensors, value(codes, scale, zero)

    return quantize


def compressed(**weights: Any) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "config_groups": groups}


def four_bits(size: int) -> dict[str, Any]:
    return compressed(num_bits=4, type="int", strategy="group", group_size=size)


FP8_TENSOR = compressed(num_bits=8, type="float", strategy="tensor")
INT8_CHANNEL = compressed(num_bits=8, type="int", strategy="channel")
GPTQ = {"quant_method": "gptq", "bits": 4, "desc_act": False}
SCHEMES: dict[str, tuple[dict[str, Any], Any]] = {
    "fp8-tensor": (FP8_TENSOR, fp8(lambda w: (w.abs().max() / 448).reshape(1))),
    "fp8-scalar": ({"quant_method": "fp8"}, fp8(lambda w: w.abs().max() / 448)),
    "fp8-channel": (FP8_TENSOR, fp8(lambda w: w.abs().amax(1, keepdim=True) / 448)),
    "fp8-block": (
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        fp8(block_scales, ".weight_scale_inv"),
    ),
    "int8-channel": (INT8_CHANNEL, int8_channels(torch.float32)),
    "int8-channel-half": (INT8_CHANNEL, int8_channels(torch.bfloat16)),
    "int4-32-symmetric": (four_bits(32), packed(32, symmetric=True)),
    "int4-128-zeros": (four_bits(128), packed(128, symmetric=False)),
    "awq-32": ({"quant_method": "awq", "bits": 4, "group_size": 32}, awq(32)),
    "awq-64": ({"quant_method": "awq", "bits": 4, "group_size": 64}, awq(64)),
    "awq-128": ({"quant_method": "awq", "bits": 4, "group_size": 128}, awq(128)),
    "gptq-32": ({**GPTQ, "group_size": 32}, gptq(32)),
    "gptq-64": ({**GPTQ, "group_size": 64}, gptq(64)),
    "gptq-128-act-order": (
        {**GPTQ, "group_size": 128, "desc_act": True},
        gptq(128, act_order=True),
    ),
    "gptq-v2-64": (
        {**GPTQ, "group_size": 64, "checkpoint_format": "gptq_v2"},
        gptq(64, version=2),
    ),
}


def quantize(model: PreTrainedModel, directory: Path, name: str) -> PreTrainedModel:
    """Save the model with quantised projections; give it the weights that they stand for."""
    config, quantizer = SCHEMES[name]
    save(model, directory)
    stored, decoded = {}, {}
    for key, weight in load_file(directory / "model.safetensors").items():
        stored[key] = decoded[key] = weight
        is_projection = "proj" in key or ".experts." in key
        if not is_projection or not key.endswith(".weight"):
            continue
        tensors, decoded[key] = quantizer(weight)
        del stored[key]
        stored |= {key.removesuffix(".weight") + suffix: t for suffix, t in tensors.items()}
    save_file(decoded, directory / "model.safetensors")
    reference = type(model).from_pretrained(directory, dtype=torch.float32)
    save_file(stored, directory / "model.safetensors")
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": config}))
    return reference.eval()
