"""The configuration of a server: each option is defined once, in ServeConfig.

A field `max_model_len` is the flag `--max-model-len`, the variable `OCTAVO_MAX_MODEL_LEN` and the
key `max-model-len` of a `--config` file; the flag wins over the variable, that over the file, that
over the default. This module is the only reader of the command line and of the environment.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.config_file import read_file
from octavo.errors import ConfigError
from octavo.lora_modules import LoraModule, check_modules, lora_module, parse_lora_modules
from octavo.options import (
    AUTO,
    ENV_PREFIX,
    Option,
    add_argument,
    option,
    parse_bool,
    parse_float,
    parse_int,
    parse_length,
    parse_list,
    parse_seconds_or_auto,
    parse_size,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

    from octavo.model.resolve import ResolveOptions


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Every setting of a server. Checked when constructed, frozen afterwards.

    Raises:
        ConfigError: A value is out of range, or values contradict each other.
    """

    model: str = option(
        "hub id, directory, .gguf file, or the demo smollm2",
        default="",
        metavar="MODEL",
        group="Model",
    )
    served_model_name: tuple[str, ...] = option(
        "names that requests may use (default: MODEL)", default=(), parse=parse_list, metavar="NAME"
    )
    tokenizer: str = option(
        "tokenizer, where it is not beside the model", default="", metavar="PATH"
    )
    revision: str = option("branch, tag or commit of a hub id", default="")
    download_dir: str = option("where downloads are kept (default: the hub's cache)", default="")
    load_format: str = option(
        "how the weights are stored", default=AUTO, choices=(AUTO, "safetensors", "gguf", "dummy")
    )
    dtype: str = option(
        "type that weights which are not quantised are kept in",
        default=AUTO,
        choices=(AUTO, "bfloat16", "float16", "float32"),
    )
    quantization: str = option(
        "none: stored quantised weights become --dtype; keep: they stay so, on the CPU faster and "
        "less exact; auto: keep on CUDA, none on the CPU; int8, int4 (CPU), fp8 (CUDA): plain "
        "weights are quantised too",
        default=AUTO,
        choices=(AUTO, "none", "keep", "int8", "int4", "fp8"),
    )
    max_model_len: int = option(
        "tokens of prompt and output together; auto: what model and memory allow",
        default=0,
        parse=parse_length,
        minimum=0,
        metavar="N|auto",
    )
    chat_template: str = option(
        "what replaces the model's chat template: a file, or the Jinja text itself",
        default="",
        metavar="FILE|TEXT",
    )
    response_role: str = option("role of the answers in a chat", default="assistant")
    enable_auto_tool_choice: bool = option(
        "let the model call tools when it wants to", default=True, parse=parse_bool
    )
    tool_call_parser: str = option(
        "how the model writes tool calls; auto: by its vocabulary",
        default=AUTO,
        choices=(AUTO, "none", "hermes", "qwen", "llama3_json", "mistral"),
    )
    reasoning_parser: str = option(
        "how the model marks reasoning; auto: by its vocabulary",
        default=AUTO,
        choices=(AUTO, "none", "think", "deepseek_r1", "qwen3"),
    )
    seed: int = option(
        "seed of requests without one", default=0, parse=parse_int, minimum=0, maximum=2**63 - 1
    )

    host: str = option("address to listen on; 0.0.0.0 for all", default="127.0.0.1", group="Server")
    port: int = option("port to listen on", default=8000, parse=parse_int, minimum=0, maximum=65535)
    uds: str = option("listen on this socket file instead of a port", default="", metavar="PATH")
    api_server_count: int = option(
        "HTTP worker processes", default=1, parse=parse_int, minimum=1, maximum=64, metavar="N"
    )
    api_key: tuple[str, ...] = option(
        "keys that requests must carry", default=(), parse=parse_list, metavar="KEY", secret=True
    )
    api_key_file: str = option("file with one key a line", default="", metavar="FILE")
    ssl_keyfile: str = option("private key, PEM", default="", metavar="FILE")
    ssl_certfile: str = option("certificate chain, PEM", default="", metavar="FILE")
    allowed_origins: tuple[str, ...] = option(
        "origins that browsers may call from", default=(), parse=parse_list, metavar="ORIGIN"
    )
    root_path: str = option("path prefix that a proxy strips", default="")
    max_body_bytes: int = option(
        "largest request body", default=32 << 20, parse=parse_size, minimum=1024, metavar="SIZE"
    )
    client_timeout: float = option(
        "seconds of a client that sends nothing of its body, or reads nothing of its answer, after "
        "which it is dropped; a whole body may take twice as long",
        default=30.0,
        parse=parse_float,
        minimum=0.1,
    )
    keep_alive_timeout: float = option(
        "seconds that an idle connection is kept, and that the headers of a request may take",
        default=75.0,  # longer than the idle time-out of common load balancers
        parse=parse_float,
        minimum=1,
    )
    enable_admin: bool = option("serve the administration routes", default=False, parse=parse_bool)
    admin_api_key: tuple[str, ...] = option(
        "keys of the administration routes; without one they refuse everybody",
        default=(),
        parse=parse_list,
        metavar="KEY",
        secret=True,
    )

    device: str = option(
        "where the model runs: auto, cpu, cuda or cuda:INDEX", default=AUTO, group="Engine"
    )
    num_threads: int = option(
        "CPU threads; 0: the cores this process may use",
        default=0,
        parse=parse_int,
        minimum=0,
        maximum=1024,
    )
    cpu_isa: str = option(
        "instruction set of the CPU kernels; auto: the best of this processor",
        default=AUTO,
        choices=(AUTO, "avx2", "avx512", "amx"),
    )
    tensor_parallel_size: int = option(
        "GPUs that share the model; this version runs on one", default=1, parse=parse_int, minimum=1
    )
    block_size: int = option(
        "tokens of a KV block", default=16, parse=parse_int, minimum=1, maximum=256
    )
    kv_cache_dtype: str = option(
        "type of keys and values",
        default=AUTO,
        choices=(AUTO, "float32", "float16", "bfloat16", "fp8", "int8"),
    )
    kv_cache_memory_bytes: int = option(
        "size of the KV cache; 0: from free memory",
        default=0,
        parse=parse_size,
        minimum=0,
        metavar="SIZE",
    )
    gpu_memory_utilization: float = option(
        "share of the GPU's memory to use", default=0.92, parse=parse_float, minimum=0.01, maximum=1
    )
    num_gpu_blocks_override: int = option(
        "number of KV blocks, whatever memory allows",
        default=0,
        parse=parse_int,
        minimum=0,
        metavar="N",
    )
    enable_prefix_caching: bool = option(
        "reuse the KV blocks of equal prompt beginnings", default=True, parse=parse_bool
    )
    enable_chunked_prefill: bool = option(
        "split long prompts over steps", default=True, parse=parse_bool
    )
    max_num_seqs: int = option(
        "sequences that run at the same time", default=64, parse=parse_int, minimum=1, maximum=65536
    )
    max_num_batched_tokens: int = option(
        "tokens of one step; auto: 512 on CPUs, so that a long prompt does not stop the others for "
        "seconds, else 2048",
        default=0,
        parse=parse_length,
        minimum=0,
        maximum=1 << 24,
        metavar="N|auto",
    )
    max_num_mixed_prefill_tokens: int = option(
        "prompt tokens of a step that decodes too, so that prompts delay streams little; more "
        "while many wait, and on CUDA filled up to a multiple of 128 with the decodes; auto: 128 "
        "on CPUs, else 320",
        default=0,
        parse=parse_length,
        minimum=0,
        maximum=1 << 24,
        metavar="N|auto",
    )
    scheduling_policy: str = option("who runs first", default="fcfs", choices=("fcfs", "priority"))
    max_num_queued_reqs: int = option(
        "requests that may wait; more get 429",
        default=4096,
        parse=parse_int,
        minimum=1,
        maximum=1 << 24,
    )
    max_num_queued_tokens: int = option(
        "prompt tokens of the requests that may wait; more get 429",
        default=16 << 20,
        parse=parse_length,
        minimum=1,
    )
    enforce_eager: bool = option("no CUDA graphs", default=False, parse=parse_bool)
    gemm_tuning_cache: str = option(
        "file of measured choices of cuBLASLt's algorithms, made by --tune-gemm; auto: one in the "
        "cache directory",
        default=AUTO,
        metavar="FILE|auto|off",
    )
    tune_gemm: bool = option(
        "measure cuBLASLt's algorithms before ready and keep the choices in that file: for a first "
        "start, some seconds longer",
        default=False,
        parse=parse_bool,
    )
    batch_invariant: bool = option(
        "results do not depend on the batch, on CUDA and AMX too", default=False, parse=parse_bool
    )

    enable_lora: bool = option(
        "keep room for adapters (LoRA); --lora-modules implies it",
        default=False,
        parse=parse_bool,
        group="Adapters",
    )
    lora_modules: tuple[str, ...] = option(
        'adapters to load: name=path, or {"name": …, "path": …, "base_model_name": …}',
        default=(),
        parse=parse_lora_modules,
        metavar="NAME=PATH",
        is_list=True,
    )
    max_loras: int = option(
        "adapters that are there at a time", default=8, parse=parse_int, minimum=1, maximum=64
    )
    max_lora_rank: int = option(
        "greatest rank of an adapter; auto: that of --lora-modules, 64 where none is given",
        default=0,
        parse=parse_length,
        minimum=0,
        maximum=512,
        metavar="N|auto",
    )
    lora_root: tuple[str, ...] = option(
        "where adapters may be loaded from at run time", default=(), parse=parse_list, metavar="DIR"
    )

    startup_timeout: float = option(
        "seconds without progress after which a start fails",
        default=600.0,
        parse=parse_float,
        minimum=0.1,
        group="Life",
    )
    shutdown_timeout: float = option(
        "seconds that running requests get at the end", default=30.0, parse=parse_float, minimum=0
    )
    liveness_timeout: float = option(
        "seconds without a heartbeat after which the engine counts as stuck; auto: at least 30, "
        "more where a step takes long",
        default=0.0,
        parse=parse_seconds_or_auto,
        minimum=0,
        metavar="S|auto",
    )
    max_engine_restarts: int = option(
        "restarts of a failed engine in 10 minutes",
        default=3,
        parse=parse_int,
        minimum=0,
        maximum=1000,
    )

    log_level: str = option(
        "least important messages",
        default="info",
        choices=("debug", "info", "warning", "error"),
        group="Logging",
    )
    log_format: str = option("format of the messages", default="text", choices=("text", "json"))
    log_file: str = option(
        "write messages here instead of standard error", default="", metavar="FILE"
    )
    disable_log_requests: bool = option("no line for each request", default=False, parse=parse_bool)
    otlp_traces_endpoint: str = option("where OpenTelemetry spans go", default="", metavar="URL")

    def __post_init__(self) -> None:
        for each in options():
            where = each.flag
            object.__setattr__(self, each.name, each.value_of(getattr(self, each.name), where))
        self._check_together()

    def _check_together(self) -> None:
        if bool(self.ssl_keyfile) != bool(self.ssl_certfile):
            raise ConfigError("--ssl-keyfile and --ssl-certfile must be given together.")
        if self.tensor_parallel_size != 1:
            raise ConfigError(
                "--tensor-parallel-size: this version runs on one device; use 1, or start one "
                "server for each GPU."
            )
        budget = self.max_num_batched_tokens or self.max_model_len
        if not self.enable_chunked_prefill and self.max_model_len > budget:
            raise ConfigError(
                "--no-enable-chunked-prefill needs --max-num-batched-tokens of at least "
                f"--max-model-len ({self.max_model_len})."
            )
        check_modules(self.adapters, self.model_names, self.max_loras)
        kind, _, index = self.device.partition(":")
        valid = kind in (AUTO, "cpu", "cuda") and (
            not index or (kind == "cuda" and index.isdecimal())
        )
        if not valid:
            raise ConfigError(f"--device: {self.device!r} is not auto, cpu, cuda or cuda:INDEX.")

    @classmethod
    def from_cli_args(cls, arguments: argparse.Namespace) -> ServeConfig:
        """The configuration of a parsed command line, with environment and --config file below it.

        Raises:
            ConfigError: Naming the flag, variable or key at fault.
        """
        given = {n: v for n, v in vars(arguments).items() if v is not None}
        return load(given, os.environ, given.get("config"))

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names that requests may use, the first one in answers."""
        return self.served_model_name or (self.model,)

    @property
    def adapters(self) -> tuple[LoraModule, ...]:
        """The adapters to load at the start."""
        return tuple(map(lora_module, self.lora_modules))

    @property
    def has_loras(self) -> bool:
        """There is room for adapters."""
        return self.enable_lora or bool(self.lora_modules)

    def api_keys(self) -> tuple[str, ...]:
        """The keys of --api-key and --api-key-file.

        Raises:
            ConfigError: The file cannot be read or holds no key.
        """
        if not self.api_key_file:
            return self.api_key
        try:
            lines = Path(self.api_key_file).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"--api-key-file: cannot read {self.api_key_file}: {error}."
            ) from None
        keys = tuple(line.strip() for line in lines if line.strip())
        if not keys:
            raise ConfigError(f"--api-key-file: {self.api_key_file} holds no key.")
        return self.api_key + keys


# --- The options as data -------------------------------------------------------------------------


def options() -> Iterator[Option]:
    """The options in the order of their definition."""
    group = ""
    for each in dataclasses.fields(ServeConfig):
        values = dict(each.metadata)
        group = values["group"] or group
        yield Option(name=each.name, default=each.default, **{**values, "group": group})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add MODEL and every flag to a parser. Absent ones become None."""
    groups: dict[str, argparse._ArgumentGroup] = {}
    for each in options():
        if each.group not in groups:
            groups[each.group] = parser.add_argument_group(each.group)
        add_argument(groups[each.group], each)
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of these options")


