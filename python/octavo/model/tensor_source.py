"""What a checkpoint format offers to the loader."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor in a file.

    Attributes:
        dtype: Name of the element type, as the engine spells it where the engine knows it.
        shape: Row-major, outermost dimension first.
        num_bytes: Size in the file.
    """

    dtype: str
    shape: tuple[int, ...]
    num_bytes: int


class TensorSource(Protocol):
    """A checkpoint whose tensors are read by their Hugging Face names. Thread-safe."""

    @property
    def location(self) -> str:
        """The file or directory, for messages."""

    @property
    def tensors(self) -> Mapping[str, TensorEntry]:
        """Every tensor by name, in the order of the files."""

    def read(self, name: str, out: memoryview) -> None:
        """Copy a tensor's bytes into a buffer of exactly its size, without the GIL.

        Raises:
            CheckpointError: The file became shorter or cannot be read.
        """
