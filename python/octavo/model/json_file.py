"""JSON files of a model, read within bounds and checked against a type."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import msgspec

from octavo.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

_T = TypeVar("_T")

# The largest in the field, a tokenizer.json of 256k tokens with merges, has about 35 MB.
_MAX_BYTES = 256 << 20


def read_json(path: Path, type_: type[_T]) -> _T:
    """The content of a JSON file as `type_`.

    Raises:
        CheckpointError: The file cannot be read, is no JSON, or a field has the wrong type.
    """
    try:
        return msgspec.json.decode(read_bounded(path, _MAX_BYTES), type=type_)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    except RecursionError:
        raise CheckpointError(f"{path}: nested too deep") from None


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """The bytes of a file.

    Raises:
        CheckpointError: The file cannot be read or is larger than max_bytes.
    """
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    if len(data) > max_bytes:
        raise CheckpointError(f"{path}: larger than {max_bytes >> 20} MiB")
    return data
