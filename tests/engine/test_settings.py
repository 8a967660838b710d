"""From the server's configuration to the engine's."""

from __future__ import annotations

import pytest

from octavo.config import ServeConfig
from octavo.engine.settings import step_tokens


@pytest.mark.parametrize(
    ("changes", "device", "tokens"),
    [
        ({}, "cpu", 512),
        ({}, "cuda:0", 2048),
        ({"max_num_batched_tokens": 64}, "cpu", 64),
        ({"max_num_batched_tokens": 8192}, "cuda:1", 8192),
        ({"max_num_seqs": 1000}, "cpu", 1000),
        ({"enable_chunked_prefill": False, "max_model_len": 4096}, "cpu", 4096),
        ({"max_model_len": 4096}, "cpu", 512),
    ],
)
def test_the_tokens_of_a_step_suit_the_device_unless_given(
    changes: dict[str, int], device: str, tokens: int
) -> None:
    assert step_tokens(ServeConfig(**changes), device) == tokens
