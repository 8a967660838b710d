"""The demo's weights against transformers on the same dequantised weights, on real prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from octavo import LLM, SamplingParams

from parity.reference import Comparison, llama_from_gguf

if TYPE_CHECKING:
    from pathlib import Path

    from octavo.outputs import RequestOutput

PARAMS = SamplingParams(temperature=0.0, max_tokens=24, logprobs=3, prompt_logprobs=1)
MAX_MEAN_BFLOAT16 = 0.03  # a peer in bfloat16 shows 0.026 on such prompts


@pytest.fixture(scope="module")
def reference(demo_path: Path) -> Any:
    return llama_from_gguf(demo_path)


def answers(model: Path, prompts: list[dict[str, Any]], dtype: str) -> list[RequestOutput]:
    with LLM(str(model), dtype=dtype, max_model_len=2048, kv_cache_memory_bytes=1 << 29) as llm:
        texts = [prompt["text"] for prompt in prompts if "text" in prompt]
        chats = [prompt["messages"] for prompt in prompts if "messages" in prompt]
        return llm.generate(texts, PARAMS) + llm.chat(chats, PARAMS)


def compare(outputs: list[RequestOutput], reference: Any) -> Comparison:
    comparison = Comparison()
    for output in outputs:
        comparison.add(output, reference)
    return comparison


def test_prompts_are_many_and_mixed(demo_path: Path, prompts: list[dict[str, Any]]) -> None:
    assert len(prompts) >= 40
    assert sum("messages" in prompt for prompt in prompts) >= 10
    assert sum(not str(prompt).isascii() for prompt in prompts) >= 10


@pytest.mark.timeout(600)
def test_float32_equals_transformers(
    demo_path: Path, prompts: list[dict[str, Any]], reference: Any
) -> None:
    comparison = compare(answers(demo_path, prompts, "float32"), reference)
    print(f"float32: max {comparison.max:.2e}, mean {comparison.mean:.2e}")
    assert comparison.max <= 1e-4
    assert comparison.num_not_greedy == 0


@pytest.mark.timeout(600)
def test_bfloat16_stays_close(
    demo_path: Path, prompts: list[dict[str, Any]], reference: Any
) -> None:
    comparison = compare(answers(demo_path, prompts, "bfloat16"), reference)
    print(f"bfloat16: max {comparison.max:.2e}, mean {comparison.mean:.2e}")
    assert comparison.mean <= MAX_MEAN_BFLOAT16
