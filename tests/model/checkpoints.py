"""Small checkpoints for tests, written by the formats' own packages or byte by byte."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Tensors = dict[str, np.ndarray]

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "torch_dtype": "float32",
    "eos_token_id": 2,
    "bos_token_id": 1,
}


def llama_tensors(config: Mapping[str, Any] = CONFIG, seed: int = 0) -> Tensors:
    """Random float32 weights of a Llama, by their Hugging Face names."""
    rng = np.random.default_rng(seed)
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    head_dim = hidden // config["num_attention_heads"]
    kv_size = config["num_key_value_heads"] * head_dim

    def matrix(rows: int, cols: int) -> np.ndarray:
        return rng.normal(0, 0.2, (rows, cols)).astype(np.float32)

    def vector() -> np.ndarray:
        return rng.uniform(0.5, 1.5, hidden).astype(np.float32)

    tensors = {"model.embed_tokens.weight": matrix(config["vocab_size"], hidden)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        tensors[f"{layer}.input_layernorm.weight"] = vector()
        tensors[f"{layer}.self_attn.q_proj.weight"] = matrix(hidden, hidden)
        tensors[f"{layer}.self_attn.k_proj.weight"] = matrix(kv_size, hidden)
        tensors[f"{layer}.self_attn.v_proj.weight"] = matrix(kv_size, hidden)
        tensors[f"{layer}.self_attn.o_proj.weight"] = matrix(hidden, hidden)
        tensors[f"{layer}.post_attention_layernorm.weight"] = vector()
        tensors[f"{layer}.mlp.gate_proj.weight"] = matrix(intermediate, hidden)
        tensors[f"{layer}.mlp.up_proj.weight"] = matrix(intermediate, hidden)
        tensors[f"{layer}.mlp.down_proj.weight"] = matrix(hidden, intermediate)
    tensors["model.norm.weight"] = vector()
    if not config.get("tie_word_embeddings"):
        tensors["lm_head.weight"] = matrix(config["vocab_size"], hidden)
    return tensors


def safetensors_bytes(tensors: Tensors, **changes: Any) -> bytes:
    """A safetensors file; `changes` replace fields of the header's entry of that name."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    names = {"float32": "F32", "float16": "F16", "int64": "I64"}
    for name, value in tensors.items():
        header[name] = {
            "dtype": names[value.dtype.name],
            "shape": list(value.shape),
            "data_offsets": [len(data), len(data) + value.nbytes],
        } | changes.get(name, {})
        data += value.tobytes()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def write_model(
    directory: Path, config: Mapping[str, Any] = CONFIG, tensors: Tensors | None = None
) -> Path:
    """A model directory with config.json and model.safetensors."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    tensors = llama_tensors(config) if tensors is None else tensors
    (directory / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    return directory


def write_shards(directory: Path, *shards: Tensors) -> Path:
    """A model directory with several safetensors files and their index."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    weight_map = {}
    for i, tensors in enumerate(shards, 1):
        name = f"model-{i:05}-of-{len(shards):05}.safetensors"
        (directory / name).write_bytes(safetensors_bytes(tensors))
        weight_map |= dict.fromkeys(tensors, name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """The GGUF name of a tensor of llama_tensors()."""
    top = {"embed_tokens": "token_embd", "norm": "output_norm"}
    if name == "lm_head.weight":
        return "output.weight"
    parts = name.split(".")
    if parts[1] != "layers":
        return f"{top[parts[1]]}.weight"
    return f"blk.{parts[2]}.{GGUF_NAMES['.'.join(parts[3:-1])]}.weight"


def interleave_rows(value: np.ndarray, num_heads: int) -> np.ndarray:
    """The row order of q and k in Llama's GGUF files: halves of a head, taken in turns."""
    head_dim = value.shape[0] // num_heads
    return value.reshape(num_heads, 2, head_dim // 2, -1).swapaxes(1, 2).reshape(value.shape).copy()


class GgufBuilder:
    """Writes GGUF files with the gguf package."""

    def __init__(self, path: Path, architecture: str = "llama") -> None:
        self.path = path
        self.writer = gguf.GGUFWriter(str(path), architecture)

    def add_llama(
        self,
        config: Mapping[str, Any] = CONFIG,
        tensors: Tensors | None = None,
        quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    ) -> GgufBuilder:
        """Metadata and weights of a model; only matrices are quantised."""
        writer = self.writer
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_embedding_length(config["hidden_size"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(config["num_attention_heads"])
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_rope_freq_base(config["rope_theta"])
        for name, value in (tensors or llama_tensors(config)).items():
            heads = {
                "q_proj": config["num_attention_heads"],
                "k_proj": config["num_key_value_heads"],
            }
            part = name.split(".")[-2]
            stored = interleave_rows(value, heads[part]) if part in heads else value
            self.add_tensor(gguf_name(name), stored, quantization)
        return self

    def add_tensor(
        self,
        name: str,
        value: np.ndarray,
        quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    ) -> GgufBuilder:
        """One tensor, quantised where it is a matrix."""
        if value.ndim > 1 and quantization != gguf.GGMLQuantizationType.F32:
            packed = gguf.quantize(value, quantization)
            self.writer.add_tensor(name, packed, raw_dtype=quantization)
        else:
            self.writer.add_tensor(name, value)
        return self

    def add_byte_level_tokenizer(self, **options: Any) -> GgufBuilder:
        """Byte-level BPE: the 256 bytes, a few merges and control tokens."""
        vocabulary = byte_level_vocabulary()
        self.writer.add_tokenizer_model("gpt2")
        self.writer.add_tokenizer_pre(options.get("pre", "gpt-2"))
        self.writer.add_token_list(vocabulary["tokens"])
        self.writer.add_token_types(vocabulary["types"])
        self.writer.add_token_merges(vocabulary["merges"])
        self.writer.add_bos_token_id(1)
        self.writer.add_eos_token_id(2)
        for key in ("add_bos_token", "add_eos_token"):
            if key in options:
                getattr(self.writer, f"add_{key}")(options[key])
        return self

    def write(self) -> Path:
        """Finish the file."""
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()
        return self.path


def byte_alphabet() -> list[str]:
    """The character that byte-level BPE shows for each of the 256 bytes."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    extra = iter(range(0x100, 0x200))
    return [chr(byte) if byte in shown else chr(next(extra)) for byte in range(0x100)]


def byte_level_vocabulary() -> dict[str, list[Any]]:
    """Tokens, types and merges of a small byte-level BPE with four control tokens first."""
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool>"]
    merges = ["Ġ t", "h e", "Ġt he", "i n", "in g", "Ġ a", "1 2", "12 3", "l l", "' ll", "Ġ Ġ"]
    tokens = control + byte_alphabet() + [merge.replace(" ", "") for merge in merges]
    types = [3, 3, 3, 4] + [1] * (len(tokens) - 4)
    return {"tokens": tokens, "types": types, "merges": merges}
