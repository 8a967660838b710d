"""From the shell's settings to the extension's plain structures."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from octavo import _core
from octavo.errors import ConfigError
from octavo.options import AUTO

if TYPE_CHECKING:
    from octavo.config import ServeConfig
    from octavo.model.config import ModelInfo
    from octavo.model.generation_config import GenerationConfig
    from octavo.sampling_params import SamplingParams

_SAME_NAME = (
    "num_threads",
    "batch_invariant",
    "enforce_eager",
    "max_model_len",
    "block_size",
    "kv_cache_memory_bytes",
    "gpu_memory_utilization",
    "kv_cache_dtype",
    "max_num_seqs",
    "max_num_batched_tokens",
    "enable_chunked_prefill",
    "enable_prefix_caching",
    "scheduling_policy",
    "max_num_queued_reqs",
    "seed",
)


def engine_config(
    config: ServeConfig, info: ModelInfo, generation: GenerationConfig
) -> _core.EngineConfig:
    """The engine's configuration for one model.

    Raises:
        ConfigError: The model cannot take what is asked for.
    """
    longest = info.max_position_embeddings
    if config.max_model_len > longest:
        raise ConfigError(
            f"--max-model-len {config.max_model_len}: the model takes at most {longest} tokens."
        )
    result = _core.EngineConfig()
    for name in _SAME_NAME:
        setattr(result, name, getattr(config, name))
    result.device = resolve_device(config.device)
    result.weight_dtype = info.dtype if config.dtype == AUTO else config.dtype
    result.num_blocks = config.num_gpu_blocks_override
    result.prefix_cache_secret = (secrets.randbits(64), secrets.randbits(64))
    result.eos_token_ids = [id_ for id_ in generation.eos_token_ids if 0 <= id_ < info.vocab_size]
    return result


def resolve_device(device: str) -> str:
    """The device that "auto" stands for."""
    if device != AUTO:
        return device
    return "cuda:0" if _core.has_cuda() else "cpu"


def core_sampling(params: SamplingParams) -> _core.SamplingParams:
    """The engine's sampling parameters; what concerns text stays behind.

    Raises:
        InvalidRequestError: A value does not fit its field.
    """
    return _core.SamplingParams(
        n=params.n,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        logit_bias=params.logit_bias,
        allowed_token_ids=params.allowed_token_ids,
        bad_words=params.bad_words,
        seed=params.seed,
        max_tokens=params.max_tokens,
        min_tokens=params.min_tokens,
        ignore_eos=params.ignore_eos,
        stop_token_ids=params.stop_token_ids,
        logprobs=params.logprobs,
        prompt_logprobs=params.prompt_logprobs,
    )
