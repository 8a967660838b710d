"""How a model wants to be sampled: its end-of-sequence ids and the defaults it recommends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from octavo.model.hf_config import read_hf_config
from octavo.model.json_file import read_json

if TYPE_CHECKING:
    from pathlib import Path

    from octavo.model.gguf import GgufModel


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationConfig:
    """What a model's files say about generation; None where they say nothing.

    Attributes:
        eos_token_ids: Any of them ends the output; ascending.
        bos_token_id: Begins a text.
    """

    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


class _HfGenerationConfig(msgspec.Struct):
    eos_token_id: int | list[int] | None = None
    bos_token_id: int | list[int] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


def hf_generation_config(directory: Path) -> GenerationConfig:
    """From config.json and, where it is there, generation_config.json.

    Raises:
        CheckpointError: A file is no JSON, or a field has the wrong type.
    """
    config = read_hf_config(directory)
    path = directory / "generation_config.json"
    given = read_json(path, _HfGenerationConfig) if path.is_file() else _HfGenerationConfig()
    # Where both name end ids, generation_config.json is the one kept up to date; config.json often
    # lacks the id that ends a chat turn.
    eos = _ids(given.eos_token_id) or _ids(config.eos_token_id)
    bos = _ids(given.bos_token_id) or _ids(config.bos_token_id)
    return GenerationConfig(
        eos_token_ids=eos,
        bos_token_id=bos[0] if bos else None,
        temperature=given.temperature,
        top_p=given.top_p,
        top_k=given.top_k,
        min_p=given.min_p,
        repetition_penalty=given.repetition_penalty,
    )


def gguf_generation_config(model: GgufModel) -> GenerationConfig:
    """From the ids of the metadata: end of sequence, of turn and of message.

    Raises:
        CheckpointError: A key has the wrong type.
    """
    ids = (model.metadata.get(f"tokenizer.ggml.{kind}_token_id", int) for kind in _END_KINDS)
    return GenerationConfig(
        eos_token_ids=tuple(sorted({id_ for id_ in ids if id_ is not None})),
        bos_token_id=model.metadata.get("tokenizer.ggml.bos_token_id", int),
    )


_END_KINDS = ("eos", "eot", "eom")


def _ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(sorted(set(value))) if isinstance(value, list) else (value,)
