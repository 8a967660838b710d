"""Quantised safetensors checkpoints as sources of plain tensors.

Which tensors are quantised is seen from the tensors themselves; config.json says how. Quantisation
of activations is not followed: they stay as exact as the engine's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.model.tensor_source import TensorEntry

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from octavo import _core
    from octavo.model.tensor_source import TensorSource

# Names of what belongs to a quantised matrix, after the projection's own.
_AUXILIARY = (
    ".weight_scale",
    ".weight_scale_inv",
    ".weight_zero_point",
    ".weight_shape",
    ".weight_g_idx",
    ".input_scale",
    ".k_scale",
    ".v_scale",
    ".output_scale",
    ".activation_scale",
    ".scales",
    ".qzeros",
    ".g_idx",
)
_WEIGHT = ".weight"
_SCALES = {"float32", "float16", "bfloat16"}
_CODES_PER_WORD = 8
# Blocks that keep codes, the largest first: values and bytes of each.
_INT4_BLOCKS = {"int4_g128": (128, 68), "int4_g64": (64, 36), "int4_g32": (32, 20)}
_FLOAT8_ROWS = {"float8_rows": (64, 68)}
_FLOAT8_BLOCKS = {"float8_blocks": (128, 132)}
_INT8_BLOCKS = {"q8_0": (32, 34)}


class _Weights(msgspec.Struct):
    """What compressed-tensors says of the weights of a group of modules."""

    num_bits: int = 8
    type: str = "int"
    strategy: str | None = None
    group_size: int | None = None
    block_structure: list[int] | None = None


class _Group(msgspec.Struct):
    weights: _Weights | None = None


class QuantizationConfig(msgspec.Struct):
    """The fields of quantization_config that Octavo reads."""

    quant_method: str = "unknown"
    bits: int = 4
    group_size: int = 128
    desc_act: bool = False
    checkpoint_format: str = "gptq"
    version: str = "gemm"
    weight_block_size: list[int] | None = None
    config_groups: dict[str, _Group] | None = None


def read_quantization(given: dict[str, Any]) -> QuantizationConfig:
    """Read quantization_config.

    Raises:
        CheckpointError: A field has the wrong type.
        UnsupportedModelError: The method, or an option of it, is not supported.
    """
    try:
        config = msgspec.convert(given, QuantizationConfig)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"quantization_config: {error}") from None
    method = config.quant_method
    if method not in {"fp8", "compressed-tensors", "awq", "gptq"}:
        raise UnsupportedModelError(
            f"weights quantised by {method!r}; supported are awq, compressed-tensors, fp8 and gptq."
        )
    if method in {"awq", "gptq"} and config.bits != 4:
        raise UnsupportedModelError(f"{method} with {config.bits} bits; this version has 4.")
    if method == "awq" and config.version.lower() != "gemm":
        raise UnsupportedModelError(f"awq in the layout {config.version!r}; this version has gemm.")
    for weights in _group_weights(config):
        if (weights.type, weights.num_bits) not in {("float", 8), ("int", 8), ("int", 4)}:
            raise UnsupportedModelError(
                f"compressed-tensors with {weights.num_bits}-bit {weights.type} weights."
            )
    return config


def _group_weights(config: QuantizationConfig) -> list[_Weights]:
    groups = (config.config_groups or {}).values()
    return [group.weights for group in groups if group.weights is not None]


class QuantizedModel:
    """A quantised checkpoint whose matrices are read as float32 or as blocks of codes.

    Args:
        source: The files' own tensors.
        config: How they are quantised.
        kept: The types of blocks that codes may stay in.

    Raises:
        CheckpointError: A tensor that belongs to a quantised matrix is missing or mis-shaped.
        UnsupportedModelError: Scales have another type than floating point.
    """

    def __init__(
        self,
        source: TensorSource,
        config: QuantizationConfig,
        *,
        kept: frozenset[str] = frozenset(),
    ) -> None:
        self._source = source
        self._entries: dict[str, TensorEntry] = {}
        self._matrices: dict[str, _Matrix] = {}
        for name, entry in source.tensors.items():
            if name.endswith(_AUXILIARY):
                continue
            matrix = _find_matrix(source, config, name)
            if matrix is None:
                self._entries[name] = entry
                continue
            scales = source.tensors[matrix.scales].dtype
            if scales not in _SCALES:
                raise UnsupportedModelError(
                    f"{source.location}: {matrix.scales} is of type {scales}."
                )
            self._matrices[matrix.name] = matrix
            self._entries[matrix.name] = matrix.entry(kept, scales)

    @property
    def location(self) -> str:
        """See TensorSource.location."""
        return self._source.location

    @property
    def tensors(self) -> Mapping[str, TensorEntry]:
        """See TensorSource.tensors."""
        return self._entries

    def read(self, name: str, out: memoryview) -> None:
        """See TensorSource.read."""
        matrix = self._matrices.get(name)
        if matrix is None:
            self._source.read(name, out)
            return
        try:
            matrix.read(self._source, self._entries[name].dtype, out)
        except CheckpointError as error:
            raise CheckpointError(f"{self.location}: {name!r}: {error}") from None


class _Matrix(msgspec.Struct, kw_only=True):
    """A quantised matrix: its arrays' names, and how they are laid out."""

    name: str
    layout: str
    shape: tuple[int, int]
    block: tuple[int, int]
    codes: str
    scales: str
    zeros: str | None = None
    zero_offset: int = 0
    group_of_col: str | None = None

    def entry(self, kept: frozenset[str], scales: str) -> TensorEntry:
        """What the engine is told of it; `scales` is the type of its scales."""
        size = self.shape[0] * self.shape[1]
        for dtype, (values, num_bytes) in self._blocks(scales).items():
            if dtype in kept and self.shape[1] % values == 0:
                return TensorEntry(dtype, self.shape, size // values * num_bytes)
        return TensorEntry("float32", self.shape, 4 * size)

    def _blocks(self, scales: str) -> dict[str, tuple[int, int]]:
        """The types of blocks that hold the codes as they are, whatever the columns."""
        if self.group_of_col is not None:
            return {}
        whole_rows = self.block[1] >= self.shape[1]
        if self.layout == "float8" and whole_rows:
            return _FLOAT8_ROWS
        blocks = _INT4_BLOCKS
        if self.layout == "float8":
            blocks = _FLOAT8_BLOCKS
        elif self.layout == "int8":
            # Blocks of q8_0 have float16 scales.
            blocks = {} if scales == "float32" else _INT8_BLOCKS
        return {k: v for k, v in blocks.items() if whole_rows or self.block[1] % v[0] == 0}

    def read(self, source: TensorSource, dtype: str, out: memoryview) -> None:
        """Decode it, or bring its codes to blocks of `dtype`."""
        from octavo import _core  # noqa: PLC0415 - only the engine's process loads the extension

        matrix: _core.CodedMatrix = _core.CodedMatrix(self.layout, *self.shape)
        matrix.block = self.block
        matrix.zero_offset = self.zero_offset
        matrix.scale_dtype = source.tensors[self.scales].dtype
        matrix.out_dtype = dtype
        matrix.decode(
            _bytes_of(source, self.codes),
            _bytes_of(source, self.scales),
            _bytes_of(source, self.zeros),
            _bytes_of(source, self.group_of_col),
            out,
        )


def dummy_types(
    config: QuantizationConfig, specs: Sequence[_core.WeightSpec], kept: frozenset[str]
) -> dict[str, str]:
    """The types of a checkpoint's projections where there is no checkpoint."""
    found = {}
    for spec in specs:
        if not spec.name.endswith("_proj.weight") and ".experts." not in spec.name:
            continue
        matrix = _expected(config, (spec.rows, spec.cols))
        dtype = matrix.entry(kept, "float16").dtype
        if dtype in kept:
            found[spec.name] = dtype
    return found


def _expected(config: QuantizationConfig, shape: tuple[int, int]) -> _Matrix:
    """A matrix as the configuration has it."""
    weights = next(iter(_group_weights(config)), None)
    is_words = config.quant_method in {"awq", "gptq"}
    group = config.group_size
    layout = "packed4" if is_words else "float8"
    block = config.weight_block_size
    if weights is not None:
        group = weights.group_size or 0
        layout = {("int", 4): "packed4", ("int", 8): "int8"}.get(
            (weights.type, weights.num_bits), "float8"
        )
        block = weights.block_structure
    if layout == "float8" and block is not None and len(block) == 2:
        group = block[1]
    elif layout == "float8" and weights is None:
        group = 0
    return _Matrix(
        name="",
        layout=layout,
        shape=shape,
        block=(1, group if group > 0 else shape[1]),
        codes="",
        scales="",
        group_of_col="" if config.desc_act else None,
    )


def _bytes_of(source: TensorSource, name: str | None) -> bytearray:
    if name is None:
        return bytearray()
    data = bytearray(source.tensors[name].num_bytes)
    source.read(name, memoryview(data))
    return data


def _find_matrix(source: TensorSource, config: QuantizationConfig, name: str) -> _Matrix | None:
    """The quantised matrix whose codes are the tensor `name`; None when it holds plain values."""
    prefix, _, kind = name.rpartition(".")
    if kind == "qweight":
        return _find_words(source, config, prefix)
    if kind == "weight_packed":
        return _find_packed(source, config, prefix)
    if kind == "weight" and source.tensors[name].dtype in {"float8_e4m3", "int8"}:
        return _find_bytes(source, config, prefix)
    return None


def _find_words(source: TensorSource, config: QuantizationConfig, prefix: str) -> _Matrix:
    """Of GPTQ or AWQ."""
    is_gptq = config.quant_method == "gptq"
    scales = _need(source, f"{prefix}.scales", 2)
    num_groups, rows = scales.shape
    codes = _need(source, f"{prefix}.qweight", 2)
    cols = codes.shape[0] * (_CODES_PER_WORD if is_gptq else 1)
    group_size = config.group_size if config.group_size > 0 else cols
    if num_groups != -(-cols // group_size):
        raise CheckpointError(
            f"{source.location}: {prefix} has {num_groups} groups for {cols} features."
        )
    _need(source, f"{prefix}.qzeros", 2)
    return _Matrix(
        name=prefix + _WEIGHT,
        layout="gptq4" if is_gptq else "awq4",
        shape=(rows, cols),
        block=(1, group_size),
        codes=f"{prefix}.qweight",
        scales=f"{prefix}.scales",
        zeros=f"{prefix}.qzeros",
        # The first version of the format stores zeros less one.
        zero_offset=1 if is_gptq and config.checkpoint_format != "gptq_v2" else 0,
        group_of_col=_if_there(source, f"{prefix}.g_idx") if config.desc_act else None,
    )


def _find_packed(source: TensorSource, config: QuantizationConfig, prefix: str) -> _Matrix:
    """Of compressed-tensors with four bits."""
    if any(weights.num_bits != 4 for weights in _group_weights(config)):
        raise UnsupportedModelError(f"{source.location}: {prefix}: packed weights of 8 bits.")
    rows, words = _need(source, f"{prefix}.weight_packed", 2).shape
    scales = _need(source, f"{prefix}.weight_scale", 2)
    cols = words * _CODES_PER_WORD
    if scales.shape[0] != rows or scales.shape[1] < 1 or cols % scales.shape[1]:
        raise CheckpointError(
            f"{source.location}: {prefix} has scales {list(scales.shape)} for {[rows, cols]}."
        )
    return _Matrix(
        name=prefix + _WEIGHT,
        layout="packed4",
        shape=(rows, cols),
        block=(1, cols // scales.shape[1]),
        codes=f"{prefix}.weight_packed",
        scales=f"{prefix}.weight_scale",
        zeros=_if_there(source, f"{prefix}.weight_zero_point"),
        group_of_col=_if_there(source, f"{prefix}.weight_g_idx"),
    )


def _find_bytes(source: TensorSource, config: QuantizationConfig, prefix: str) -> _Matrix | None:
    """Of float8, or of int8 codes; None when there is no scale: then the values are plain."""
    codes = source.tensors[prefix + _WEIGHT]
    scales = _if_there(source, f"{prefix}.weight_scale_inv") or _if_there(
        source, f"{prefix}.weight_scale"
    )
    if scales is None or len(codes.shape) != 2:
        return None
    rows, cols = codes.shape
    shape = source.tensors[scales].shape
    if shape in {(), (1,), (1, 1)}:
        block = (rows, cols)
    elif shape in {(rows,), (rows, 1)}:
        block = (1, cols)
    else:
        block = _block_size(source, config, prefix)
    return _Matrix(
        name=prefix + _WEIGHT,
        layout="float8" if codes.dtype == "float8_e4m3" else "int8",
        shape=(rows, cols),
        block=block,
        codes=prefix + _WEIGHT,
        scales=scales,
    )


def _block_size(source: TensorSource, config: QuantizationConfig, prefix: str) -> tuple[int, int]:
    sizes = [config.weight_block_size]
    sizes += [weights.block_structure for weights in _group_weights(config)]
    for size in sizes:
        if size is not None and len(size) == 2 and min(size) > 0:
            return size[0], size[1]
    for weights in _group_weights(config):
        if weights.group_size is not None and weights.group_size > 0:
            return 1, weights.group_size
    raise CheckpointError(f"{source.location}: {prefix}: scales without a block size.")


def _need(source: TensorSource, name: str, rank: int) -> TensorEntry:
    entry = source.tensors.get(name)
    if entry is None:
        raise CheckpointError(f"{source.location}: tensor {name!r} is missing.")
    if len(entry.shape) != rank or min(entry.shape, default=1) < 1:
        raise CheckpointError(f"{source.location}: tensor {name!r} has shape {list(entry.shape)}.")
    return entry


def _if_there(source: TensorSource, name: str) -> str | None:
    return name if name in source.tensors else None
