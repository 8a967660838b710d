"""Every input that fuzzing has kept, and some that nobody has seen."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.mutate import mutate_json
from fuzz.targets import TAKES_JSON, TARGETS

CORPUS = Path(__file__).with_name("corpus")


@pytest.mark.parametrize("name", TARGETS)
def test_kept_inputs(name: str) -> None:
    kept = sorted((CORPUS / name).iterdir())
    assert kept
    for path in kept:
        try:
            TARGETS[name](path.read_bytes())
        except BaseException as error:
            raise AssertionError(f"{path}: {error!r}") from error


@pytest.mark.parametrize("name", TARGETS)
def test_changed_inputs(name: str) -> None:
    kept = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]

    @settings(max_examples=100, deadline=None)
    @given(st.sampled_from(kept), st.integers(0, 1 << 16), st.binary(max_size=8))
    def change(data: bytes, place: int, new: bytes) -> None:
        place %= len(data) + 1
        TARGETS[name](data[:place] + new + data[place + len(new) :])

    change()


@pytest.mark.parametrize("name", sorted(TAKES_JSON))
def test_changed_json(name: str) -> None:
    kept = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    num_json = 0
    for seed in range(400):
        data = kept[seed % len(kept)]
        for step in range(5):
            data = mutate_json(data, 4096, 10 * seed + step, lambda data, _: data)
            TARGETS[name](data)
        with contextlib.suppress(ValueError):
            json.loads(data[1:])
            num_json += 1
    assert num_json > 300


def test_changes_of_json_share_nothing() -> None:
    """A value that was put in twice must not grow in both places, or into itself."""
    data = b'x{"a": [[], {}, 1]}'

    def changed() -> list[bytes]:
        return [mutate_json(data, 1 << 20, seed, lambda data, _: data) for seed in range(300)]

    def grown() -> bytes:
        kept = data
        for seed in range(2000):
            kept = mutate_json(kept, 20000, seed, lambda data, _: data)
        return kept

    before = changed()
    grown()
    assert changed() == before
