"""How messages look: `INFO:     text` for people, one JSON object a line for collectors."""

from __future__ import annotations

import json
import logging
import sys
from typing import TYPE_CHECKING

from octavo.errors import ConfigError

if TYPE_CHECKING:
    from octavo.config import ServeConfig

LOGGER_NAME = "octavo"


class TextFormatter(logging.Formatter):
    """The level, padded, and the message; a traceback only where the level is debug."""

    def __init__(self, *, with_traceback: bool) -> None:
        super().__init__()
        self._with_traceback = with_traceback

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the traceback if asked for."""
        line = f"{record.levelname + ':':<9} {one_line(record.getMessage())}"
        if record.exc_info and self._with_traceback:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line; `extra={"fields": {...}}` puts fields beside the message."""

    def __init__(self, *, with_traceback: bool) -> None:
        super().__init__()
        self._with_traceback = with_traceback

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        entry: dict[str, object] = {
            "time": round(record.created, 6),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            "pid": record.process,
        }
        entry.update(getattr(record, "fields", {}))
        if record.exc_info and self._with_traceback:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


def one_line(text: str) -> str:
    """Control characters escaped, so that a message cannot forge another line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def configure(config: ServeConfig) -> None:
    """Send this process's messages where the configuration says.

    Raises:
        ConfigError: The log file cannot be opened.
    """
    handler: logging.Handler
    if config.log_file:
        from logging.handlers import WatchedFileHandler  # noqa: PLC0415 - 10 ms, for files only

        try:
            handler = WatchedFileHandler(config.log_file, encoding="utf-8")  # rotated by others
        except OSError as error:
            raise ConfigError(f"--log-file: cannot open {config.log_file}: {error}.") from None
    else:
        handler = logging.StreamHandler(sys.stderr)
    kind = JsonFormatter if config.log_format == "json" else TextFormatter
    handler.setFormatter(kind(with_traceback=config.log_level == "debug"))
    logging.raiseExceptions = False  # a closed pipe or full disk must not end up in a request
    for name in (LOGGER_NAME, "py.warnings", "opentelemetry"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
    logging.getLogger(LOGGER_NAME).setLevel(config.log_level.upper())
    logging.captureWarnings(capture=True)
