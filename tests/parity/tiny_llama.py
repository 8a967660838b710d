"""Small random models with odd sizes, made and saved by transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tokenizers
import torch
import transformers

if TYPE_CHECKING:
    from pathlib import Path

    Model = transformers.PreTrainedModel

SIZES = {
    "vocab_size": 311,
    "hidden_size": 72,
    "intermediate_size": 76,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def rope(rope_type: str, **fields: Any) -> dict[str, Any]:
    """rope_parameters of a model of 256 positions, trained on 64 of them."""
    scaled = {} if rope_type == "linear" else {"original_max_position_embeddings": 64}
    parameters = {"rope_type": rope_type, "rope_theta": 10000.0, "factor": 4.0, **scaled, **fields}
    return {"rope_parameters": parameters}


def make(config: transformers.PreTrainedConfig, seed: int = 0, deviation: float = 1.5) -> Model:
    """A float32 model whose every parameter matters: large random weights, biases and norms."""
    generator = torch.Generator().manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * deviation / parameter.shape[-1] ** 0.5)
            else:
                is_offset = name.endswith("bias") or config.model_type.startswith("gemma")
                parameter.copy_(noise * 0.3 + (0.0 if is_offset else 1.0))
    return model.eval()


def save(model: Model, directory: Path, max_shard_size: str = "1GB") -> Path:
    """The model's directory, with a tokenizer that maps bytes to ids."""
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1} | {c: i + 2 for i, c in enumerate(alphabet)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    backend.save(str(directory / "tokenizer.json"))
    return directory


def random_prompts(lengths: tuple[int, ...], vocab_size: int, seed: int = 1) -> list[list[int]]:
    """Prompts of these lengths, without the ids of special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(2, vocab_size, (length,), generator=generator).tolist() for length in lengths
    ]
