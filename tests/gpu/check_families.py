"""Run the checkpoints of write_families.py in bfloat16 and compare; needs nothing but octavo.

    python tests/gpu/check_families.py DIRECTORY [cpu | cuda]

Prefill is compared with the reference; decode, a token at a time, with prefill of the same tokens.
Prints a line a family, ends with 1 if one is off.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from octavo import LLM, SamplingParams

if TYPE_CHECKING:
    from octavo.outputs import RequestOutput

MAX_MEAN = 0.03  # a peer in bfloat16 shows as much on trained weights
MAX_MEAN_FP8 = 0.15  # of activations in fp8
FP8_ROWS = ("fp8-tensor", "fp8-scalar", "fp8-channel")
STEP_TOKENS, FEW_TOKENS = 2048, 64
SCORE = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
DECODE = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True, logprobs=0)


def scored(output: RequestOutput) -> list[float]:
    """The log-probability of every token of a prompt but the first."""
    return [
        next(iter(each.values())).logprob for each in (output.prompt_logprobs or [])[1:] if each
    ]


def mean_delta(found: list[float], expected: list[float]) -> float:
    """The mean difference; lists of other lengths are a fault."""
    return statistics.fmean(abs(a - b) for a, b in zip(found, expected, strict=True))


def check(directory: Path, device: str, step_tokens: int) -> tuple[float, float]:
    """How far prefill is from the reference and decode from prefill."""
    cases = json.loads((directory / "reference.json").read_text())
    prompts = [case["prompt"] for case in cases]
    options = {
        "dtype": "bfloat16",
        "device": device,
        "max_model_len": 256,
        "max_num_seqs": 8,
        "max_num_batched_tokens": step_tokens,
    }
    with LLM(str(directory), num_gpu_blocks_override=128, **options) as llm:
        found = [value for output in llm.generate(prompts, SCORE) for value in scored(output)]
        answers = [output.outputs[0] for output in llm.generate(prompts, DECODE)]
        whole = [p + list(a.token_ids) for p, a in zip(prompts, answers, strict=True)]
        again = llm.generate(whole, SCORE)
    expected = [value for case in cases for value in case["logprobs"]]
    decoded = [
        each[id_].logprob
        for answer in answers
        for id_, each in zip(answer.token_ids, answer.logprobs or [], strict=True)
    ]
    prefilled = [v for output in again for v in scored(output)[-DECODE.max_tokens :]]
    return mean_delta(found, expected), mean_delta(decoded, prefilled)


def limits(directory: Path, device: str) -> dict[int, float]:
    """Tokens of a step, and how far it may be off.

    Codes are multiplied in one way up to 64 tokens and in another above, where a scale a row makes
    the activations fp8 too.
    """
    if "quantization_config" not in json.loads((directory / "config.json").read_text()):
        return {STEP_TOKENS: MAX_MEAN}
    is_coarse = device == "cuda" and directory.name in FP8_ROWS
    return {STEP_TOKENS: MAX_MEAN_FP8 if is_coarse else MAX_MEAN, FEW_TOKENS: MAX_MEAN}


def main() -> int:
    """Check every family."""
    device = sys.argv[2] if len(sys.argv) > 2 else "cuda"
    failed = 0
    for directory in sorted(Path(sys.argv[1]).iterdir()):
        for step_tokens, limit in limits(directory, device).items():
            name = f"{directory.name}, {step_tokens}"
            try:
                prefill, decode = check(directory, device, step_tokens)
            except Exception as error:
                print(f"{name:28} {type(error).__name__}: {error}")
                failed += 1
                continue
            is_off = not max(prefill, decode) <= limit
            failed += is_off
            print(f"{name:28} prefill {prefill:.4f} decode {decode:.4f}{' OFF' * is_off}")
    return 1 if failed else 0


sys.exit(main())
