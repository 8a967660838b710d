"""Safetensors checkpoints: one file, or shards listed in an index.

The header is read and checked here, and tensors are read by position: a mapping would turn a file
that shrinks into SIGBUS. Source: the safetensors format.
"""

from __future__ import annotations

import math
import os
from itertools import pairwise
from typing import TYPE_CHECKING

import msgspec

from octavo.errors import CheckpointError
from octavo.model.json_file import read_json
from octavo.model.tensor_source import TensorEntry

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_MAX_READ_BYTES = 1 << 30  # Linux moves less than 2 GiB a call

# Name in the engine and bytes of an element. A type with no engine name can be in a file but not
# be loaded.
_DTYPES = {
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3", 1),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "I32": ("int32", 4),
    "I64": ("int64", 8),
    "BOOL": ("bool", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E8M0": ("float8_e8m0", 1),
    "I16": ("int16", 2),
    "U16": ("uint16", 2),
    "U32": ("uint32", 4),
    "U64": ("uint64", 8),
    "F64": ("float64", 8),
    "C64": ("complex64", 8),
}


class _Header(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


class SafetensorsFile:
    """One .safetensors file. Thread-safe.

    Raises:
        CheckpointError: The file is damaged; the message names file and tensor.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror}") from None
        size = os.fstat(self._fd).st_size
        header, self._data_begin = self._read_header(size)
        self._offsets: dict[str, int] = {}
        self.tensors: dict[str, TensorEntry] = {}
        for name, raw in header.items():
            if name != "__metadata__":
                self._add(name, raw, size - self._data_begin)
        self._check_overlap()

    def __del__(self) -> None:
        if (fd := getattr(self, "_fd", -1)) >= 0:
            os.close(fd)

    @property
    def location(self) -> str:
        """The file's path."""
        return str(self._path)

    def read(self, name: str, out: memoryview) -> None:
        """See TensorSource.read."""
        begin = self._data_begin + self._offsets[name]
        done = 0
        while done < len(out):
            try:
                got = os.preadv(self._fd, [out[done : done + _MAX_READ_BYTES]], begin + done)
            except OSError as error:
                raise CheckpointError(f"{self._path}: {name!r}: {error.strerror}") from None
            if got == 0:
                raise CheckpointError(
                    f"{self._path}: {name!r}: the file became shorter while it was read"
                )
            done += got

    def _read_header(self, size: int) -> tuple[dict[str, msgspec.Raw], int]:
        try:
            length = int.from_bytes(os.pread(self._fd, _LENGTH_BYTES, 0), "little")
            if size < _LENGTH_BYTES or length > min(size - _LENGTH_BYTES, _MAX_HEADER_BYTES):
                raise CheckpointError(
                    f"{self._path}: not a safetensors file, or cut off: it has {size} bytes and "
                    f"declares a header of {length}"
                )
            text = os.pread(self._fd, length, _LENGTH_BYTES)
            return msgspec.json.decode(text, type=dict[str, msgspec.Raw]), _LENGTH_BYTES + length
        except OSError as error:
            raise CheckpointError(f"{self._path}: {error.strerror}") from None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise CheckpointError(f"{self._path}: damaged header: {error}") from None

    def _add(self, name: str, raw: msgspec.Raw, data_bytes: int) -> None:
        try:
            header = msgspec.json.decode(raw, type=_Header)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise CheckpointError(f"{self._path}: {name!r}: {error}") from None
        if header.dtype not in _DTYPES:
            raise CheckpointError(f"{self._path}: {name!r}: unknown dtype {header.dtype!r}")
        dtype, item_bytes = _DTYPES[header.dtype]
        if any(size < 0 for size in header.shape):
            raise CheckpointError(f"{self._path}: {name!r}: negative size in {header.shape}")
        begin, end = header.data_offsets
        num_bytes = math.prod(header.shape) * item_bytes
        if end - begin != num_bytes:
            raise CheckpointError(
                f"{self._path}: {name!r}: {dtype} {list(header.shape)} takes {num_bytes} bytes, "
                f"its offsets {begin} to {end} span {end - begin}"
            )
        if not 0 <= begin <= end <= data_bytes:
            raise CheckpointError(
                f"{self._path}: {name!r}: bytes {begin} to {end} lie outside the file's "
                f"{data_bytes}"
            )
        self.tensors[name] = TensorEntry(dtype, header.shape, num_bytes)
        self._offsets[name] = begin

    def _check_overlap(self) -> None:
        order = sorted(
            (begin, begin + self.tensors[name].num_bytes, name)
            for name, begin in self._offsets.items()
        )
        for (_, end, name), (begin, _, next_name) in pairwise(order):
            if begin < end:
                raise CheckpointError(f"{self._path}: {next_name!r}: overlaps {name!r}")


class SafetensorsModel:
    """The safetensors files of a model directory as one source of tensors.

    Raises:
        CheckpointError: A file is missing or damaged; the message names it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file_of: dict[str, SafetensorsFile] = {}
        index = directory / INDEX_NAME
        if index.is_file():
            self._add_shards(index)
        else:
            self._add(SafetensorsFile(directory / SINGLE_NAME))

    @property
    def location(self) -> str:
        """The directory's path."""
        return str(self._directory)

    @property
    def tensors(self) -> Mapping[str, TensorEntry]:
        """See TensorSource.tensors."""
        return {name: file.tensors[name] for name, file in self._file_of.items()}

    def read(self, name: str, out: memoryview) -> None:
        """See TensorSource.read."""
        self._file_of[name].read(name, out)

    def _add(self, file: SafetensorsFile) -> None:
        for name in file.tensors:
            if name in self._file_of:
                other = self._file_of[name].location
                raise CheckpointError(f"{file.location}: {name!r}: is in {other} too")
            self._file_of[name] = file

    def _add_shards(self, index: Path) -> None:
        weight_map = read_json(index, _Index).weight_map
        for shard in dict.fromkeys(weight_map.values()):
            self._add(SafetensorsFile(shard_path(index, shard)))
        for name, shard in weight_map.items():
            if name not in self._file_of:
                raise CheckpointError(
                    f"{index.parent / shard}: {name!r}: listed in the index, absent"
                )


def shard_path(index: Path, shard: str) -> Path:
    """The path of a shard that an index names.

    Raises:
        CheckpointError: The name leads out of the directory.
    """
    if shard in {"", ".", ".."} or "/" in shard or "\\" in shard or "\0" in shard:
        raise CheckpointError(f"{index}: {shard!r} is not the name of a file beside it")
    return index.parent / shard


def missing_shards(directory: Path) -> list[str]:
    """The names of weight files that a directory should have and has not."""
    index = directory / INDEX_NAME
    if not index.is_file():
        return [] if (directory / SINGLE_NAME).is_file() else [SINGLE_NAME]
    shards = dict.fromkeys(read_json(index, _Index).weight_map.values())
    return [name for name in shards if not shard_path(index, name).is_file()]
