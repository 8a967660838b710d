"""A --config file: the options by their keys, as YAML."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from octavo.errors import ConfigError
from octavo.options import closest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def read_file(path: Path, known: Sequence[str]) -> dict[str, Any]:
    """The values of a YAML file by field name.

    Args:
        path: The file.
        known: The keys that it may have.

    Raises:
        ConfigError: The file cannot be read, or a key is unknown.
    """
    import yaml  # noqa: PLC0415 - 15 ms that a start without a file does not spend

    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config: cannot read {path}: {error}.") from None
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = f" (line {place.line + 1})" if place else ""
        raise ConfigError(f"--config: {path} is not valid YAML{line}.") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"--config: {path} must hold keys and values.")
    for key in content:
        if str(key).replace("_", "-") not in known:
            raise ConfigError(f"{path}: unknown key {key!r}.{closest(str(key), known)}")
    return {str(k).replace("-", "_"): v for k, v in content.items() if v is not None}
