"""What requests measure, summed over all HTTP workers in memory that they share.

Each worker adds to a slot of its own, so nothing is locked; whoever is asked sums the slots. A slot
outlives its worker: the next one goes on adding to it, and no counter ever falls.
"""

from __future__ import annotations

import mmap
from bisect import bisect_left
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

FINISH_REASONS: Final = ("stop", "length", "abort", "error")


class Histogram(msgspec.Struct, frozen=True, kw_only=True):
    """A histogram's definition; its place in a slot is `offset` words of float64.

    The words are a count for each bound, one for what is above them all, and the sum.
    """

    name: str
    text: str
    bounds: tuple[float, ...]
    offset: int

    @property
    def num_words(self) -> int:
        """Words of a slot that it takes."""
        return len(self.bounds) + 2


_FAST: tuple[float, ...] = (
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3,
    0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
_FIRST: tuple[float, ...] = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0,
)  # fmt: skip
_LONG: tuple[float, ...] = (
    0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0,
    240.0, 480.0, 960.0,
)  # fmt: skip
_TOKENS = tuple(float(m * 10**e) for e in range(6) for m in (1, 2, 5))

_DEFINITIONS = (
    ("time_to_first_token_seconds", "Arrival of a request to its first token.", _FIRST),
    ("inter_token_latency_seconds", "Between two tokens of one choice.", _FAST),
    ("e2e_request_latency_seconds", "Arrival of a request to the end of a choice.", _LONG),
    ("request_queue_time_seconds", "Arrival of a request in the engine to its first step.", _FIRST),
    ("request_prompt_tokens", "Tokens of a prompt.", _TOKENS),
    ("request_generation_tokens", "Tokens of a choice.", _TOKENS),
)


def _place() -> Iterator[Histogram]:
    offset = len(FINISH_REASONS)
    for name, text, bounds in _DEFINITIONS:
        histogram = Histogram(name=name, text=text, bounds=bounds, offset=offset)
        offset += histogram.num_words
        yield histogram


HISTOGRAMS: Final = tuple(_place())
_FIRST_TOKEN, _INTER_TOKEN, _WHOLE, _QUEUE, _PROMPT_TOKENS, _GENERATION_TOKENS = HISTOGRAMS
_INTER_TOKEN_COUNTS: Final = _INTER_TOKEN.offset
_INTER_TOKEN_BOUNDS: Final = _INTER_TOKEN.bounds
_INTER_TOKEN_SUM: Final = _INTER_TOKEN.offset + _INTER_TOKEN.num_words - 1
_SLOT_WORDS: Final = HISTOGRAMS[-1].offset + HISTOGRAMS[-1].num_words


class MetricsPage:
    """Anonymous memory that forked workers share.

    Args:
        num_slots: Workers that add at the same time.
    """

    def __init__(self, num_slots: int = 1) -> None:
        self.num_slots = num_slots
        self._words = memoryview(mmap.mmap(-1, num_slots * _SLOT_WORDS * 8)).cast("d")

    def slot(self, index: int) -> memoryview[float]:
        """The words of one worker."""
        begin = index % self.num_slots * _SLOT_WORDS
        return self._words[begin : begin + _SLOT_WORDS]

    def totals(self) -> list[float]:
        """The sums over all slots."""
        words = self._words.tolist()
        return [sum(words[word::_SLOT_WORDS]) for word in range(_SLOT_WORDS)]


class RequestMetrics:
    """One worker's side of the page."""

    def __init__(self, page: MetricsPage | None = None, slot: int = 0) -> None:
        self.page = page or MetricsPage()
        self._words = self.page.slot(slot)

    def first_token(self, seconds: float, prompt_tokens: int) -> None:
        """A choice got its first token this long after its request came."""
        self._observe(_FIRST_TOKEN, seconds)
        self._observe(_PROMPT_TOKENS, prompt_tokens)

    def queued(self, seconds: float) -> None:
        """A request waited this long in the engine before its first step."""
        self._observe(_QUEUE, seconds)

    def next_tokens(self, seconds: float, count: int) -> None:
        """A choice got `count` more tokens this long after the ones before."""
        words = self._words  # as _observe(), which would cost more than it does
        bucket = bisect_left(_INTER_TOKEN_BOUNDS, seconds / count)
        words[_INTER_TOKEN_COUNTS + bucket] += count
        words[_INTER_TOKEN_SUM] += seconds

    def finished(self, reason: str, seconds: float, generation_tokens: int) -> None:
        """A choice ended."""
        self._words[FINISH_REASONS.index(reason)] += 1
        self._observe(_WHOLE, seconds)
        self._observe(_GENERATION_TOKENS, generation_tokens)

    def _observe(self, histogram: Histogram, value: float, count: int = 1) -> None:
        offset, bounds = histogram.offset, histogram.bounds
        words = self._words
        words[offset + bisect_left(bounds, value)] += count
        words[offset + len(bounds) + 1] += value * count
