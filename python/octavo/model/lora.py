"""Adapters (LoRA) as PEFT writes them: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from octavo.errors import CheckpointError, ConfigError, UnsupportedModelError
from octavo.model.json_file import read_json
from octavo.model.safetensors_file import SafetensorsFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from octavo.model.tensor_source import TensorEntry

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

_PICKLE_NAME = "adapter_model.bin"
_PREFIX = "base_model.model."
_MATRIX = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")
_FLOATS = frozenset({"float32", "float16", "bfloat16"})
# What these start from changes the base weights too; PEFT sets the field to true when it converts.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")

# Of a key of alpha_pattern. Matching one against a name takes no longer than the name's length to
# the power of its quantifiers, times the alternatives of all its groups.
_MAX_PATTERN = 200  # characters
_MAX_QUANTIFIERS = 3
_MAX_GROUPS = 3
_QUANTIFIED_GROUP = re.compile(r"\)\s*[*+?{]")
_MAX_MODULE = 128  # characters of a projection's name


class PeftConfig(msgspec.Struct):
    """The fields of adapter_config.json that Octavo reads; the tensors say the rest."""

    peft_type: str = "LORA"
    r: int = 8
    lora_alpha: float = 8.0
    use_rslora: bool = False
    use_dora: bool = False
    use_qalora: bool = False
    lora_bias: bool = False
    fan_in_fan_out: bool = False
    bias: str = "none"
    init_lora_weights: bool | str | None = True
    modules_to_save: list[str] | None = None
    alpha_pattern: dict[str, float] | None = None
    layer_replication: list[Any] | None = None
    trainable_token_indices: Any = None
    target_parameters: list[str] | None = None
    alora_invocation_tokens: list[int] | None = None


class Pair(NamedTuple):
    """One projection's matrices: the names of A [rank, in] and B [out, rank] in the file."""

    a: str
    b: str
    rank: int
    scale: float


