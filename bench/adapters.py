"""Adapters beside their base model, in one process and in turns: what they cost.

    python bench/adapters.py MODEL [--count 8] [--rank 16] [--batch 1,8,64] [octavo serve's options]

For each batch size that many requests of 128 tokens in and 256 out run together: without adapters,
with all of them in turns, so that a step has every one, and with one request in eight that has one.
The adapters are made up, for every projection. The ratio is of output tokens a second, medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from make_lora import write_adapters

from octavo import config
from octavo.bench import offline
from octavo.bench.workloads import fixed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.bench.offline import OfflineEngine
    from octavo.bench.workloads import Item

FEW = 8  # of the last mix: one request in so many has an adapter


def measure(
    engine: OfflineEngine, items: list[Item], mixes: dict[str, Sequence[str]], repeats: int
) -> dict[str, list[float]]:
    """Output tokens a second of each mix, run in turns after one round that does not count."""
    rates: dict[str, list[float]] = {name: [] for name in mixes}
    for round_ in range(repeats + 1):
        for name, adapters in mixes.items():
            totals = engine.run(items, adapters)
            if round_ > 0:
                rates[name].append(totals.output_tokens / totals.seconds)
    return rates


def report(batch: int, rates: dict[str, list[float]]) -> None:
    """Print a row."""
    medians = {name: statistics.median(values) for name, values in rates.items()}
    base = medians["none"]
    cells = [f"{base:,.0f} ({min(rates['none']):,.0f} to {max(rates['none']):,.0f})"]
    for name in ("all", "few"):
        cells.append(f"{medians[name]:,.0f}")
        cells.append(f"{medians[name] / base:.3f}")
    print(f"| {batch} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Parse the command line, load the model, print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=8, help="adapters")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", default="1,8,64")
    parser.add_argument("--lengths", default="128,256", help="tokens in and out")
    parser.add_argument("--repeats", type=int, default=3)
    config.add_arguments(parser)
    arguments = parser.parse_args()
    batches = [int(number) for number in arguments.batch.split(",")]
    prompt_len, output_len = (int(number) for number in arguments.lengths.split(","))
    with tempfile.TemporaryDirectory() as folder:
        paths = write_adapters(arguments.model, Path(folder), arguments.count, arguments.rank)
        arguments.lora_modules = [f"{name}={path}" for name, path in paths.items()]
        arguments.max_loras = arguments.max_loras or arguments.count
        arguments.max_num_seqs = arguments.max_num_seqs or max(batches)
        arguments.enable_prefix_caching = False
        engine = offline.load(config.ServeConfig.from_cli_args(arguments))
    names = list(paths)
    mixes = {"none": [""], "all": names, "few": [names[0], *[""] * (FEW - 1)]}
    print("| batch | base tok/s (range) | every row | ratio | one row in eight | ratio |")
    print("|---|---|---|---|---|---|")
    with engine:
        for batch in batches:
            items = fixed(batch, prompt_len, output_len, seed=batch)
            report(batch, measure(engine, items, mixes, arguments.repeats))


if __name__ == "__main__":
    main()
