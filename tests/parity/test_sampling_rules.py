"""Rules on tokens against the same rules, applied to transformers' logits one token at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import LlamaConfig

from octavo import LLM, SamplingParams
from parity.tiny_llama import SIZES, make, random_prompts, save

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

EOS = SIZES["eos_token_id"]
NUM_TOKENS = 24
LENGTHS = (1, 5, 16, 33)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make(LlamaConfig(**SIZES), seed=4)


@pytest.fixture(scope="module")
def llm(model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    directory = save(model, tmp_path_factory.mktemp("rules"))
    with LLM(str(directory), dtype="float32", num_gpu_blocks_override=64) as llm:
        yield llm


def ruled(logits: torch.Tensor, prompt: list[int], output: list[int], params: Any) -> torch.Tensor:
    """Logits of the next token after the rules of `params`."""
    for id_, bias in params.logit_bias.items():
        logits[id_] += bias
    if params.allowed_token_ids:
        kept = torch.full_like(logits, -torch.inf)
        ids = list(params.allowed_token_ids)
        kept[ids] = logits[ids]
        logits = kept
    for word in params.bad_words:
        before = list(word[:-1])
        tokens = prompt + output
        if not before or tokens[-len(before) :] == before:
            logits[word[-1]] = -torch.inf
    if len(output) < params.min_tokens:
        logits[[EOS, *params.stop_token_ids]] = -torch.inf
    seen = torch.tensor(sorted({*prompt, *output}))
    scaled = logits[seen]
    penalty = params.repetition_penalty
    logits[seen] = torch.where(scaled > 0, scaled / penalty, scaled * penalty)
    for id_ in set(output):
        logits[id_] -= params.presence_penalty + params.frequency_penalty * output.count(id_)
    return logits


def reference(model: PreTrainedModel, prompt: list[int], params: SamplingParams) -> list[int]:
    output: list[int] = []
    with torch.inference_mode():
        while len(output) < params.max_tokens:
            logits = model(torch.tensor([prompt + output]), use_cache=False).logits[0, -1]
            output.append(int(ruled(logits.clone(), prompt, output, params).argmax()))
            ends = {EOS, *params.stop_token_ids} - ({EOS} if params.ignore_eos else set())
            if output[-1] in ends and len(output) > params.min_tokens:
                break
    return output


def greedy(**fields: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.0, "max_tokens": NUM_TOKENS, **fields})


CASES = {
    "allowed": greedy(allowed_token_ids=tuple(range(20, 60)), ignore_eos=True),
    "allowed-one": greedy(allowed_token_ids=(77,), ignore_eos=True),
    "min-tokens": greedy(min_tokens=9, stop_token_ids=tuple(range(0, 311, 2))),
    "stop-ids": greedy(stop_token_ids=tuple(range(0, 311, 5))),
    "eos-likely": greedy(logit_bias={EOS: 8.0}, min_tokens=3),
    "bias": greedy(logit_bias={5: 3.0, 6: -100.0, 300: 2.5}, ignore_eos=True),
    "repetition": greedy(repetition_penalty=1.7, ignore_eos=True),
    "presence-frequency": greedy(presence_penalty=1.5, frequency_penalty=0.7, ignore_eos=True),
}


@pytest.mark.parametrize("name", CASES)
def test_rule(llm: LLM, model: PreTrainedModel, name: str) -> None:
    prompts = random_prompts(LENGTHS, SIZES["vocab_size"])
    for prompt, result in zip(prompts, llm.generate(prompts, CASES[name]), strict=True):
        assert result.outputs[0].token_ids == reference(model, prompt, CASES[name])


def test_bad_words(llm: LLM, model: PreTrainedModel) -> None:
    """What greedy decoding says is forbidden piece by piece: single tokens and pairs."""
    prompts = random_prompts(LENGTHS, SIZES["vocab_size"])
    for prompt, free in zip(prompts, llm.generate(prompts, greedy(ignore_eos=True)), strict=True):
        said = free.outputs[0].token_ids
        words = ((said[0],), tuple(said[3:5]), tuple(said[7:10]), (prompt[-1], said[0]))
        params = greedy(bad_words=words, ignore_eos=True)
        (held,) = llm.generate(prompt, params)
        tokens = held.outputs[0].token_ids
        assert tokens == reference(model, prompt, params)
        assert said[0] not in tokens


def test_choices_share_the_prompts_blocks(llm: LLM) -> None:
    """n sequences of one prompt hold its full blocks once, and each ends as it does alone."""
    (prompt,) = random_prompts((48,), SIZES["vocab_size"])
    params = SamplingParams(n=4, seed=7, max_tokens=NUM_TOKENS, ignore_eos=True)
    (many,) = llm.generate(prompt, params)
    assert len({tuple(output.token_ids) for output in many.outputs}) == 4
    hits = llm.stats()["num_prefix_hit_tokens"]
    (again,) = llm.generate(prompt, params)
    assert [o.token_ids for o in again.outputs] == [o.token_ids for o in many.outputs]
    assert llm.stats()["num_prefix_hit_tokens"] > hits
