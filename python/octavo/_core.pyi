"""The engine extension, built from cpp/bindings.

C++ exceptions arrive as the classes of octavo.errors. Whatever has no class of its own there, a
broken invariant included, arrives as EngineError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typing_extensions import Buffer

class GgufFile:
    """A GGUF file (all shards of a split one), never mapped; CheckpointError when damaged."""

    def __init__(self, path: str) -> None: ...
    def metadata(self) -> dict[str, Any]:
        """Strings are decoded as UTF-8 with errors="replace"; arrays become lists."""
    def tensors(self) -> list[tuple[str, str, tuple[int, ...], int]]:
        """Name, dtype name, shape (row-major, outermost first) and bytes of each tensor."""
    def read_tensor(self, name: str, out: Buffer, begin: int = 0) -> None:
        """Fill a writable buffer with a tensor's bytes from `begin` on; thread-safe."""

class RopeConfig:
    theta: float
    rotary_dim: int
    interleaved: bool
    scaling: str  # "none", "linear", "llama3", "yarn", "longrope"
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
    short_factor: Sequence[float]
    long_factor: Sequence[float]

def architecture_names() -> list[str]: ...

class CodedMatrix:
    """How a quantised matrix is stored; see cpp/checkpoint/coded_matrix.h."""

    def __init__(self, layout: str, rows: int, cols: int) -> None: ...
    block: tuple[int, int]
    zero_offset: int
    scale_dtype: str
    out_dtype: str
    def decode(
        self, codes: Buffer, scales: Buffer, zeros: Buffer, group_of_col: Buffer, out: Buffer
    ) -> None:
        """Write float32, or the blocks that out_dtype names; CheckpointError if they do not fit."""

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
    local_rope: RopeConfig
    sliding_windows: Sequence[int]
    rope_layers: Sequence[bool]
    expert_layers: Sequence[bool]
    attention_scale: float
    attention_soft_cap: float
    final_soft_cap: float
    embedding_multiplier: float
    residual_multiplier: float
    logits_divisor: float
    norm_offset: float
    num_experts: int
    experts_per_token: int
    expert_intermediate_size: int
    renormalize_experts: bool

class EngineConfig:
    """Attributes are those of cpp/engine/types.h, BackendOptions flattened into it."""

    device: str
    weight_dtype: str
    num_threads: int
    cpu_isa: str
    keep_quantized: bool
    quantization: str
    batch_invariant: bool
    enforce_eager: bool
    gemm_tuning_cache: str
    tune_gemm: bool
    max_model_len: int
    block_size: int
    num_blocks: int
    kv_cache_memory_bytes: int
    gpu_memory_utilization: float
    kv_cache_dtype: str
    max_num_seqs: int
    max_num_batched_tokens: int
    max_num_mixed_prefill_tokens: int
    max_loras: int
    max_lora_rank: int
    enable_chunked_prefill: bool
    enable_prefix_caching: bool
    scheduling_policy: str
    max_num_queued_reqs: int
    max_num_queued_tokens: int
    max_pending_output_bytes: int
    seed: int
    prefix_cache_secret: tuple[int, int]
    eos_token_ids: list[int]

class SamplingParams:
    """Keyword arguments and attributes are the fields of cpp/sched/sampling_params.h.

    None stands for an absent seed, logprobs or prompt_logprobs; logit_bias is a dict. A value of
    the wrong type or range raises InvalidRequestError naming the field, an unknown one TypeError.
    """

    n: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: dict[int, float]
    allowed_token_ids: list[int]
    bad_words: list[list[int]]
    seed: int | None
    max_tokens: int
    min_tokens: int
    ignore_eos: bool
    stop_token_ids: list[int]
    logprobs: int | None
    prompt_logprobs: int | None
    pooling: str
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
    pooled: bytes
    errors: dict[int, str]

