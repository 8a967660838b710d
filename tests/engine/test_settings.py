"""From the server's configuration to the engine's."""

from __future__ import annotations

import pytest

from octavo.config import ServeConfig
from octavo.engine.settings import (
    keeps_codes,
    mixed_prefill_tokens,
    quantize_to,
    step_tokens,
    tuning_cache,
)
from octavo.errors import ConfigError


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


@pytest.mark.parametrize(
    ("given", "device", "tokens"), [(0, "cpu", 128), (0, "cuda:0", 320), (7, "cpu", 7)]
)
def test_prompts_beside_decodes_suit_the_device_unless_given(
    given: int, device: str, tokens: int
) -> None:
    config = ServeConfig(max_num_mixed_prefill_tokens=given)
    assert mixed_prefill_tokens(config, device) == tokens


@pytest.mark.parametrize(
    ("quantization", "device", "expected"),
    [
        ("keep", "cpu", ""),
        ("none", "cuda:0", ""),
        ("int8", "cpu", "int8"),
        ("fp8", "cuda:0", "fp8"),
    ],
)
def test_weights_are_quantised_as_asked(quantization: str, device: str, expected: str) -> None:
    assert quantize_to(ServeConfig(quantization=quantization), device) == expected


@pytest.mark.parametrize(("quantization", "device"), [("int4", "cuda:0"), ("fp8", "cpu")])
def test_a_device_that_cannot_quantise_so_is_refused(quantization: str, device: str) -> None:
    with pytest.raises(ConfigError, match=f"{quantization} needs --device"):
        quantize_to(ServeConfig(quantization=quantization), device)


@pytest.mark.parametrize(
    ("quantization", "on_cpu", "on_cuda"),
    [
        ("auto", False, True),
        ("none", False, False),
        ("keep", True, True),
        ("int4", True, True),
        ("fp8", True, True),
    ],
)
def test_codes_are_kept_on_cuda_and_where_asked(
    quantization: str, on_cpu: bool, on_cuda: bool
) -> None:
    config = ServeConfig(quantization=quantization)
    assert keeps_codes(config, "cpu") == on_cpu
    assert keeps_codes(config, "cuda:0") == on_cuda


def test_the_tuning_cache_is_where_the_configuration_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert tuning_cache(ServeConfig()) == "/cache/octavo/gemm-tuning.txt"
    assert tuning_cache(ServeConfig(gemm_tuning_cache="off")) == ""
    assert tuning_cache(ServeConfig(gemm_tuning_cache="/t/table", tune_gemm=True)) == "/t/table"


def test_tuning_without_a_file_is_refused() -> None:
    with pytest.raises(ConfigError, match="--gemm-tuning-cache is off"):
        tuning_cache(ServeConfig(gemm_tuning_cache="off", tune_gemm=True))
