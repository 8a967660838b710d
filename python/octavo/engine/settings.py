"""The server's configuration in the engine's terms."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from octavo import _core
from octavo.config import cache_directory
from octavo.errors import ConfigError
from octavo.options import AUTO

if TYPE_CHECKING:
    from octavo.config import ServeConfig
    from octavo.model.config import ModelInfo
    from octavo.model.generation_config import GenerationConfig
    from octavo.sampling_params import SamplingParams

# Fields that have the same name and meaning on both sides.
_SAME = (
    "num_threads",
    "batch_invariant",
    "enforce_eager",
    "fused_layer_tail",
    "tune_gemm",
    "max_model_len",
    "block_size",
    "kv_cache_memory_bytes",
    "gpu_memory_utilization",
    "kv_cache_dtype",
    "max_num_seqs",
    "enable_chunked_prefill",
    "enable_prefix_caching",
    "scheduling_policy",
    "max_num_queued_reqs",
    "max_num_queued_tokens",
    "seed",
)
# Tokens of a step where nothing is said. On two cores 512 take half a second, and no other stream
# gets a token meanwhile: bench/results/2026-11-22-startup.md.
_STEP_TOKENS_CPU = 512
_STEP_TOKENS = 2048
_TEXT_ONLY = frozenset({"stop", "include_stop_str_in_output", "skip_special_tokens", "grammar"})


def engine_config(
    config: ServeConfig, info: ModelInfo, generation: GenerationConfig
) -> _core.EngineConfig:
    """The engine's configuration for a model."""
    core = _core.EngineConfig()
    for name in _SAME:
        setattr(core, name, getattr(config, name))
    core.device = device(config)
    core.weight_dtype = weight_dtype(config, info, core.device)
    core.max_num_batched_tokens = step_tokens(config, core.device)
    core.cpu_isa = "" if config.cpu_isa == AUTO else config.cpu_isa
    core.keep_quantized = config.quantization in ("keep", "int8", "int4")
    core.quantization = quantize_to(config, core.device)
    core.num_blocks = config.num_gpu_blocks_override
    core.gemm_tuning_cache = tuning_cache(config)
    core.prefix_cache_secret = (secrets.randbits(64), secrets.randbits(64))
    core.eos_token_ids = list(generation.eos_token_ids)
    return core


def keeps_codes(core: _core.EngineConfig) -> bool:
    """Whether quantised safetensors keep their codes: the CPU multiplies them as they are."""
    return core.keep_quantized and core.device == "cpu"


def device(config: ServeConfig) -> str:
    """Where the model runs: the first GPU if there is one."""
    if config.device == AUTO:
        return "cuda:0" if _core.num_cuda_devices() > 0 else "cpu"
    return "cuda:0" if config.device == "cuda" else config.device


def step_tokens(config: ServeConfig, device: str) -> int:
    """Most tokens of one step: as given, or what suits the device and the other limits."""
    if config.max_num_batched_tokens:
        return config.max_num_batched_tokens
    usual = _STEP_TOKENS_CPU if device == "cpu" else _STEP_TOKENS
    whole_prompt = 0 if config.enable_chunked_prefill else config.max_model_len
    return max(usual, config.max_num_seqs, whole_prompt)


def weight_dtype(config: ServeConfig, info: ModelInfo, device: str) -> str:
    """What plain weights are kept in: half the size of float32, unless asked otherwise."""
    if config.dtype != AUTO:
        return config.dtype
    return "float16" if info.dtype == "float16" and device != "cpu" else "bfloat16"


def tuning_cache(config: ServeConfig) -> str:
    """The file of measured matrix products; empty: none.

    Raises:
        ConfigError: It is to be made and there is to be none.
    """
    if config.gemm_tuning_cache == "off":
        if config.tune_gemm:
            raise ConfigError("--tune-gemm needs a file: --gemm-tuning-cache is off.")
        return ""
    if config.gemm_tuning_cache == AUTO:
        return str(cache_directory() / "gemm-tuning.txt")
    return config.gemm_tuning_cache


def quantize_to(config: ServeConfig, device: str) -> str:
    """What plain weights are quantised to at load; empty: they are not.

    Raises:
        ConfigError: The device cannot.
    """
    if config.quantization in ("none", "keep"):
        return ""
    needed = "cuda" if config.quantization == "fp8" else "cpu"
    if not device.startswith(needed):
        raise ConfigError(f"--quantization {config.quantization} needs --device {needed}.")
    return config.quantization


def to_core_sampling(sampling: SamplingParams) -> _core.SamplingParams:
    """Sampling parameters without what the engine is told in other ways, or not at all."""
    fields = {name: getattr(sampling, name) for name in sampling.__struct_fields__}
    for name in _TEXT_ONLY:
        del fields[name]
    return _core.SamplingParams(**fields)