class Engine:
    """The engine. Everything that can block or compute releases the GIL.

    Starting up is weight_specs -> load_weight for each, or load_dummy_weights -> finish_loading ->
    allocate_kv_cache -> warm_up -> self_test -> start. From allocate_kv_cache on every other method
    may be called; shutdown always.
    """

    def __init__(
        self,
        engine_config: EngineConfig,
        model_config: ModelConfig,
        weight_dtypes: dict[str, str] = ...,
    ) -> None:
        """weight_dtypes: how tensors will come, by name; what is not named comes plain."""
    def weight_specs(self) -> list[WeightSpec]: ...
    def load_weight(self, name: str, dtype: str, rows: int, cols: int, data: Buffer) -> None:
        """Copy (and pack) one tensor. Safe from several threads for different names."""
    def load_dummy_weights(self, seed: int) -> None:
        """Fill every weight with small random values made in place."""
    def finish_loading(self) -> None:
        """Raise CheckpointError naming the tensors that did not come."""
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
        request_id: int,
        token_ids: Buffer,
        sampling: SamplingParams,
        priority: int = 0,
        cache_salt: int = 0,
        token_mask: Buffer | None = None,
        lora_id: int = 0,
    ) -> None:
        """Raises InvalidRequestError or QueueFullError; token_ids is int32.

        With a lora_id, of an open adapter; UnknownModelError when it is open no more.

        With a token_mask, a bit a token in words of 32, only its tokens can come first; the masks
        of later ones are asked for by take_mask_work.
        """
    def abort(self, request_id: int, sequence_index: int = -1) -> None:
        """Stop a request, or one of its sequences."""
    def reset_prefix_cache(self) -> None: ...
    def begin_lora(self) -> int:
        """Reserve room for an adapter; its id. Raises InvalidRequestError when there is none."""
    def load_lora(
        self,
        lora_id: int,
        target: str,
        scale: float,
        a: tuple[str, int, int, Buffer],
        b: tuple[str, int, int, Buffer],
    ) -> None:
        """Copy one projection's pair, each as dtype, rows, cols and data. Holds up no step.

        Raises CheckpointError naming the target when the model has none like it.
        """
    def open_lora(self, lora_id: int) -> None:
        """Let requests name a loaded adapter."""
    def close_lora(self, lora_id: int) -> None:
        """Refuse new requests; the room is free once those that run have ended."""
    def self_check(self) -> None: ...
    def sleep(self, aborts: bool) -> None:
        """Give the KV cache back once what runs has finished or is aborted; see stats()."""
    def wake_up(self) -> None:
        """Take the KV cache again and admit requests; see stats()."""
    def is_full(self) -> bool:
        """A request would be refused now because too many wait."""
    def take_outputs(self, timeout_s: float) -> list[OutputBatch] | None:
        """Wait for outputs; an empty list after the time-out, None once shut down and drained."""
    def take_mask_work(self, timeout_s: float) -> list[tuple[int, int, int]] | None:
        """Wait for tokens whose successors need a mask: request id, sequence index, token id.

        A token id of -1 says that the sequence has ended. None once shut down.
        """
    def set_token_masks(self, sequences: list[tuple[int, int]], masks: Buffer) -> None:
        """The masks of sequences, one behind the other; ended ones are ignored."""
    def output_fd(self) -> int:
        """An eventfd that becomes readable when outputs wait."""
    def stats(self) -> dict[str, float]:
        """The fields of EngineStats in cpp/engine/types.h; num_finished_stop and so on."""
    def set_heartbeat(self, page: Buffer, offset: int) -> None:
        """Write CLOCK_MONOTONIC ns (int64) there each step and each idle tick; page stays alive.

        Call it once.
        """
    def is_healthy(self) -> bool:
        """False once the device is lost: start the process again."""
    def last_error(self) -> str:
        """Why the last step failed, or why the engine ended by itself; "" while all is well."""
    def device_name(self) -> str: ...
    def max_model_len(self) -> int: ...
    def shutdown(self) -> None:
        """Abort what runs, publish the last records, join the engine thread."""

def weight_specs(engine_config: EngineConfig, model_config: ModelConfig) -> list[WeightSpec]:
    """The tensors that such a model asks for, before anything is made."""

def plan_memory(
    engine_config: EngineConfig, model_config: ModelConfig, weight_dtypes: dict[str, str]
) -> dict[str, int]:
    """Where memory would go, before anything is loaded.

    Args:
        engine_config: Its num_blocks, kv_cache_memory_bytes and max_model_len may be 0 for auto.
        model_config: The model.
        weight_dtypes: How each tensor is stored; those not named are of weight_dtype.

    Returns:
        Bytes: weights, workspace, kv_block, kv_cache, available. Counts: num_blocks, max_model_len.

    Raises:
        ConfigError: A value is out of range.
        UnsupportedModelError: This build does not know the architecture.
        OutOfMemoryError: It does not fit; the message names sizes and a remedy.
    """

def lora_targets(model_config: ModelConfig) -> list[tuple[str, int, int]]:
    """What an adapter can change: name without ".weight", input and output features."""

def cpu_features() -> list[str]:
    """Features of this processor that the kernels use, by their Linux names."""

def has_cuda() -> bool:
    """Whether this build has the CUDA backend."""

def num_cuda_devices() -> int:
    """CUDA devices that can be used now; 0 without a driver, or in a build without CUDA."""
