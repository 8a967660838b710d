"""Writes a model directory of a real geometry with made-up weights: speed without a download.

config.json, a byte-level BPE tokenizer of the vocabulary's size, a chat template and, with
--weights, safetensors shards of the right names, shapes and sizes. What it says means nothing.

    python bench/make_model.py llama-3.1-8b DIR --weights
    octavo serve DIR
    python bench/make_model.py llama-3.1-8b DIR --quantization awq
    octavo bench latency DIR --load-format dummy
"""

from __future__ import annotations

import argparse
import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

if TYPE_CHECKING:
    from collections.abc import Iterator

SHARD_BYTES = 5 << 30
NOISE_BYTES = 16 << 20  # values repeat after this many bytes

COMMON: dict[str, Any] = {
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
    "attention_bias": False,
    "initializer_range": 0.02,
}
LLAMA = COMMON | {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "rms_norm_eps": 1e-5,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "mlp_bias": False,
    "rope_theta": 500000.0,
    "max_position_embeddings": 131072,
    "vocab_size": 128256,
    "num_key_value_heads": 8,
}
LLAMA_ROPE = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
QWEN3 = COMMON | {
    "rms_norm_eps": 1e-6,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 40960,
    "vocab_size": 151936,
    "head_dim": 128,
}
GEOMETRIES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": LLAMA
    | {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "head_dim": 128,
        "tie_word_embeddings": False,
        "rope_scaling": LLAMA_ROPE | {"factor": 8.0},
    },
    "llama-3.2-1b": LLAMA
    | {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "head_dim": 64,
        "tie_word_embeddings": True,
        "rope_scaling": LLAMA_ROPE | {"factor": 32.0},
    },
    "qwen3-0.6b": QWEN3
    | {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "qwen3-30b-a3b": QWEN3
    | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
}
QUANTIZATIONS: dict[str, dict[str, Any]] = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"},
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic"},
    "fp8-block": {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    },
}
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def tokenizer(vocab_size: int) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer: the bytes, then pairs of letters, then with one letter more.

    Letters are ASCII, so that nearly every token is text of its own and an event of a stream: one
    that ends inside of a character is only sent with the next, as if the server had been late.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = [letter for letter in alphabet if letter.isascii()]
    vocab = {letter: index for index, letter in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    stems = letters
    while len(vocab) < vocab_size:
        stems = list(_longer(stems, letters, vocab, merges, vocab_size))
    model = models.BPE(vocab=vocab, merges=merges)
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def _longer(
    stems: list[str],
    letters: list[str],
    vocab: dict[str, int],
    merges: list[tuple[str, str]],
    vocab_size: int,
) -> Iterator[str]:
    """Adds every stem with one letter more to the vocabulary, until that is full."""
    for stem in stems:
        for letter in letters:
            if len(vocab) == vocab_size:
                return
            vocab[stem + letter] = len(vocab)
            merges.append((stem, letter))
            yield stem + letter


def tensors(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a decoder, in the order of the layers."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden)
    }
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
        "post_attention_layernorm.weight": (hidden,),
    }
    if experts := config.get("num_experts", 0):
        layer["mlp.gate.weight"] = (experts, hidden)
        inner = config["moe_intermediate_size"]
    for mlp in [f"mlp.experts.{index}" for index in range(experts)] or ["mlp"]:
        layer[f"{mlp}.gate_proj.weight"] = layer[f"{mlp}.up_proj.weight"] = (inner, hidden)
        layer[f"{mlp}.down_proj.weight"] = (hidden, inner)
    if config["model_type"].startswith("qwen3"):
        layer["self_attn.q_norm.weight"] = layer["self_attn.k_norm.weight"] = (config["head_dim"],)
    for index in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def num_bytes(shape: tuple[int, ...]) -> int:
    """Bytes of a bfloat16 tensor."""
    size = 2
    for length in shape:
        size *= length
    return size


def noise() -> bytes:
    """Small bfloat16 numbers of both signs, always the same."""
    state, values = 1, bytearray()
    for _ in range(NOISE_BYTES // 4096):
        block = bytearray()
        for _ in range(2048):
            state = (state * 1103515245 + 12345) & 0x7FFFFFFF
            block += struct.pack("<H", (state >> 30) << 15 | 0x3C00 | (state >> 16) & 0x7F)
        values += block
    return bytes(values)


def write_weights(config: dict[str, Any], directory: Path) -> None:
    """Shards of at most SHARD_BYTES and their index."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    used = 0
    for name, shape in tensors(config).items():
        if used + num_bytes(shape) > SHARD_BYTES:
            shards.append({})
            used = 0
        shards[-1][name] = shape
        used += num_bytes(shape)
    source, weight_map = noise(), {}
    for index, shard in enumerate(shards, 1):
        file = f"model-{index:05}-of-{len(shards):05}.safetensors"
        write_shard(shard, directory / file, source)
        weight_map |= dict.fromkeys(shard, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def write_shard(shapes: dict[str, tuple[int, ...]], path: Path, source: bytes) -> None:
    """One safetensors file; every tensor is a stretch of `source`, repeated."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + num_bytes(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            left = num_bytes(shape)
            while left > 0:
                left -= file.write(source[:left])


def main() -> None:
    """Write the directory that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("geometry", choices=GEOMETRIES)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--weights", action="store_true", help="safetensors files too")
    parser.add_argument("--layers", type=int, help="fewer layers than the geometry has")
    parser.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        help="what the configuration says of the projections; for --load-format dummy",
    )
    arguments = parser.parse_args()
    if arguments.weights and arguments.quantization:
        parser.error("--weights writes plain tensors only")
    config = dict(GEOMETRIES[arguments.geometry])
    if arguments.layers:
        config["num_hidden_layers"] = arguments.layers
    if arguments.quantization:
        config["quantization_config"] = QUANTIZATIONS[arguments.quantization]
    directory: Path = arguments.directory
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    tokenizer(config["vocab_size"]).save(str(directory / "tokenizer.json"))
    settings = {"chat_template": CHAT_TEMPLATE, "tokenizer_class": "PreTrainedTokenizerFast"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    if arguments.weights:
        write_weights(config, directory)


if __name__ == "__main__":
    main()
