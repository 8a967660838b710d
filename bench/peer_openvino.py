"""Decode and prefill speed of OpenVINO GenAI, in the terms of `octavo bench latency`, as JSON.

    python bench/peer_openvino.py model.gguf --threads 2 --batch 1,4,16,32 --prefill 512

Needs openvino-genai, which reads a GGUF file itself. Its continuous batching pipeline, greedy.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import numpy as np
import openvino
import openvino_genai

PROMPT = 128


def load(path: str, threads: int, max_num_seqs: int) -> openvino_genai.LLMPipeline:
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = 1  # GB
    scheduler.max_num_seqs = max_num_seqs
    scheduler.max_num_batched_tokens = 2048
    scheduler.enable_prefix_caching = False
    return openvino_genai.LLMPipeline(
        path, "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=threads
    )


def seconds(pipeline: openvino_genai.LLMPipeline, batch: int, length: int, steps: int) -> float:
    """Of `steps` tokens for each of `batch` prompts of made-up tokens."""
    ids = np.random.RandomState(batch + steps).randint(100, 40000, (batch, length), np.int64)
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = steps
    config.ignore_eos = True
    inputs = openvino_genai.TokenizedInputs(
        openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids))
    )
    begin = time.perf_counter()
    answer = pipeline.generate(inputs, config)
    elapsed = time.perf_counter() - begin
    if any(len(tokens) != steps for tokens in answer.tokens):
        raise RuntimeError("answers of other lengths")
    return elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", default="1,4,16,32")
    parser.add_argument("--prefill", default="512")
    parser.add_argument("--steps", type=int, default=128)
    args = parser.parse_args()
    batches = [int(n) for n in args.batch.split(",")]
    pipeline = load(args.model, args.threads, max(batches))
    seconds(pipeline, 1, PROMPT, 4)
    found: dict[str, float] = {}
    for batch in batches:
        one = seconds(pipeline, batch, PROMPT, 1)
        whole = seconds(pipeline, batch, PROMPT, args.steps + 1)
        found[f"decode {batch}"] = batch * args.steps / (whole - one)
    for length in (int(n) for n in args.prefill.split(",")):
        found[f"prefill {length}"] = length / min(seconds(pipeline, 1, length, 1) for _ in range(3))
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
