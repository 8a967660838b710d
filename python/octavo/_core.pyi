"""The engine extension. Built from cpp/bindings/module.cc."""

from __future__ import annotations

from collections.abc import Buffer  # type: ignore[attr-defined]
from typing import Any

class GgufFile:
    """A memory-mapped GGUF file (all shards of a split one); raises CheckpointError when damaged."""

    def __init__(self, path: str) -> None: ...
    def metadata(self) -> dict[str, Any]: ...
    def tensors(self) -> list[tuple[str, str, tuple[int, ...], int]]:
        """Name, dtype name, shape (row-major, outermost first) and bytes of each tensor."""
    def tensor(self, name: str) -> memoryview:
        """Read-only bytes of a tensor, inside the mapping."""

class RopeConfig:
    theta: float
    rotary_dim: int
    interleaved: bool
    scaling: str  # "none", "linear", "llama3", "yarn"
    factor: float
    original_max_position_embeddings: int
    low_freq_factor: float
    high_freq_factor: float
    beta_fast: float
    beta_slow: float
    attention_factor: float
    mscale: float
    mscale_all_dim: float
    truncate: bool

class ModelConfig:
    """Attributes are those of cpp/model/model_config.h."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    qkv_bias: bool
    attention_output_bias: bool
    mlp_bias: bool
    max_position_embeddings: int
    rope: RopeConfig

class EngineConfig:
    """Attributes are those of cpp/engine/types.h, BackendOptions flattened into it."""

    device: str
    weight_dtype: str
    num_threads: int
    batch_invariant: bool
    enforce_eager: bool
    max_model_len: int
    block_size: int
    num_blocks: int
    kv_cache_memory_bytes: int
    gpu_memory_utilization: float
    kv_cache_dtype: str
    max_num_seqs: int
    max_num_batched_tokens: int
    enable_chunked_prefill: bool
    enable_prefix_caching: bool
    scheduling_policy: str
    max_num_queued_reqs: int
    max_num_queued_tokens: int
    seed: int
    prefix_cache_secret: tuple[int, int]
    eos_token_ids: list[int]

class SamplingParams:
    """Keyword arguments and attributes are the fields of cpp/sched/sampling_params.h."""

    def __init__(self, **fields: Any) -> None: ...

class WeightSpec:
    name: str  # Hugging Face checkpoint name, e.g. "model.layers.0.self_attn.q_proj.weight"
    rows: int
    cols: int  # vectors: rows == 1

class OutputBatch:
    """The columns of cpp/engine/types.h OutputBatch; bytes are little-endian copies."""

    connection: int
    records: bytes
    token_ids: bytes
    logprobs: bytes
    prompt_logprobs: bytes
    errors: dict[int, str]

class Engine:
    """The engine. Everything that can block or compute releases the GIL."""

    def __init__(self, engine_config: EngineConfig, model_config: ModelConfig) -> None: ...
    def weight_specs(self) -> list[WeightSpec]: ...
    def load_weight(self, name: str, dtype: str, rows: int, cols: int, data: Buffer) -> None:
        """Copy (and pack) one tensor. Safe from several threads for different names."""
    def load_dummy_weights(self, seed: int) -> None:
        """Fill every weight with small random values made in place."""
    def finish_loading(self) -> None:
        """Check that every weight of weight_specs() came; raises CheckpointError naming those missing."""
    def allocate_kv_cache(self) -> int:
        """Allocate the blocks; returns their number. Raises OutOfMemoryError with a remedy."""
    def warm_up(self) -> None: ...
    def self_test(self) -> None:
        """One real decode through the whole path; raises EngineError on a NaN."""
    def start(self) -> None: ...
    def progress(self) -> float:
        """Share of the running phase that is done, 0 to 1; callable from any thread."""
    def submit(
        self,
        id: int,
        token_ids: Buffer,
        sampling: SamplingParams,
        priority: int = 0,
        cache_salt: int = 0,
    ) -> None:
        """Raises InvalidRequestError or QueueFullError; token_ids is int32."""
    def abort(self, id: int) -> None: ...
    def reset_prefix_cache(self) -> None: ...
    def take_outputs(self, timeout_s: float) -> list[OutputBatch] | None:
        """Wait for outputs; an empty list after the time-out, None once shut down and drained."""
    def output_fd(self) -> int:
        """An eventfd that becomes readable when outputs wait."""
    def stats(self) -> dict[str, float]: ...
    def set_heartbeat(self, page: Buffer, offset: int) -> None:
        """Write CLOCK_MONOTONIC ns (int64) there each step and each idle tick; page stays alive."""
    def device_name(self) -> str: ...
    def max_model_len(self) -> int: ...
    def shutdown(self) -> None:
        """Abort what runs, publish the last records, join the engine thread."""

def plan_memory(engine_config: EngineConfig, model_config: ModelConfig, weight_dtypes: dict[str, str]) -> dict[str, int]:
    """Bytes before anything is loaded: weights, workspace, kv_block, available; and num_blocks."""

def cpu_features() -> list[str]: ...
def has_cuda() -> bool: ...
