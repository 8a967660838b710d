"""The part of numpy's RandomState that the workloads are defined by, without numpy.

The same seed gives the same values bit for bit, so a published workload can be made anywhere.
Source: the Mersenne Twister MT19937 of Matsumoto and Nishimura (1998) seeded by init_genrand;
Marsaglia's polar method for normal variates; masked rejection for bounded integers.
"""

from __future__ import annotations

import math
import random
from array import array

_STATE_WORDS = 624
_SEED_FACTOR = 1812433253


def _state_from(seed: int) -> tuple[int, ...]:
    """The generator's words after init_genrand(seed)."""
    words = [seed & 0xFFFFFFFF]
    for i in range(1, _STATE_WORDS):
        last = words[-1]
        words.append((_SEED_FACTOR * (last ^ (last >> 30)) + i) & 0xFFFFFFFF)
    return (*words, _STATE_WORDS)


class RandomState:
    """Repeatable draws; not for secrets."""

    def __init__(self, seed: int) -> None:
        self._source = random.Random()  # noqa: S311 - a workload, not a key
        self._source.setstate((3, _state_from(seed), None))
        self._spare: float | None = None

    def uniform(self) -> float:
        """One value in [0, 1) with 53 random bits."""
        return self._source.random()

    def randint(self, low: int, high: int, size: int) -> array[int]:
        """`size` integers of [low, high) as int32. Requires: 1 < high - low <= 2**16."""
        bound = high - low - 1
        mask = (1 << bound.bit_length()) - 1
        values = array("i")
        while len(values) < size:
            # Draw no more words than are still needed: the next call goes on where this one ends.
            count = size - len(values)
            words = array("I", self._source.getrandbits(32 * count).to_bytes(4 * count, "little"))
            values.extend([low + v for word in words if (v := word & mask) <= bound])
        return values

    def standard_normal(self) -> float:
        """One draw of N(0, 1)."""
        if self._spare is not None:
            spare, self._spare = self._spare, None
            return spare
        while True:
            x, y = 2.0 * self.uniform() - 1.0, 2.0 * self.uniform() - 1.0
            square = x * x + y * y
            if 0.0 < square < 1.0:
                break
        scale = math.sqrt(-2.0 * math.log(square) / square)
        self._spare = scale * x
        return scale * y

    def exponential(self, mean: float) -> float:
        """One draw of the exponential distribution, e.g. the gap to the next Poisson arrival."""
        return -mean * math.log(1.0 - self.uniform())
