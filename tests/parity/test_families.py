"""Every family against transformers, on small random models in float32, from both formats."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import transformers
from transformers import Phi3Config

from octavo import LLM
from parity.answers import DECODE, GREEDY, assert_equal, decoded
from parity.gguf_checkpoint import write_gguf
from parity.tiny_families import FAMILIES, ORIGINAL
from parity.tiny_llama import SIZES, make, random_prompts, save

if TYPE_CHECKING:
    from pathlib import Path

    from octavo.outputs import RequestOutput
    from parity.tiny_families import Family


@pytest.fixture(scope="module")
def outputs(family: Family, directory: Path) -> list[RequestOutput]:
    return answers(directory, family)


def load(path: Path, **options: Any) -> LLM:
    return LLM(str(path), **{"dtype": "float32", "num_gpu_blocks_override": 64, **options})


def answers(path: Path, family: Family, **options: Any) -> list[RequestOutput]:
    with load(path, **options) as llm:
        return llm.generate(random_prompts(family.lengths, SIZES["vocab_size"]), GREEDY)


def test_logprobs_and_greedy_tokens_equal_transformers(
    outputs: list[RequestOutput], model: transformers.PreTrainedModel
) -> None:
    assert_equal(outputs, model)


def test_preemption_chunks_and_prefix_hits_change_nothing(
    family: Family, directory: Path, outputs: list[RequestOutput]
) -> None:
    prompts = random_prompts(family.lengths, SIZES["vocab_size"])
    options = {"block_size": 8, "max_num_batched_tokens": 33, "max_num_seqs": 5}
    with load(directory, num_gpu_blocks_override=33, **options) as llm:
        assert decoded(llm.generate(prompts * 3, DECODE)) == decoded(outputs) * 3
        assert (llm.stats()["num_preemptions"] > 0) != family.gives_back
        again = llm.generate(prompts[-1:], DECODE)
        assert again[0].num_cached_tokens > 0
        assert decoded(again) == decoded(outputs[-1:])


@pytest.mark.parametrize(
    "family", [name for name, each in FAMILIES.items() if each.gguf], indirect=True
)
def test_gguf_of_the_same_weights(
    family: Family, directory: Path, model: transformers.PreTrainedModel, tmp_path: Path
) -> None:
    path = write_gguf(directory, tmp_path / "model.gguf", family)
    assert_equal(answers(path, family), model)


def test_longrope_takes_the_short_factors_where_no_sequence_is_longer(tmp_path: Path) -> None:
    family = FAMILIES["phi3"]
    assert isinstance(family.config, Phi3Config)
    model = make(family.config)
    short = dataclasses.replace(family, lengths=(1, 17, ORIGINAL - 13))
    assert_equal(answers(save(model, tmp_path), short, max_model_len=ORIGINAL), model)
