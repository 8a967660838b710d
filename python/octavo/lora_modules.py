"""Adapters as a configuration names them."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from octavo.errors import ConfigError
from octavo.options import parse_str

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX_NAME = 256


@dataclass(frozen=True)
class LoraModule:
    """One entry of --lora-modules.

    Attributes:
        name: What requests call it.
        path: Its directory.
        base_model_name: The model that its card names as its parent; "" for the one served.
    """

    name: str
    path: str
    base_model_name: str = ""


def parse_lora_modules(value: object) -> tuple[str, ...]:
    """Entries `name=path` or JSON objects: a list of either, text with commas, or a JSON list.

    Returns:
        The entries as they were written, each one that lora_module() can read.
    """
    entries = _entries(value)
    for entry in entries:
        lora_module(entry)
    return entries


def _entries(value: object) -> tuple[str, ...]:
    if isinstance(value, list | tuple):
        return tuple(_entry(item) for item in value)
    text = _entry(value).strip()
    if text.startswith("["):
        return _entries(_json(text))
    if text.startswith("{"):
        return (text,)
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _entry(item: object) -> str:
    if isinstance(item, dict):
        return json.dumps(item, ensure_ascii=False, separators=(",", ":"))
    return parse_str(item)


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON for an adapter: {error}") from None


def _from_json(text: str) -> LoraModule:
    given = _json(text)
    known = {field.name for field in fields(LoraModule)}
    values = {k: v for k, v in given.items() if k in known} if isinstance(given, dict) else {}
    wrong = [name for name, value in values.items() if not isinstance(value, str)]
    missing = [name for name in ("name", "path") if name not in values]
    if wrong or missing:
        what = f"{wrong[0]} is no text" if wrong else f"{missing[0]} is missing"
        raise ValueError(f"not valid JSON for an adapter: {what}")
    return LoraModule(**values)


def lora_module(entry: str) -> LoraModule:
    """Read one entry.

    Raises:
        ValueError: It is neither name=path nor such an object.
    """
    if entry.startswith("{"):
        module = _from_json(entry)
    else:
        name, equals, path = entry.partition("=")
        if not equals:
            raise ValueError(f"{entry!r} is not name=path")
        module = LoraModule(name, path)
    if not module.path:
        raise ValueError(f"adapter {module.name!r} has no path")
    check_name(module.name)
    return module


def check_modules(modules: Sequence[LoraModule], taken: Sequence[str], most: int) -> None:
    """Check that adapters can be there together.

    Args:
        modules: The adapters.
        taken: The names of their base model.
        most: --max-loras.

    Raises:
        ConfigError: Two have one name, or there are too many.
    """
    names = [*taken, *(module.name for module in modules)]
    for name in {each for each in names if names.count(each) > 1}:
        raise ConfigError(f"--lora-modules: the name {name!r} is taken.")
    if len(modules) > most:
        raise ConfigError(
            f"--lora-modules names {len(modules)} adapters: raise --max-loras ({most})."
        )


def check_name(name: str) -> None:
    """Refuse what is no name for an adapter.

    Raises:
        ValueError: It is empty, too long or not printable.
    """
    if not name or len(name) > _MAX_NAME or not name.isprintable() or name != name.strip():
        raise ValueError(f"an adapter's name has 1 to {_MAX_NAME} printable characters")
