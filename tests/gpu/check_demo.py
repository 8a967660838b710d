"""The demo's weights on a GPU in bfloat16 against the CPU in float32; needs nothing but octavo.

    python tests/gpu/check_demo.py smollm2 | FILE.gguf [PROMPTS]

The engine in float32 is as close to transformers as tests/parity says. Texts and chats are scored
whole, then the GPU's greedy answers, drawn a token at a time. Prints the mean difference of
log-probabilities and some of the text; ends with 1 if a mean is above 0.03.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo import LLM, SamplingParams

if TYPE_CHECKING:
    from octavo.outputs import RequestOutput

MAX_MEAN = 0.03  # a peer in bfloat16 shows as much
PROMPTS = Path(__file__).parent.parent / "data" / "prompts.jsonl"
SCORE = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
ANSWER = SamplingParams(temperature=0.0, max_tokens=48, ignore_eos=True, logprobs=0)


def run(llm: LLM, cases: list[dict[str, Any]], params: SamplingParams) -> list[RequestOutput]:
    """The outputs of all texts, then of all chats."""
    texts = [case["text"] for case in cases if "text" in case]
    chats = [case["messages"] for case in cases if "messages" in case]
    return llm.generate(texts, params) + llm.chat(chats, params)


def scored(output: RequestOutput) -> list[float]:
    """The log-probability of every token of a prompt but the first."""
    return [
        next(iter(each.values())).logprob for each in (output.prompt_logprobs or [])[1:] if each
    ]


def deltas(found: list[float], expected: list[float]) -> list[float]:
    """The differences, none for a prompt of one token; lists of other lengths are a fault."""
    return [abs(a - b) for a, b in zip(found, expected, strict=True)]


def main() -> int:
    """Compare, and print what came of it."""
    path = sys.argv[1]
    lines = (Path(sys.argv[2]) if len(sys.argv) > 2 else PROMPTS).read_text().splitlines()
    cases = [json.loads(line) for line in lines]
    with LLM(path, device="cuda", max_model_len=2048, num_gpu_blocks_override=2048) as llm:
        prompts = run(llm, cases, SCORE)
        answers = run(llm, cases, ANSWER)
    wholes = [a.prompt_token_ids + list(a.outputs[0].token_ids) for a in answers]
    with LLM(
        path, device="cpu", quantization="none", dtype="float32", max_model_len=2048
    ) as reference:
        expected = [scored(output) for output in reference.generate(wholes, SCORE)]
    prefill: list[float] = []
    decode: list[float] = []
    for prompt, answer, exact in zip(prompts, answers, expected, strict=True):
        tokens = answer.outputs[0].token_ids
        logprobs = answer.outputs[0].logprobs or []
        drawn = [each[id_].logprob for id_, each in zip(tokens, logprobs, strict=True)]
        found = scored(prompt)
        prefill += deltas(found, exact[: len(found)])
        decode += deltas(drawn, exact[len(found) :])
    for answer in answers[:2]:
        print(repr(answer.prompt), "→", repr(answer.outputs[0].text))
    means = statistics.fmean(prefill), statistics.fmean(decode)
    print(f"{len(answers)} prompts: prefill {means[0]:.4f}, decode {means[1]:.4f}")
    return 0 if max(means) <= MAX_MEAN else 1


if __name__ == "__main__":
    sys.exit(main())
