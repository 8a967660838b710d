"""The same request gives bitwise the same tokens and log-probabilities whatever else happens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from octavo import LLM, SamplingParams
from octavo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from octavo.outputs import RequestOutput

# Odd lengths, so that blocks and chunks end inside prompts.
PROMPT = (
    "The lighthouse keeper wrote in his journal every evening. On the night of the great storm he "
    "noted the hour at which the lamp went out, the names of the ships he could see, and"
)
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, logprobs=4, ignore_eos=True)
SEEDED = SamplingParams(
    temperature=0.9,
    top_p=0.95,
    top_k=50,
    min_p=0.01,
    repetition_penalty=1.1,
    presence_penalty=0.2,
    frequency_penalty=0.1,
    seed=1234,
    max_tokens=24,
    logprobs=4,
    ignore_eos=True,
)
OTHERS = [
    f"{subject} number {i} is known for its {thing}, and visitors often say that"
    for i, (subject, thing) in enumerate(
        (s, t)
        for s in ("House", "River", "Station", "Garden")
        for t in ("size", "age", "colour", "noise", "light", "smell", "shape", "history")
    )
]

Result = list[tuple[list[int], Any]]


@pytest.fixture(scope="module")
def load(demo_path: Path) -> Iterator[Callable[..., LLM]]:
    """Loads the demo; a model with the same options is loaded once."""
    models: dict[str, LLM] = {}

    def load(**options: Any) -> LLM:
        settings = {
            "max_model_len": 512,
            "max_num_batched_tokens": 256,
            "num_gpu_blocks_override": 512,
            "enable_prefix_caching": False,
            "batch_invariant": True,
            **options,
        }
        key = repr(sorted(settings.items()))
        if key not in models:
            models[key] = LLM(str(demo_path), **settings)
        return models[key]

    yield load
    for llm in models.values():
        llm.close()


def result(output: RequestOutput) -> Result:
    return [(each.token_ids, each.logprobs) for each in output.outputs]


@pytest.fixture(scope="module")
def alone(load: Callable[..., LLM]) -> dict[str, Result]:
    """Greedy and seeded results of the request by itself."""
    llm = load()
    return {
        "greedy": result(llm.generate(PROMPT, GREEDY)[0]),
        "seeded": result(llm.generate(PROMPT, SEEDED)[0]),
    }


def both(llm: LLM) -> dict[str, Result]:
    greedy, seeded = llm.generate([PROMPT, PROMPT], [GREEDY, SEEDED])
    return {"greedy": result(greedy), "seeded": result(seeded)}


def test_the_two_ways_to_sample_differ(alone: dict[str, Result]) -> None:
    assert alone["greedy"] != alone["seeded"]
    assert len(alone["greedy"][0][0]) == GREEDY.max_tokens


@pytest.mark.parametrize("quantization", ["keep", "none"])
@pytest.mark.parametrize("isa", ["avx2", "avx512", "amx"])
def test_every_instruction_set(isa: str, quantization: str, load: Callable[..., LLM]) -> None:
    """Alone and at once, against in chunks and among others."""
    try:
        llm = load(cpu_isa=isa, quantization=quantization)
    except ConfigError:
        pytest.skip(f"this processor has no {isa}")
    expected = both(llm)
    chunked = load(
        cpu_isa=isa, quantization=quantization, max_num_batched_tokens=19, max_num_seqs=8
    )
    params = [GREEDY, SEEDED, *[GREEDY] * 6]
    outputs = chunked.generate([PROMPT, PROMPT, *OTHERS[:6]], params)
    assert {"greedy": result(outputs[0]), "seeded": result(outputs[1])} == expected


def test_again(load: Callable[..., LLM], alone: dict[str, Result]) -> None:
    assert both(load()) == alone


def test_among_32_others(load: Callable[..., LLM], alone: dict[str, Result]) -> None:
    other = msgspec.structs.replace(SEEDED, seed=None, max_tokens=30)
    params = [other] * 16 + [GREEDY, SEEDED] + [other] * 16
    outputs = load().generate([*OTHERS[:16], PROMPT, PROMPT, *OTHERS[16:]], params)
    assert {"greedy": result(outputs[16]), "seeded": result(outputs[17])} == alone


def test_as_one_of_n(load: Callable[..., LLM], alone: dict[str, Result]) -> None:
    """Greedy siblings are all the same; of seeded ones the first is the request alone."""
    llm = load()
    greedy = llm.generate(PROMPT, msgspec.structs.replace(GREEDY, n=3))[0]
    assert result(greedy) == alone["greedy"] * 3
    seeded = result(llm.generate(PROMPT, msgspec.structs.replace(SEEDED, n=3))[0])
    assert seeded[0] == alone["seeded"][0]
    assert seeded[1] != seeded[2]


@pytest.mark.parametrize("budget", [3, 17, 64])
def test_chunked_prefill(budget: int, load: Callable[..., LLM], alone: dict[str, Result]) -> None:
    llm = load(max_num_batched_tokens=budget, max_num_seqs=3)
    assert both(llm) == alone


def test_whole_prefill(load: Callable[..., LLM], alone: dict[str, Result]) -> None:
    llm = load(enable_chunked_prefill=False, max_num_batched_tokens=512)
    assert both(llm) == alone


def test_prefix_hit_and_miss(load: Callable[..., LLM], alone: dict[str, Result]) -> None:
    llm = load(enable_prefix_caching=True)
    miss = llm.generate(PROMPT, GREEDY)[0]
    hit = llm.generate(PROMPT, GREEDY)[0]
    assert miss.num_cached_tokens == 0
    assert hit.num_cached_tokens > 16
    assert result(miss) == result(hit) == alone["greedy"]
    assert both(llm) == alone


def test_preemption(load: Callable[..., LLM], alone: dict[str, Result]) -> None:
    llm = load(num_gpu_blocks_override=16, max_model_len=128)
    outputs = llm.generate([PROMPT] * 8, [GREEDY, SEEDED] * 4)
    assert llm.stats()["num_preemptions"] > 0
    for greedy, seeded in zip(outputs[::2], outputs[1::2], strict=True):
        assert {"greedy": result(greedy), "seeded": result(seeded)} == alone


@pytest.mark.parametrize("num_threads", [1, 2])
def test_number_of_threads(
    num_threads: int, load: Callable[..., LLM], alone: dict[str, Result]
) -> None:
    assert both(load(num_threads=num_threads)) == alone


def test_block_size(load: Callable[..., LLM], alone: dict[str, Result]) -> None:
    assert both(load(block_size=48, num_gpu_blocks_override=200)) == alone


def test_block_size_that_tiles_do_not_take(load: Callable[..., LLM]) -> None:
    """On AMX such blocks take other kernels, with roundings of their own."""
    odd = load(cpu_isa="avx2", block_size=7, num_gpu_blocks_override=600)
    assert both(odd) == both(load(cpu_isa="avx2"))


def test_prompt_logprobs(load: Callable[..., LLM]) -> None:
    """Of a prompt that is scored at once, in chunks, and although its blocks are cached."""
    score = msgspec.structs.replace(GREEDY, max_tokens=1, prompt_logprobs=2)
    whole = load().generate(PROMPT, score)[0].prompt_logprobs
    chunked = load(max_num_batched_tokens=17, max_num_seqs=3).generate(PROMPT, score)[0]
    cached = load(enable_prefix_caching=True)
    cached.generate(PROMPT, GREEDY)
    assert whole == chunked.prompt_logprobs == cached.generate(PROMPT, score)[0].prompt_logprobs
