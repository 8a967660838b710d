"""Workloads are defined by numpy's RandomState; ours must give the same values without it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from octavo.bench.random_state import RandomState
from octavo.bench.workloads import fixed, poisson_arrivals, sharegpt_like, trace
from octavo.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("seed", [0, 5, 6, 2**32 - 1])
@pytest.mark.parametrize("bounds", [(100, 49000), (0, 2), (7, 7 + 2**16)])
def test_randint_is_numpys(seed: int, bounds: tuple[int, int]) -> None:
    ours, theirs = RandomState(seed), np.random.RandomState(seed)
    for size in (1, 220, 1024, 3):
        assert list(ours.randint(*bounds, size)) == theirs.randint(*bounds, size).tolist()


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_standard_normal_is_numpys(seed: int) -> None:
    ours = RandomState(seed)
    theirs = np.random.RandomState(seed).standard_normal(1001)
    np.testing.assert_array_equal([ours.standard_normal() for _ in range(1001)], theirs)


def test_exponential_has_its_mean() -> None:
    source = RandomState(3)
    draws = [source.exponential(0.25) for _ in range(20_000)]
    assert min(draws) >= 0
    assert np.mean(draws) == pytest.approx(0.25, rel=0.03)
    assert np.std(draws) == pytest.approx(0.25, rel=0.05)


def test_sharegpt_like_lengths() -> None:
    items = sharegpt_like(1000)
    lens, outs = [len(i.prompt) for i in items], [i.max_tokens for i in items]
    # The first lengths of the published workload, and its means.
    assert lens[:10] == [969, 216, 408, 1024, 1024, 47, 395, 117, 124, 218]
    assert (np.mean(lens), np.mean(outs)) == (219.525, 189.515)
    assert min(lens) >= 4
    assert max(lens) == 1024
    assert items[0].prompt.tolist() == np.random.RandomState(6).randint(100, 49000, 969).tolist()


def test_sharegpt_like_keeps_its_means_at_any_size() -> None:
    for count in (12, 256):
        items = sharegpt_like(count)
        assert np.mean([len(i.prompt) for i in items]) == pytest.approx(219.5, abs=0.51)
        assert np.mean([i.max_tokens for i in items]) == pytest.approx(189.5, abs=0.51)


def test_fixed_lengths() -> None:
    items = fixed(3, 1024, 128)
    assert [(len(i.prompt), i.max_tokens) for i in items] == [(1024, 128)] * 3
    expected = np.random.RandomState(5).randint(100, 49000, 3 * 1024)
    assert [t for i in items for t in i.prompt] == expected.tolist()
    assert fixed(1, 8, 1, seed=9)[0].prompt != fixed(1, 8, 1)[0].prompt


def test_poisson_arrivals() -> None:
    items = poisson_arrivals(fixed(4000, 4, 1), rate=40.0)
    gaps = np.diff([i.arrival_s for i in items])
    assert items[0].arrival_s == 0.0
    assert gaps.mean() == pytest.approx(1 / 40, rel=0.05)
    assert gaps.std() == pytest.approx(1 / 40, rel=0.08)
    assert poisson_arrivals(fixed(4000, 4, 1), rate=40.0) == items
    assert {i.arrival_s for i in poisson_arrivals(fixed(9, 4, 1), rate=float("inf"))} == {0.0}


def test_trace(tmp_path: Path) -> None:
    table = tmp_path / "trace.csv"
    table.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n"
        "2023-11-16 18:15:50.9951690,396,109\n"
        "2023-11-16 18:15:51.0000000,10,0\n"
    )
    items = trace(table, None)
    assert [(len(i.prompt), i.max_tokens) for i in items] == [(374, 44), (396, 109), (10, 1)]
    assert items[1].arrival_s == pytest.approx(4.314579)
    assert len(trace(table, 2)) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "expected columns"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nnever,1,2\n", "expected columns"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "holds no request"),
    ],
)
def test_a_damaged_trace_is_refused(tmp_path: Path, text: str, message: str) -> None:
    table = tmp_path / "trace.csv"
    table.write_text(text)
    with pytest.raises(ConfigError, match=message):
        trace(table, None)
    with pytest.raises(ConfigError, match="No such file"):
        trace(tmp_path / "absent.csv", None)
