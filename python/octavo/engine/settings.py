"""The server's configuration in the engine's terms."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from octavo import _core
from octavo.config import cache_directory
from octavo.engine.adapters import BaseModel, max_lora_rank
from octavo.errors import ConfigError
from octavo.model.config import to_core
from octavo.model.lora import Adapter
from octavo.options import AUTO

if TYPE_CHECKING:
    from octavo.config import ServeConfig
    from octavo.model.config import ModelInfo
    from octavo.model.files import ModelFiles
    from octavo.model.generation_config import GenerationConfig
    from octavo.model.tensor_source import TensorSource
    from octavo.sampling_params import SamplingParams

# Fields that have the same name and meaning on both sides.
_SAME = (
    "num_threads",
    "batch_invariant",
    "enforce_eager",
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
# Of prompts beside decodes: bench/results/2026-11-29-mixed-steps.md (CPU) and -h200-mixed.md.
_MIXED_TOKENS_CPU = 128
_MIXED_TOKENS = 320
_INT4 = frozenset({"int4_g32", "int4_g64", "int4_g128"})
_KEPT_ON_CPU = _INT4 | {"q8_0"}
_KEPT_ON_CUDA = _INT4 | {"float8_rows", "float8_blocks"}
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
    core.max_num_mixed_prefill_tokens = mixed_prefill_tokens(config, core.device)
    core.cpu_isa = "" if config.cpu_isa == AUTO else config.cpu_isa
    core.keep_quantized = keeps_codes(config, core.device)
    core.quantization = quantize_to(config, core.device)
    core.num_blocks = config.num_gpu_blocks_override
    core.gemm_tuning_cache = tuning_cache(config)
    core.prefix_cache_secret = (secrets.randbits(64), secrets.randbits(64))
    if config.has_loras:
        core.max_loras = config.max_loras
        core.max_lora_rank = max_lora_rank(config)
    core.eos_token_ids = list(generation.eos_token_ids)
    return core


def adapter_base(
    config: ServeConfig, files: ModelFiles, core: _core.EngineConfig
) -> BaseModel | None:
    """What adapters must fit, checked of those that are to be loaded; None where there is no room.

    Raises:
        OctavoError: An adapter cannot be read, or does not fit the model.
    """
    if not config.has_loras:
        return None
    info = files.info()
    targets = _core.lora_targets(to_core(info))
    for module in config.adapters:
        Adapter(Path(module.path).expanduser()).check_base(targets, core.max_lora_rank)
    # The rows of q and k are stored in another order there than an adapter's.
    turned = info.head_dim if files.model.kind == "gguf" and info.rope.interleaved else 0
    return BaseModel(tuple(targets), core.max_lora_rank, turned)


def keeps_codes(config: ServeConfig, device: str) -> bool:
    """Whether stored quantised weights stay so: on CUDA unless asked otherwise."""
    return config.quantization != "none" and (config.quantization != AUTO or device != "cpu")


def kept_types(core: _core.EngineConfig) -> frozenset[str]:
    """The types that codes of safetensors may come in: those that the device multiplies."""
    if not core.keep_quantized:
        return frozenset()
    return _KEPT_ON_CPU if core.device == "cpu" else _KEPT_ON_CUDA


def weight_types(
    files: ModelFiles,
    tensors: TensorSource | None,
    core: _core.EngineConfig,
    model: _core.ModelConfig,
) -> dict[str, str]:
    """How tensors will come, by name; without `tensors` as made-up weights."""
    if tensors is not None:
        return {name: entry.dtype for name, entry in tensors.tensors.items()}
    kept = kept_types(core)
    return files.dummy_types(_core.weight_specs(core, model), kept) if kept else {}


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


def mixed_prefill_tokens(config: ServeConfig, device: str) -> int:
    """Most prompt tokens of a step that decodes too: as given, or what suits the device."""
    usual = _MIXED_TOKENS_CPU if device == "cpu" else _MIXED_TOKENS
    return config.max_num_mixed_prefill_tokens or usual


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
    if config.quantization in (AUTO, "none", "keep"):
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