def load(
    flags: Mapping[str, Any], environ: Mapping[str, str], file: str | Path | None = None
) -> ServeConfig:
    """Merge flags, variables and a file; OCTAVO_CONFIG names the file where no flag does.

    Raises:
        ConfigError: Naming the flag, variable or key at fault.
    """
    file = file or environ.get(ENV_PREFIX + "CONFIG")
    from_file = read_file(Path(file), [each.key for each in options()]) if file else {}
    merged: dict[str, Any] = {}
    for each in options():
        if each.name in flags:
            merged[each.name] = each.value_of(flags[each.name], each.flag)
        elif (text := environ.get(each.variable)) and not _is_service_link(each, text):
            merged[each.name] = each.value_of(text, each.variable)
        elif each.name in from_file:
            merged[each.name] = each.value_of(from_file[each.name], f"{file}: {each.key}")
    return ServeConfig(**merged)


def _is_service_link(each: Option, text: str) -> bool:
    """Kubernetes sets OCTAVO_PORT=tcp://… in every pod beside a Service named octavo."""
    return each.name == "port" and text.startswith(("tcp://", "udp://"))


def as_yaml(config: ServeConfig) -> str:
    """The configuration as a --config file; secrets are masked."""
    import yaml  # noqa: PLC0415 - only for --print-config

    values: dict[str, Any] = {}
    for each in options():
        value = getattr(config, each.name)
        if each.secret and value:
            value = ["***"] * len(value)
        values[each.key] = list(value) if isinstance(value, tuple) else value
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def from_environment() -> ServeConfig:
    """The configuration of a server that is not started by `octavo serve`.

    Raises:
        ConfigError: Naming the variable or key at fault, or OCTAVO_MODEL where no model is named.
    """
    config = load({}, os.environ)
    if not config.model:
        raise ConfigError(
            "No model is named: set OCTAVO_MODEL, or model in the OCTAVO_CONFIG file."
        )
    return config


def runtime_directories() -> list[str]:
    """Where a private directory for sockets may be made, the best place first."""
    named = [os.environ.get("XDG_RUNTIME_DIR"), os.environ.get("TMPDIR"), "/tmp", "/dev/shm"]  # noqa: S108
    return [name for name in named if name]


def command_line() -> list[str]:
    """The arguments of this process."""
    return sys.argv[1:]


def cache_directory() -> Path:
    """Where demos are kept: below XDG_CACHE_HOME, else ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "octavo"


def resolve_options(config: ServeConfig) -> ResolveOptions:
    """How the configuration wants models to be looked for."""
    from octavo.model.resolve import ResolveOptions  # noqa: PLC0415 - not for --help

    return ResolveOptions(
        cache_dir=cache_directory(),
        revision=config.revision,
        download_dir=config.download_dir,
        load_format=config.load_format,
    )


def foreign_environment() -> dict[str, str]:
    """The environment without our variables, for a child whose settings are given otherwise."""
    return {k: v for k, v in os.environ.items() if not k.startswith(ENV_PREFIX)}
