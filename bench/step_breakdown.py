"""Where a decode step's time goes: kernels, gaps between them, and the host.

    python bench/step_breakdown.py DIR [--batch 1,64,256] [octavo serve's options]

For each batch size, sequences of 128 tokens in and 128 out run once by themselves, for the time of
a step and of the engine thread, and once under torch's profiler, for what the GPU does meanwhile.
"Kernels" is the union of their intervals, for programmatic launches overlap; "gaps" is the rest
of the time from the first kernel to the last. The engine thread's time is what it does not wait.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile

from octavo import config
from octavo.bench import offline
from octavo.bench.workloads import fixed

if TYPE_CHECKING:
    from octavo.bench.offline import OfflineEngine

PROMPT_LEN, OUTPUT_LEN = 128, 128
NUM_NAMES = 8
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


def measure(engine: OfflineEngine, batch: int) -> dict[str, float]:
    """Milliseconds a decode step, and microseconds of the engine thread's."""
    engine.run(fixed(batch, PROMPT_LEN, 8, seed=1))
    short = engine.run(fixed(batch, PROMPT_LEN, 1, seed=2))
    whole = engine.run(fixed(batch, PROMPT_LEN, OUTPUT_LEN, seed=2))
    steps = whole.stats["num_steps"] - short.stats["num_steps"]

    def per_step(name: str) -> float:
        return (whole.stats[name] - short.stats[name]) / steps

    return {
        "step_ms": (whole.seconds - short.seconds) / steps * 1e3,
        "host_us": (per_step("step_seconds") - per_step("wait_seconds")) * 1e6,
        "launch_us": (per_step("device_seconds") - per_step("wait_seconds")) * 1e6,
    }


def trace(engine: OfflineEngine, batch: int) -> list[dict[str, Any]]:
    """What the GPU did in the second half of a run, by time of its start."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        engine.run(fixed(batch, PROMPT_LEN, OUTPUT_LEN, seed=3))
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    spans = sorted((e for e in events if e.get("cat") in ON_DEVICE), key=lambda e: e["ts"])
    return spans[len(spans) // 2 :]


def busy_us(spans: list[dict[str, Any]]) -> float:
    """Length of the union of the spans."""
    total, end = 0.0, 0.0
    for span in spans:
        begin, stop = span["ts"], span["ts"] + span["dur"]
        total += max(0.0, stop - max(begin, end))
        end = max(end, stop)
    return total


def report(engine: OfflineEngine, batch: int) -> None:
    """Print one row, and the kernels that take the longest."""
    figures = measure(engine, batch)
    spans = trace(engine, batch)
    length = spans[-1]["ts"] + spans[-1]["dur"] - spans[0]["ts"]
    share = busy_us(spans) / length
    steps = sum("unpack_kernel" in span["name"] for span in spans)
    print(
        f"| {batch} | {figures['step_ms']:.3f} | {share * length / steps * 1e-3:.3f} | "
        f"{(1 - share) * length / steps:.1f} | {figures['host_us']:.1f} | "
        f"{figures['launch_us']:.1f} |",
        flush=True,
    )
    times: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for span in spans:
        name = span["name"].replace("void ", "").replace("octavo::cuda::", "")[:60]
        times[name] += span["dur"]
        counts[name] += 1
    for name, us in times.most_common(NUM_NAMES):
        each = f"{us / counts[name]:.1f} us, {counts[name] / steps:.1f}"
        print(f"    {us / steps:9.1f} us a step  {each:20}  {name}", file=sys.stderr)


def main() -> None:
    """Parse the command line, load the model, print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", default="1,64,256")
    config.add_arguments(parser)
    arguments = parser.parse_args()
    batches = [int(number) for number in arguments.batch.split(",")]
    print("| batch | step ms | kernels ms | gaps µs | engine thread µs | of it launching µs |")
    print("|---|---|---|---|---|---|")
    with offline.load(config.ServeConfig.from_cli_args(arguments)) as engine:
        for batch in batches:
            report(engine, batch)


if __name__ == "__main__":
    main()
