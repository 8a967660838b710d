"""The whole engine on a GPU: against transformers, and against itself under every way to schedule.

Skipped where there is no CUDA device. The kernels have a program of their own, test_cuda.
"""

from __future__ import annotations

import copy
from array import array
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import LlamaConfig, Qwen2Config

from octavo import LLM, SamplingParams, _core
from octavo.bench.offline import WAIT_S
from octavo.engine.protocol import RECORD
from octavo.engine.settings import to_core_sampling
from parity.reference import logprobs_of
from parity.tiny_llama import make, random_prompts, save

if TYPE_CHECKING:
    from pathlib import Path

    from octavo.outputs import RequestOutput

if _core.num_cuda_devices() == 0:
    pytest.skip("there is no CUDA device", allow_module_level=True)

SIZES = {
    "vocab_size": 320,
    "hidden_size": 256,
    "intermediate_size": 448,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "one-head-group-tied": LlamaConfig(
        **{**SIZES, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True}
    ),
    "qwen2": Qwen2Config(**{**SIZES, "num_key_value_heads": 4}),
}
LENGTHS = (1, 2, 15, 16, 17, 64, 150, 243, 33, 31, 400, 100)
GREEDY = SamplingParams(
    temperature=0.0, max_tokens=40, ignore_eos=True, logprobs=5, prompt_logprobs=0
)
ABORT = 3  # FinishReason::kAbort


def load(directory: Path, **options: Any) -> LLM:
    settings = {
        "device": "cuda",
        "dtype": "bfloat16",
        "num_gpu_blocks_override": 600,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 1024,
        **options,
    }
    return LLM(str(directory), **settings)


def prompts() -> list[list[int]]:
    return random_prompts(LENGTHS, SIZES["vocab_size"])


def reported(output: RequestOutput) -> list[tuple[int, int, float]]:
    """(position, id, log-probability of the id behind it), of prompt and output."""
    first = len(output.prompt_token_ids) - 1
    rows = [*enumerate((output.prompt_logprobs or [])[1:]), *enumerate(output.outputs[0].logprobs)]
    num_prompt_rows = len(rows) - len(output.outputs[0].logprobs)
    return [
        (position if i < num_prompt_rows else first + position, id_, each.logprob)
        for i, (position, logprobs) in enumerate(rows)
        for id_, each in logprobs.items()
    ]


def assert_close(outputs: list[RequestOutput], model: Any) -> None:
    """As close to float32 as transformers in bfloat16 is, on the mean over all log-probabilities.

    Wrong keys and values would be off by whole units.
    """
    rounded = copy.deepcopy(model).to(torch.bfloat16)
    ours = theirs = 0.0
    for output in outputs:
        tokens = output.prompt_token_ids + output.outputs[0].token_ids
        exact, coarse = logprobs_of(model, tokens), logprobs_of(rounded, tokens)
        for position, id_, logprob in reported(output):
            expected = exact[position, id_].item()
            ours += abs(logprob - expected)
            theirs += abs(coarse[position, id_].item() - expected)
    assert 0.0 < ours <= 1.25 * theirs


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    directory = tmp_path_factory.mktemp("llama")
    model = make(CONFIGS["llama"])
    save(model, directory)
    return directory, model


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("eager", [False, True], ids=["graphs", "eager"])
def test_logprobs_are_those_of_transformers(name: str, eager: bool, tmp_path: Path) -> None:
    model = make(CONFIGS[name])
    save(model, tmp_path)
    with load(tmp_path, enforce_eager=eager) as llm:
        assert_close(llm.generate(prompts(), GREEDY), model)


