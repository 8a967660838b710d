"""What the benchmarks send: token ids and output lengths, the same in every run.

Output lengths are exact: requests are greedy with ignore_eos, so a run does not depend on what a
model says. Prompt ids are drawn from [100, 49000), below every common vocabulary's special ids.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING

from octavo.bench.random_state import RandomState
from octavo.errors import ConfigError

if TYPE_CHECKING:
    from array import array
    from pathlib import Path

LOWEST_ID, END_ID = 100, 49000
MIN_LENGTH, MAX_LENGTH = 4, 1024
SHAREGPT_SEED, FIXED_SEED = 6, 5


@dataclass(frozen=True, slots=True)
class Item:
    """One request of a workload.

    Attributes:
        prompt: Token ids.
        max_tokens: Exact number of output tokens.
        arrival_s: When it arrives after the start, where the workload says so.
    """

    prompt: array[int]
    max_tokens: int
    arrival_s: float = 0.0


def sharegpt_like(num_requests: int, *, seed: int = SHAREGPT_SEED) -> list[Item]:
    """Lengths like those of shared conversations: in 220 and out 190 on average.

    Lognormal (sigma 1.1 and 0.9), clipped to 4 … 1,024 with the location set so that the clipped
    draws have these means, then cut to integers. `seed` chooses the ids, never the lengths.
    """
    source = RandomState(0)
    input_lens = _clipped_lognormal(source, num_requests, 220.0, 1.1)
    output_lens = _clipped_lognormal(source, num_requests, 190.0, 0.9)
    return _with_ids(input_lens, output_lens, seed)


def fixed(
    num_requests: int, input_len: int, output_len: int, *, seed: int = FIXED_SEED
) -> list[Item]:
    """The same lengths in every request, other ids in each."""
    return _with_ids([input_len] * num_requests, [output_len] * num_requests, seed)


def trace(path: Path, num_requests: int | None, *, seed: int = SHAREGPT_SEED) -> list[Item]:
    """Lengths and arrival times of a recorded trace: the first `num_requests` rows, None for all.

    The file is CSV with the columns TIMESTAMP, ContextTokens and GeneratedTokens, as the Azure
    LLM inference traces have them.

    Raises:
        ConfigError: The file cannot be read or is no such table.
    """
    try:
        with path.open(newline="") as file:
            rows = list(islice(csv.DictReader(file), num_requests))
        times = [datetime.fromisoformat(row["TIMESTAMP"][:26]) for row in rows]
        lengths = [(int(row["ContextTokens"]), int(row["GeneratedTokens"])) for row in rows]
    except OSError as error:
        raise ConfigError(f"trace {path}: {error.strerror}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"trace {path}: expected columns TIMESTAMP, ContextTokens, GeneratedTokens ({error})"
        ) from None
    if not rows:
        raise ConfigError(f"trace {path} holds no request")
    items = _with_ids([n for n, _ in lengths], [max(1, n) for _, n in lengths], seed)
    return [
        Item(item.prompt, item.max_tokens, (time - times[0]).total_seconds())
        for item, time in zip(items, times, strict=True)
    ]


def poisson_arrivals(items: list[Item], rate: float, *, seed: int = 0) -> list[Item]:
    """The same requests arriving at random, `rate` a second on average; inf is all at once."""
    source = RandomState(seed)
    now = 0.0
    placed = []
    for item in items:
        placed.append(Item(item.prompt, item.max_tokens, now))
        now += source.exponential(1.0 / rate)
    return placed


def _with_ids(input_lens: list[int], output_lens: list[int], seed: int) -> list[Item]:
    source = RandomState(seed)
    return [
        Item(source.randint(LOWEST_ID, END_ID, n), m)
        for n, m in zip(input_lens, output_lens, strict=True)
    ]


def _clipped_lognormal(source: RandomState, count: int, mean: float, sigma: float) -> list[int]:
    normals = [source.standard_normal() for _ in range(count)]

    def draws(location: float) -> list[float]:
        values = (math.exp(location + sigma * normal) for normal in normals)
        return [min(max(value, MIN_LENGTH), MAX_LENGTH) for value in values]

    low, high = 0.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        if sum(draws(middle)) < mean * count:
            low = middle
        else:
            high = middle
    return [int(value) for value in draws((low + high) / 2)]
