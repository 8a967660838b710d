"""Decode and prefill speed of OpenVINO GenAI, in the terms of `octavo bench latency`, as JSON.

    python bench/peer_openvino.py model.gguf --threads 2 --batch 1,4,16,32 --prefill 512

Needs openvino-genai, which reads a GGUF file itself. Its continuous batching pipeline, greedy.
"""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import openvino
import openvino_genai
import peer_figures


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
    wanted = peer_figures.arguments(__doc__)
    pipeline = load(wanted.model, wanted.threads, max(wanted.batches))
    peer_figures.write_generated(wanted, partial(seconds, pipeline))


if __name__ == "__main__":
    main()
