"""GGUF files as Python sees them: metadata read with types, tensors under Hugging Face names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from octavo.errors import CheckpointError
from octavo.model.gguf_names import places

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from octavo import _core
    from octavo.model.tensor_source import TensorEntry

_T = TypeVar("_T")


class GgufModel:
    """A GGUF file, or the first of its shards, as a source of metadata and tensors. Thread-safe.

    Raises:
        CheckpointError: The file is damaged; the message names key or tensor.
        UnsupportedModelError: It has a version or a tensor type that this build does not read.
    """

    def __init__(self, path: Path) -> None:
        from octavo._core import GgufFile  # noqa: PLC0415 - not every model is a GGUF file

        self._path = path
        self._file: _core.GgufFile = GgufFile(str(path))
        self.metadata = GgufMetadata(path, self._file.metadata())
        architecture = self.metadata.get("general.architecture", str)
        self._places = places(self._file.tensors(), architecture)
        self._entries = {name: place.entry for name, place in self._places.items()}

    @property
    def location(self) -> str:
        """The file's path."""
        return str(self._path)

    @property
    def tensors(self) -> Mapping[str, TensorEntry]:
        """See TensorSource.tensors."""
        return self._entries

    def read(self, name: str, out: memoryview) -> None:
        """See TensorSource.read."""
        place = self._places[name]
        self._file.read_tensor(place.name, out, place.begin)


class GgufMetadata:
    """The key-value pairs of a GGUF file."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path = path
        self._values = values

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str, type_: type[_T]) -> _T | None:
        """The value of a key, None when it is absent.

        Raises:
            CheckpointError: It has another type.
        """
        value = self._values.get(key)
        if value is None:
            return None
        if type(value) is not type_:
            raise CheckpointError(
                f"{self.path}: metadata key {key!r} is of type {type(value).__name__}, "
                f"not {type_.__name__}"
            )
        return value

    def need(self, key: str, type_: type[_T]) -> _T:
        """The value of a key.

        Raises:
            CheckpointError: It is absent or has another type.
        """
        value = self.get(key, type_)
        if value is None:
            raise CheckpointError(f"{self.path}: metadata key {key!r} is missing")
        return value

    def get_list(self, key: str, type_: type[_T]) -> list[_T] | None:
        """The elements of an array, None when it is absent.

        Raises:
            CheckpointError: It is no array of `type_`.
        """
        values = self.get(key, list)
        if values is not None and not set(map(type, values)) <= {type_}:
            raise CheckpointError(
                f"{self.path}: metadata key {key!r} is no array of {type_.__name__}"
            )
        return values
