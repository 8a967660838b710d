"""Embeddings against transformers' last hidden states, in float32."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from octavo import LLM, SamplingParams
from octavo.errors import InvalidRequestError
from parity.tiny_llama import SIZES, make, random_prompts, save

if TYPE_CHECKING:
    from pathlib import Path

LENGTHS = (1, 2, 15, 16, 17, 100)
OPTIONS = {"dtype": "float32", "num_gpu_blocks_override": 64}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("embeddings")
    save(make(LlamaConfig(**{**SIZES, "num_key_value_heads": 2})), directory)
    return directory


def expected(directory: Path, prompts: list[list[int]], pooling: str) -> list[torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).model
    with torch.inference_mode():
        hidden = [model(torch.tensor([prompt])).last_hidden_state[0] for prompt in prompts]
    return [rows[-1] if pooling == "last" else rows.mean(0) for rows in hidden]


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("chunk", [2048, 24])
def test_states(directory: Path, pooling: str, chunk: int) -> None:
    """Whole and in pieces; the second time the prompts are in the prefix cache."""
    prompts = random_prompts(LENGTHS, SIZES["vocab_size"])
    with LLM(str(directory), max_num_batched_tokens=chunk, max_num_seqs=8, **OPTIONS) as llm:
        first = llm.embed(prompts, pooling=pooling, normalize=False)
        again = llm.embed(prompts, pooling=pooling, normalize=False)
        unit = llm.embed(prompts, pooling=pooling)
    for row, repeated, wanted in zip(
        first, again, expected(directory, prompts, pooling), strict=True
    ):
        assert row == pytest.approx(wanted.tolist(), abs=2e-5)
        assert repeated == pytest.approx(row, abs=1e-6)
    for row in unit:
        assert math.hypot(*row) == pytest.approx(1.0)


def test_beside_generation(directory: Path) -> None:
    prompts = random_prompts(LENGTHS, SIZES["vocab_size"])
    with LLM(str(directory), **OPTIONS) as llm:
        alone = llm.embed(prompts[3:4], pooling="mean")[0]
        params = [SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)] * len(prompts)
        params[3] = SamplingParams(temperature=0.0, max_tokens=1, pooling="sum", prompt_logprobs=0)
        plain = llm.generate(prompts, params)
        assert len(plain[0].outputs[0].token_ids) == 4
        assert llm.embed(prompts[3:4], pooling="mean")[0] == alone
        with pytest.raises(InvalidRequestError):
            llm.generate(prompts[0], SamplingParams(pooling="last", max_tokens=2))
