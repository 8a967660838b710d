"""Where a step's time goes: kernels, gaps between them, and the host.

    python bench/step_breakdown.py DIR [--batch 1,64,256] [--prefill 8192] [octavo serve's options]

For each batch size, sequences of 128 tokens in and 256 out: their decode steps are timed while they
all run, and once more under torch's profiler, for what the GPU does meanwhile. A prefill's row is
of prompts of so many tokens, one after the other. The last row is a workload of ShareGPT-like
lengths, whose steps are of decodes and prefills mixed. No prompt finds the prefix of one before it.
"Kernels" is the union of their intervals, for programmatic launches overlap; "gaps" is the rest of
the time from the first kernel to the last. The engine thread's time is what it does not wait.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile

from octavo import config
from octavo.bench import offline
from octavo.bench.workloads import fixed, sharegpt_like

if TYPE_CHECKING:
    from octavo.bench.offline import OfflineEngine
    from octavo.bench.workloads import Item

PROMPT_LEN, OUTPUT_LEN = 128, 256
PREFILLS = 8
MIXED_REQUESTS = 400
NUM_NAMES = 8
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


def measure(engine: OfflineEngine, items: list[Item], batch: int) -> dict[str, float]:
    """Milliseconds a step, and microseconds of the engine thread's, while `batch` sequences run."""
    before = engine.stats()["num_generation_tokens"]
    runner = threading.Thread(target=engine.run, args=(items,))
    runner.start()
    begin = when(engine, before + 16 * batch)
    end = when(engine, before + 200 * batch)
    runner.join()
    steps = end["num_steps"] - begin["num_steps"]

    def per_step(name: str) -> float:
        return (end[name] - begin[name]) / steps

    return {
        "step_ms": per_step("time_s") * 1e3,
        "host_us": (per_step("step_seconds") - per_step("wait_seconds")) * 1e6,
        "launch_us": (per_step("device_seconds") - per_step("wait_seconds")) * 1e6,
    }


def when(engine: OfflineEngine, num_tokens: float) -> dict[str, float]:
    """The engine's counters once it has generated so many tokens, and the time."""
    while True:
        stats = engine.stats()
        if stats["num_generation_tokens"] >= num_tokens:
            return {**stats, "time_s": time.perf_counter()}
        time.sleep(0.001)


def trace(engine: OfflineEngine, items: list[Item]) -> list[dict[str, Any]]:
    """What the GPU did in the middle half of a run, by time of its start."""
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        engine.run(items)
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    spans = sorted((e for e in events if e.get("cat") in ON_DEVICE), key=lambda e: e["ts"])
    return spans[len(spans) // 4 : len(spans) * 3 // 4]


def busy_us(spans: list[dict[str, Any]]) -> float:
    """Length of the union of the spans."""
    total, end = 0.0, 0.0
    for span in spans:
        begin, stop = span["ts"], span["ts"] + span["dur"]
        total += max(0.0, stop - max(begin, end))
        end = max(end, stop)
    return total


def measure_prefills(engine: OfflineEngine, items: list[Item]) -> dict[str, float]:
    """As measure(), of whole prompts whose only output is one token each."""
    totals = engine.run(items)
    steps = totals.stats["num_steps"]
    host_s = totals.stats["step_seconds"] - totals.stats["wait_seconds"]
    launch_s = totals.stats["device_seconds"] - totals.stats["wait_seconds"]
    return {
        "step_ms": totals.seconds / steps * 1e3,
        "host_us": host_s / steps * 1e6,
        "launch_us": launch_s / steps * 1e6,
    }


def report(engine: OfflineEngine, name: str, items: list[Item], batch: int = 0) -> None:
    """Print one row, and the kernels that take the longest; `batch` 0: prefills."""
    engine.run(items)
    figures = measure(engine, items, batch) if batch else measure_prefills(engine, items)
    spans = trace(engine, items)
    length = spans[-1]["ts"] + spans[-1]["dur"] - spans[0]["ts"]
    share = busy_us(spans) / length
    steps = sum("unpack_kernel" in span["name"] for span in spans)
    print(
        f"| {name} | {figures['step_ms']:.3f} | {share * length / steps * 1e-3:.3f} | "
        f"{(1 - share) * length / steps:.1f} | {figures['host_us']:.1f} | "
        f"{figures['launch_us']:.1f} |",
        flush=True,
    )
    times: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for span in spans:
        kernel = span["name"].replace("void ", "").replace("octavo::cuda::", "")[:60]
        times[kernel] += span["dur"]
        counts[kernel] += 1
    for kernel, us in times.most_common(NUM_NAMES):
        each = f"{us / counts[kernel]:.1f} us, {counts[kernel] / steps:.1f}"
        print(f"    {us / steps:9.1f} us a step  {each:20}  {kernel}", file=sys.stderr)


def main() -> None:
    """Parse the command line, load the model, print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", default="1,64,256")
    parser.add_argument("--prefill", default="8192")
    config.add_arguments(parser)
    arguments = parser.parse_args()
    batches = [int(number) for number in arguments.batch.split(",") if number]
    lengths = [int(number) for number in arguments.prefill.split(",") if number]
    print("| batch | step ms | kernels ms | gaps µs | engine thread µs | of it launching µs |")
    print("|---|---|---|---|---|---|")
    chosen = config.ServeConfig.from_cli_args(arguments)
    with offline.load(dataclasses.replace(chosen, enable_prefix_caching=False)) as engine:
        for batch in batches:
            items = fixed(batch, PROMPT_LEN, OUTPUT_LEN, seed=batch)
            report(engine, str(batch), items, batch)
        for length in (each for each in lengths if each < engine.max_model_len):
            report(engine, f"prefill {length}", fixed(PREFILLS, length, 1, seed=length))
        report(engine, "mixed", sharegpt_like(MIXED_REQUESTS), MIXED_REQUESTS // 4)


if __name__ == "__main__":
    main()