class Adapter:
    """An adapter's files, opened and checked as far as that can be without its base model.

    Attributes:
        path: The directory.
        pairs: By the projection's name in the base model.

    Raises:
        CheckpointError: A file is missing or damaged, or holds what is no LoRA.
        UnsupportedModelError: It is of a kind that this version has not; the message says which.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_dir():
            raise CheckpointError(f"{path}: no such directory.")
        config = read_json(path / CONFIG_NAME, PeftConfig)
        _check_kind(path, config)
        if not (path / WEIGHTS_NAME).is_file() and (path / _PICKLE_NAME).exists():
            raise UnsupportedModelError(
                f"{path}: {_PICKLE_NAME} is a pickle, which can run code: convert it to "
                f"{WEIGHTS_NAME}."
            )
        self._file = SafetensorsFile(path / WEIGHTS_NAME)
        self.pairs = _pairs(self._file, config)

    @property
    def rank(self) -> int:
        """The greatest of its ranks."""
        return max(pair.rank for pair in self.pairs.values())

    def entry(self, name: str) -> TensorEntry:
        """Type and shape of a matrix."""
        return self._file.tensors[name]

    def read(self, name: str) -> bytearray:
        """The bytes of a matrix.

        Raises:
            CheckpointError: The file became shorter or cannot be read.
        """
        data = bytearray(self.entry(name).num_bytes)
        self._file.read(name, memoryview(data))
        return data

    def check_base(self, targets: Iterable[tuple[str, int, int]], max_rank: int) -> None:
        """Check that it fits a base model.

        Args:
            targets: The projections that an adapter can change: name, input and output features.
            max_rank: --max-lora-rank.

        Raises:
            CheckpointError: A matrix has other sizes than the projection.
            UnsupportedModelError: It changes what is no such projection.
            ConfigError: Its rank is too great.
        """
        known = {name: (cols, rows) for name, cols, rows in targets}
        for module, pair in self.pairs.items():
            if module not in known:
                raise UnsupportedModelError(_explain(self.path, module, known))
            cols, rows = known[module]
            a, b = self.entry(pair.a).shape, self.entry(pair.b).shape
            if a[1] != cols or b[0] != rows:
                raise CheckpointError(
                    f"{self.path}: {module} takes {a[1]} and gives {b[0]} features, the base "
                    f"model's {cols} and {rows}: is it of another model?"
                )
        if self.rank > max_rank:
            raise ConfigError(f"{self.path}: rank {self.rank} is above --max-lora-rank {max_rank}.")


def _explain(path: Path, module: str, known: Mapping[str, Any]) -> str:
    leaf = module.rpartition(".")[2]
    kinds = sorted({name.rpartition(".")[2] for name in known})
    if "expert" in module or leaf in {"gate", "router"}:
        what = "experts and their routers cannot be changed"
    elif leaf in {"embed_tokens", "lm_head"}:
        what = "embeddings and the output head cannot be changed"
    else:
        what = "the base model has no such projection"
    return f"{path}: {module}: {what}; an adapter can change {', '.join(kinds)}."


def _check_kind(path: Path, config: PeftConfig) -> None:
    faults = {
        f"peft_type {config.peft_type}": config.peft_type.upper() != "LORA",
        "DoRA (use_dora)": config.use_dora,
        "QALoRA (use_qalora)": config.use_qalora,
        "biases (bias)": config.bias != "none",
        "biases (lora_bias)": config.lora_bias,
        "whole modules (modules_to_save)": config.modules_to_save,
        "transposed weights (fan_in_fan_out)": config.fan_in_fan_out,
        "repeated layers (layer_replication)": config.layer_replication,
        "trained tokens (trainable_token_indices)": config.trainable_token_indices,
        "parameters (target_parameters)": config.target_parameters,
        "activated LoRA (alora_invocation_tokens)": config.alora_invocation_tokens,
    }
    for what, is_there in faults.items():
        if is_there:
            raise UnsupportedModelError(f"{path}: the adapter has {what}, which is not supported.")
    start = config.init_lora_weights
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise UnsupportedModelError(
            f"{path}: init_lora_weights {start!r} changes the base weights: convert the adapter "
            "with PEFT's path_initial_model_for_weight_conversion."
        )
    if not math.isfinite(config.lora_alpha):
        raise CheckpointError(f"{path}: lora_alpha is {config.lora_alpha}.")


def _pairs(file: SafetensorsFile, config: PeftConfig) -> dict[str, Pair]:
    sides: dict[str, dict[str, str]] = {}
    for name, entry in file.tensors.items():
        match = _MATRIX.fullmatch(name.removeprefix(_PREFIX))
        if match is None or len(match["module"]) > _MAX_MODULE:
            raise UnsupportedModelError(f"{file.location}: {name[:200]!r} is no matrix of a LoRA.")
        if entry.dtype not in _FLOATS or len(entry.shape) != 2 or min(entry.shape) < 1:
            raise CheckpointError(
                f"{file.location}: {name!r} is {entry.dtype} {list(entry.shape)}; a matrix of "
                f"{', '.join(sorted(_FLOATS))} is expected."
            )
        sides.setdefault(match["module"], {})[match["side"]] = name
    if not sides:
        raise CheckpointError(f"{file.location}: it holds no tensors.")
    scales = _Scales(file.location, config)
    return {module: _pair(file, scales, module, names) for module, names in sides.items()}


def _pair(file: SafetensorsFile, scales: _Scales, module: str, names: Mapping[str, str]) -> Pair:
    for side in "AB":
        if side not in names:
            raise CheckpointError(f"{file.location}: {module} has no lora_{side}.")
    a, b = file.tensors[names["A"]].shape, file.tensors[names["B"]].shape
    if a[0] != b[1]:
        raise CheckpointError(f"{file.location}: {module}: lora_A has rank {a[0]}, lora_B {b[1]}.")
    return Pair(names["A"], names["B"], a[0], scales.of(module, a[0]))


class _Scales:
    """What the product of a pair is multiplied by."""

    def __init__(self, location: str, config: PeftConfig) -> None:
        self._config = config
        self._patterns = [
            (_pattern(location, key), alpha) for key, alpha in (config.alpha_pattern or {}).items()
        ]

    def of(self, module: str, rank: int) -> float:
        """The first key of alpha_pattern that matches says the numerator, as in PEFT."""
        found = (alpha for pattern, alpha in self._patterns if pattern.match(module))
        alpha = next(found, self._config.lora_alpha)
        return alpha / (math.sqrt(rank) if self._config.use_rslora else rank)


def _pattern(location: str, key: str) -> re.Pattern[str]:
    """A key of alpha_pattern: a module's last names, or a regular expression for them.

    An expression comes from whoever made the adapter: one that could take for ever is refused.
    """
    is_slow = (
        len(key) > _MAX_PATTERN
        or len(re.findall(r"[*+?{]", key)) > _MAX_QUANTIFIERS
        or key.count("(") > _MAX_GROUPS
        or _QUANTIFIED_GROUP.search(key) is not None
    )
    if is_slow:
        raise UnsupportedModelError(f"{location}: alpha_pattern {key[:60]!r} is too complex.")
    try:
        return re.compile(rf"(.*\.)?({key})$")
    except re.error as error:
        raise CheckpointError(f"{location}: alpha_pattern {key!r}: {error}.") from None


def halves_in_turns(data: bytearray, num_rows: int, head_dim: int) -> bytearray:
    """The rows of B in the order that GGUF Llamas have for q and k: halves of a head, in turns."""
    size = len(data) // num_rows
    out = bytearray(len(data))
    half = head_dim // 2
    for row in range(num_rows):
        head, place = divmod(row, head_dim)
        source = head * head_dim + place % 2 * half + place // 2
        out[row * size : (row + 1) * size] = data[source * size : (source + 1) * size]
    return out
