"""Decode and prefill speed of llama.cpp, in the terms of `octavo bench latency`, as one JSON line.

    python bench/peer_llama_cpp.py model.gguf --threads 2 --batch 1,4,16,32 --prefill 512

Needs llama-cpp-python. Runs without sampling: the tokens are made up, and the logits stay where
they are, which favours llama.cpp over a server that picks a token from each row.
"""

from __future__ import annotations

import time
from typing import Any

import llama_cpp
import peer_figures
from peer_figures import PROMPT

WARM_UP_STEPS = 4


def tokens(count: int, seed: int) -> list[int]:
    return [(seed * 37 + i * 11) % 40000 + 100 for i in range(count)]


class Model:
    """A model in a context for `num_seqs` sequences."""

    def __init__(self, path: str, threads: int, num_seqs: int, length: int) -> None:
        llama_cpp.llama_backend_init()
        llama_cpp.llama_log_set(_QUIET, None)
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), params)
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = num_seqs * length
        context.n_batch = context.n_ubatch = max(512, num_seqs)
        context.n_seq_max = num_seqs
        context.n_threads = context.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, context)
        self.batch = llama_cpp.llama_batch_init(max(512, num_seqs), 0, 1)

    def decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """One step over rows of (token, position, sequence, wants logits)."""
        self.batch.n_tokens = len(rows)
        for i, (token, position, sequence, wants_logits) in enumerate(rows):
            self.batch.token[i] = token
            self.batch.pos[i] = position
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i][0] = sequence
            self.batch.logits[i] = wants_logits
        if llama_cpp.llama_decode(self.context, self.batch) != 0:
            raise RuntimeError("llama_decode failed")
        llama_cpp.llama_synchronize(self.context)

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), 1)

    def prefill(self, length: int, sequence: int = 0) -> None:
        ids = tokens(length, sequence)
        self.decode([(t, i, sequence, i == length - 1) for i, t in enumerate(ids)])

    def close(self) -> None:
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)


@llama_cpp.llama_log_callback
def _QUIET(level: int, text: bytes, data: Any) -> None:  # noqa: N802 - a constant, made by ctypes
    pass


def decode_s(path: str, threads: int, batch: int, steps: int) -> float:
    model = Model(path, threads, batch, PROMPT + steps + 64)
    for sequence in range(batch):
        model.prefill(PROMPT, sequence)
    begin = 0.0
    for step in range(steps + WARM_UP_STEPS):
        if step == WARM_UP_STEPS:
            begin = time.perf_counter()
        model.decode([(1000 + step, PROMPT + step, s, True) for s in range(batch)])
    elapsed = time.perf_counter() - begin
    model.close()
    return elapsed / steps


def prefill_s(path: str, threads: int, length: int) -> float:
    model = Model(path, threads, 1, length + 64)
    times = []
    for _ in range(4):
        model.clear()
        begin = time.perf_counter()
        model.prefill(length)
        times.append(time.perf_counter() - begin)
    model.close()
    return min(times[1:])


def main() -> None:
    wanted = peer_figures.arguments(__doc__)
    peer_figures.write(
        wanted,
        lambda batch: decode_s(wanted.model, wanted.threads, batch, wanted.steps),
        lambda length: prefill_s(wanted.model, wanted.threads, length),
    )


if __name__ == "__main__":
    main()
