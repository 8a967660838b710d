"""What the programs that measure peers share: their arguments and the form of their figures."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

PROMPT = 128  # tokens of the prompts before a decode


class Wanted(NamedTuple):
    """What is to be measured.

    Attributes:
        model: The GGUF file.
        threads: Of the peer.
        batches: Sequences of each decode.
        lengths: Tokens of each prefill.
        steps: Of a decode.
    """

    model: str
    threads: int
    batches: list[int]
    lengths: list[int]
    steps: int


def arguments(description: str) -> Wanted:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=_numbers, default="1,4,16,32")
    parser.add_argument("--prefill", type=_numbers, default="512")
    parser.add_argument("--steps", type=int, default=128)
    args = parser.parse_args()
    return Wanted(args.model, args.threads, args.batch, args.prefill, args.steps)


def write(
    wanted: Wanted, decode_s: Callable[[int], float], prefill_s: Callable[[int], float]
) -> None:
    """Measure and write tokens a second as one line of JSON.

    Args:
        wanted: What is measured.
        decode_s: Seconds of one step of a batch.
        prefill_s: Seconds of a prompt of a length.
    """
    found = {f"decode {batch}": batch / decode_s(batch) for batch in wanted.batches}
    found |= {f"prefill {length}": length / prefill_s(length) for length in wanted.lengths}
    sys.stdout.write(json.dumps(found) + "\n")


def write_generated(wanted: Wanted, seconds: Callable[[int, int, int], float]) -> None:
    """The same for a peer that only generates: a step is the difference of two lengths of answers.

    Args:
        wanted: What is measured.
        seconds: Of so many prompts of a length, and of a number of tokens for each.
    """
    seconds(1, PROMPT, 4)

    def decode_s(batch: int) -> float:
        one = seconds(batch, PROMPT, 1)
        return (seconds(batch, PROMPT, wanted.steps + 1) - one) / wanted.steps

    def prefill_s(length: int) -> float:
        return min(seconds(1, length, 1) for _ in range(3))

    write(wanted, decode_s, prefill_s)


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]
