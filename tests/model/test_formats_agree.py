"""One model stored in both formats, run by the engine, against transformers in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gguf
import pytest
from tokenizers import Tokenizer, models

from model.checkpoints import (
    CONFIG,
    GgufBuilder,
    byte_level_vocabulary,
    llama_tensors,
    write_model,
)
from octavo.sampling_params import SamplingParams

if TYPE_CHECKING:
    from pathlib import Path

    from model.checkpoints import Tensors

pytest.importorskip("octavo._core")
llm_module = pytest.importorskip("octavo.llm")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PROMPT = [5, 99, 263, 17, 120, 4, 88, 201, 33]
LENGTH = 24

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "llama3": {"rope_scaling": LLAMA3},
}


def reference(config: dict[str, Any], weights: Tensors | None = None) -> list[int]:
    """Greedy tokens, computed without a cache."""
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).eval()
    weights = llama_tensors(config) if weights is None else weights
    tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
    if config.get("tie_word_embeddings"):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    model.load_state_dict(tensors)
    ids = list(PROMPT)
    with torch.no_grad():
        for _ in range(LENGTH):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(PROMPT) :]


def generate(path: Path) -> list[int]:
    options = {
        "dtype": "float32",
        "quantization": "none",
        "kv_cache_dtype": "float32",
        "device": "cpu",
    }
    with llm_module.LLM(str(path), kv_cache_memory_bytes=32 << 20, num_threads=1, **options) as llm:
        params = SamplingParams(temperature=0, max_tokens=LENGTH, ignore_eos=True)
        return list(llm.generate([PROMPT], params)[0].outputs[0].token_ids)


def write_tokenizer(directory: Path) -> None:
    ids = {token: i for i, token in enumerate(byte_level_vocabulary()["tokens"])}
    Tokenizer(models.BPE(ids, [])).save(str(directory / "tokenizer.json"))


@pytest.mark.parametrize("name", CONFIGS)
def test_both_formats_generate_what_transformers_does(tmp_path: Path, name: str) -> None:
    config = CONFIG | CONFIGS[name]
    expected = reference(config)
    directory = write_model(tmp_path / "m", config)
    write_tokenizer(directory)
    assert generate(directory) == expected
    if name == "llama3":
        return  # a head of 16 has too few frequencies to store its scaling as factors
    builder = GgufBuilder(tmp_path / "m.gguf").add_byte_level_tokenizer()
    builder.add_llama(config)
    if name == "linear":
        builder.writer.add_string("llama.rope.scaling.type", "linear")
        builder.writer.add_float32("llama.rope.scaling.factor", 4.0)
    assert generate(builder.write()) == expected


@pytest.mark.parametrize("name", ["F16", "BF16", "Q5_0", "Q5_1"])
def test_types_that_the_engine_unpacks_lose_nothing(tmp_path: Path, name: str) -> None:
    type_ = gguf.GGMLQuantizationType[name]
    rounded = {
        name: gguf.dequantize(gguf.quantize(value, type_), type_) if value.ndim == 2 else value
        for name, value in llama_tensors().items()
    }
    builder = GgufBuilder(tmp_path / "m.gguf").add_byte_level_tokenizer()
    assert generate(builder.add_llama(quantization=type_).write()) == reference(CONFIG, rounded)