@pytest.mark.parametrize(
    "options",
    [
        {"num_gpu_blocks_override": 40},
        {"max_num_batched_tokens": 48},
        {"max_num_seqs": 3},
        {"num_gpu_blocks_override": 40, "max_num_batched_tokens": 48, "enforce_eager": True},
    ],
    ids=["preempted", "chunked", "queued", "all-eager"],
)
def test_no_way_to_schedule_harms_a_result(
    options: dict[str, Any], llama: tuple[Path, Any]
) -> None:
    directory, model = llama
    with load(directory, **options) as llm:
        outputs = llm.generate(prompts(), GREEDY)
        preemptions = llm.stats()["num_preemptions"]
    assert_close(outputs, model)
    assert (preemptions > 0) == ("num_gpu_blocks_override" in options)


def test_a_cached_prefix_gives_the_same_answer(llama: tuple[Path, Any]) -> None:
    directory, model = llama
    plain = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, logprobs=3)
    with load(directory) as llm:
        llm.generate(prompts(), plain)
        again = llm.generate(prompts(), plain)
        assert llm.stats()["num_prefix_hit_tokens"] > sum(LENGTHS) // 2
    assert_close(again, model)


def test_graphs_and_overlap_change_no_bit(llama: tuple[Path, Any]) -> None:
    """Batch-invariant, so that what a sequence is computed beside makes no difference."""
    directory, _ = llama
    seeded = SamplingParams(
        temperature=0.8, top_p=0.9, seed=5, max_tokens=40, presence_penalty=0.3, ignore_eos=True
    )
    answers = []
    for eager in (True, False):
        options = {"enforce_eager": eager, "batch_invariant": True}
        with load(directory, **options, enable_prefix_caching=False) as llm:
            outputs = llm.generate(prompts(), seeded)
            answers.append([output.outputs[0].token_ids for output in outputs])
            alone = llm.generate(prompts()[5:6], seeded)[0].outputs[0].token_ids
            assert alone == answers[-1][5]
    assert answers[0] == answers[1]


def test_stop_ids_end_an_answer_where_they_first_occur(llama: tuple[Path, Any]) -> None:
    directory, _ = llama
    free = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
    with load(directory, batch_invariant=True, enable_prefix_caching=False) as llm:
        for output in llm.generate(prompts(), free):
            ids = output.outputs[0].token_ids
            stop = SamplingParams(
                temperature=0.0, max_tokens=40, ignore_eos=True, stop_token_ids=[ids[10]]
            )
            (stopped,) = llm.generate([output.prompt_token_ids], stop)
            assert stopped.outputs[0].token_ids == ids[: ids.index(ids[10]) + 1]


def test_aborts_in_flight_leave_the_others_alone(llama: tuple[Path, Any]) -> None:
    directory, _ = llama
    params = SamplingParams(temperature=0.0, max_tokens=200, ignore_eos=True)
    # Without the prefix cache: what is found there is cut into other pieces than what is computed.
    with load(directory, batch_invariant=True, enable_prefix_caching=False) as llm:
        engine = llm._engine
        wanted = {
            number: list(llm.generate([prompt], params)[0].outputs[0].token_ids)
            for number, prompt in enumerate(prompts()[:8])
        }
        first = 1000
        for number, prompt in enumerate(prompts()[:8]):
            engine.submit(first + number, array("i", prompt), to_core_sampling(params))
        tokens: dict[int, list[int]] = {number: [] for number in wanted}
        reasons: dict[int, int] = {}
        while len(reasons) < len(wanted):
            for batch in engine.take_outputs(WAIT_S):
                ids = array("i", batch.token_ids)
                at = 0
                for request_id, _, count, *_, reason in RECORD.iter_unpack(batch.records):
                    tokens[request_id - first] += ids[at : at + count]
                    at += count
                    if reason:
                        reasons[request_id - first] = reason
            for number, ids_so_far in tokens.items():
                if number % 2 and len(ids_so_far) > 20 * number:
                    engine.abort(first + number)
        assert llm.stats()["num_free_blocks"] == llm.stats()["num_blocks"]
    for number, ids_wanted in wanted.items():
        assert tokens[number] == ids_wanted[: len(tokens[number])]
        assert (reasons[number] == ABORT) == (number % 2 == 1)
