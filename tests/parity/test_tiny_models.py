"""Every option of the Llama family against transformers, on small random models in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config

from octavo import LLM
from parity.answers import GREEDY, assert_equal
from parity.reference import Comparison
from parity.tiny_llama import SIZES, make, random_prompts, rope, save

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedConfig

    from octavo.outputs import RequestOutput

LENGTHS = (1, 2, 17, 64, 150, 243)  # the last ones pass the original context of scaled models


def llama(**options: Any) -> PreTrainedConfig:
    return LlamaConfig(**{**SIZES, **options})


CONFIGS = {
    "plain": llama(),
    "tied": llama(tie_word_embeddings=True),
    "gqa-2": llama(num_key_value_heads=2),
    "gqa-3-wide-heads": llama(num_attention_heads=6, num_key_value_heads=2, head_dim=18),
    "gqa-4-narrow-heads": llama(num_key_value_heads=1, head_dim=8),
    "one-layer": llama(num_hidden_layers=1),
    "attention-bias": llama(attention_bias=True, num_key_value_heads=2),
    "mlp-bias": llama(mlp_bias=True),
    "every-bias-tied": llama(attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "epsilon-theta": llama(
        rms_norm_eps=1e-3, rope_parameters={"rope_type": "default", "rope_theta": 500000.0}
    ),
    "rope-linear": llama(**rope("linear")),
    "rope-llama3": llama(**rope("llama3", low_freq_factor=1.0, high_freq_factor=4.0)),
    "rope-yarn": llama(**rope("yarn")),
    "rope-yarn-betas": llama(**rope("yarn", beta_fast=16.0, beta_slow=2.0, truncate=False)),
    "rope-yarn-attention-factor": llama(**rope("yarn", attention_factor=1.3)),
    "rope-yarn-mscale": llama(**rope("yarn", mscale=1.0, mscale_all_dim=0.7)),
    "mistral": MistralConfig(**{**SIZES, "sliding_window": None, "head_dim": 12}),
    "qwen2": Qwen2Config(**{**SIZES, "num_key_value_heads": 2}),
}


def answers(directory: Path, **options: Any) -> list[RequestOutput]:
    settings = {"dtype": "float32", "num_gpu_blocks_override": 64, **options}
    with LLM(str(directory), **settings) as llm:
        return llm.generate(random_prompts(LENGTHS, SIZES["vocab_size"]), GREEDY)


@pytest.mark.parametrize("name", CONFIGS)
def test_logprobs_and_greedy_tokens_equal_transformers(name: str, tmp_path: Path) -> None:
    model = make(CONFIGS[name])
    assert_equal(answers(save(model, tmp_path)), model)


def test_sharded_checkpoint(tmp_path: Path) -> None:
    model = make(CONFIGS["every-bias-tied"])
    save(model, tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_equal(answers(tmp_path), model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_checkpoint_in_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    save(make(CONFIGS["gqa-2"]).to(dtype), tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert_equal(answers(tmp_path), model)


@pytest.mark.parametrize("block_size", [1, 8, 32])
def test_block_sizes(block_size: int, tmp_path: Path) -> None:
    model = make(CONFIGS["gqa-3-wide-heads"])
    blocks = 1024 // block_size
    save(model, tmp_path)
    outputs = answers(tmp_path, block_size=block_size, num_gpu_blocks_override=blocks)
    assert_equal(outputs, model)


def test_interleaved_chunks_of_long_prompts(tmp_path: Path) -> None:
    model = make(CONFIGS["rope-llama3"])
    save(model, tmp_path)
    assert_equal(answers(tmp_path, max_num_batched_tokens=33, max_num_seqs=5), model)


def test_bfloat16_mode_stays_close(tmp_path: Path) -> None:
    model = make(CONFIGS["gqa-2"])
    save(model, tmp_path)
    comparisons = [Comparison(output, model) for output in answers(tmp_path, dtype="bfloat16")]
    deltas = [delta for each in comparisons for delta in each.deltas]
    assert sum(deltas) / len(deltas) <= 0.03
